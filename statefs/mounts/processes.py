"""Which processes hold a mount, or its connection, as far as /proc tells. Touches no mount."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
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


@dataclass(frozen=True)
class Writer:
    """A process that may write a file of a filesystem, through a descriptor or a shared mapping.

    Args:
        pid: of the process.
        name: of its program.
        ino: st_ino of the file.
    """

    pid: int
    name: str
    ino: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def writers(device: tuple[int, int]) -> list[Writer]:
    """Return who has files of a filesystem open for writing, in containers, too.

    Args:
        device: major and minor of the filesystem.

    Reads tables in /proc only. A descriptor may be of a mount that its process does not see: it
    was inherited, or handed over, from another mount namespace. Hence the mounts of all processes
    first; their ids are unique among all namespaces. Source: proc_pid_fdinfo(5): flags, mnt_id
    and, since Linux 5.14, ino; proc_pid_maps(5); Linux, fs/namespace.c: mnt_id_ida.
    """
    found: set[Writer] = set()
    processes = _processes()
    mounts = {mount for process in processes for mount in _mounts_of(process, device)}
    for process in processes:
        if int(process.name) == os.getpid():
            continue
        numbers = _written_descriptors(process, mounts) | _written_mappings(process, device)
        if numbers:
            with suppress(OSError):
                name = (process / "comm").read_text().strip()
                found.update(Writer(int(process.name), name, ino) for ino in numbers)
    return sorted(found, key=lambda writer: (writer.pid, writer.ino))


def _mounts_of(process: Path, device: tuple[int, int]) -> set[str]:
    """Return the ids of mounts, as a process sees them, that show a filesystem."""
    wanted = f"{device[0]}:{device[1]}"
    with suppress(OSError):
        lines = (process / "mountinfo").read_text(errors="replace").splitlines()
        return {words[0] for words in map(str.split, lines) if words[2] == wanted}
    return set()


def _written_descriptors(process: Path, mounts: set[str]) -> set[int]:
    numbers = set()
    for fd in _listing(process / "fdinfo"):
        with suppress(OSError, ValueError):
            lines = (process / "fdinfo" / fd).read_text().splitlines()
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            is_written = int(facts.get("flags", "0"), 8) & os.O_ACCMODE != os.O_RDONLY
            if is_written and facts.get("mnt_id", "").strip() in mounts:
                numbers.add(int(facts.get("ino", "0")))
    return numbers


def _written_mappings(process: Path, device: tuple[int, int]) -> set[int]:
    wanted = f"{device[0]:02x}:{device[1]:02x}"
    numbers = set()
    with suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            words = line.split(maxsplit=5)
            if words[3] == wanted and words[1][1] == "w" and words[1][3] == "s":
                numbers.add(int(words[4]))
    return numbers


def threads_of(pid: int) -> set[int]:
    """Return the threads of a process that the kernel has not let go of; empty if it is gone."""
    return {int(name) for name in _listing(Path("/proc") / str(pid) / "task")}


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
