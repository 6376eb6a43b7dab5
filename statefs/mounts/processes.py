"""Which processes hold a mount, or its connection, as far as /proc tells. Touches no mount."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FUSE_DEVICE: Final = Path("/dev/fuse")


@dataclass(frozen=True)
class Holder:
    """A process that keeps a mount busy.

    Args:
        pid: of the process.
        name: of its program.
        only_stands: its working directory lies in the mount, and it uses nothing else of it.
    """

    pid: int
    name: str
    only_stands: bool

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def processes_using(mount_point: Path) -> list[Holder]:
    """Return each process with a file, folder or mapping below `mount_point`.

    Reads only links and tables in /proc: to stat(2) what they lead to could hang on the mount.
    """
    found = []
    for process in _processes():
        links = (_link(process / name) for name in ("root", "exe"))
        files = (_link(process / "fd" / fd) for fd in _listing(process / "fd"))
        uses = (
            _any_below(mount_point, links)
            or _any_below(mount_point, files)
            or _maps(process, mount_point)
        )
        if uses or _any_below(mount_point, [_link(process / "cwd")]):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            found.append(Holder(int(process.name), name, only_stands=not uses))
    return found


def callers() -> list[int]:
    """Return the pids of this process's parent, its parent and so on, the nearest first."""
    pids: list[int] = []
    pid = os.getppid()
    while pid > 1 and pid not in pids:
        pids.append(pid)
        try:
            status = (Path("/proc") / str(pid) / "status").read_text()
        except OSError:
            break
        match = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        pid = int(match[1]) if match else 0
    return pids


def has_connection_open(connection: int) -> bool | None:
    """Return whether a living process holds a FUSE connection; None if it cannot be told.

    Args:
        connection: the number of the connection, which is the minor number of the mount.

    Source: /proc/PID/fdinfo of /dev/fuse names its connection, on kernels that do.
    """
    told = os.geteuid() == 0
    for process in _processes():
        for fd in _listing(process / "fd"):
            if _link(process / "fd" / fd) != str(FUSE_DEVICE):
                continue
            try:
                text = (process / "fdinfo" / fd).read_text()
            except OSError:
                continue
            match = re.search(r"^fuse_connection:\s*(\d+)", text, re.MULTILINE)
            if match is None:
                told = False
            elif int(match[1]) == connection:
                return True
    return False if told else None


def _processes() -> list[Path]:
    return [Path("/proc") / name for name in _listing(Path("/proc")) if name.isdigit()]


def _listing(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # the process has ended, or is another user's


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _any_below(folder: Path, paths: Iterable[str]) -> bool:
    prefix = f"{folder}/"
    return any(path == str(folder) or path.startswith(prefix) for path in paths)


def _maps(process: Path, mount_point: Path) -> bool:
    try:
        text = (process / "maps").read_bytes()
    except OSError:
        return False
    return f" {mount_point}/".encode() in text
