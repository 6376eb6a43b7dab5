"""The mount table: which mounts exist, which one a path lies in, and whether anyone serves it.

Never calls stat(2) on a mount without a deadline: a mount whose daemon hangs would hang the caller.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from statefs.mounts.processes import has_connection_open

FSTYPE: Final = "fuse.statefs"
MOUNTINFO: Final = Path("/proc/self/mountinfo")
STALE_SECONDS: Final = 3.0
"""How long a daemon may take to answer statfs(2) before the mount is looked at more closely."""
LINKS_MAX: Final = 40
"""Symbolic links followed in one path, as the kernel's MAXSYMLINKS."""


@dataclass(frozen=True)
class MountInfo:
    """One line of the mount table.

    Args:
        mount_point: where it is mounted.
        source: for statefs, the path of the store.
        fstype: "fuse.statefs" for ours.
        options: of the mount and of the filesystem together.
        device: major and minor; for FUSE the minor is the number of the connection.
        mount_id: of this mount, unique among those that exist.
        root: the folder of the filesystem that is shown; not "/" for a bind mount of a part.
    """

    mount_point: Path
    source: str
    fstype: str
    options: frozenset[str] = field(default_factory=frozenset)
    device: tuple[int, int] = (0, 0)
    mount_id: int = 0
    root: str = "/"


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Return the mounts of a mountinfo text, oldest first; lines that make no sense are left out.

    Source: proc_pid_mountinfo(5); space, tab, newline and backslash are written as octal escapes.
    """
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        words, rest = left.split(" "), right.split(" ")
        if not separator or len(words) < 6 or len(rest) < 3:
            continue
        major, _, minor = words[2].partition(":")
        mounts.append(
            MountInfo(
                mount_point=Path(_unescaped(words[4])),
                source=_unescaped(rest[1]),
                fstype=rest[0],
                options=frozenset(f"{words[5]},{rest[2]}".split(",")),
                device=(int(major), int(minor)),
                mount_id=int(words[0]),
                root=_unescaped(words[3]),
            )
        )
    return mounts


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def all_mounts() -> list[MountInfo]:
    """Return the whole mount table, oldest first."""
    return parse_mountinfo(os.fsdecode(MOUNTINFO.read_bytes()))


def statefs_mounts() -> list[MountInfo]:
    """Return every statefs mount this process can see, oldest first; bind mounts included."""
    return [mount for mount in all_mounts() if mount.fstype == FSTYPE]


def find_mount(state: Path) -> MountInfo | None:
    """Return the statefs mount exactly at `state`, the topmost one, or None.

    A bind mount of a folder inside a state is no state.
    """
    mount, path = _reached(state)
    is_state = mount is not None and mount.mount_point == path and mount.root == "/"
    return mount if is_state else None


def mount_containing(path: Path) -> MountInfo | None:
    """Return the statefs mount that `path` lies in (or is the mount point of), or None.

    None, too, in a bind mount of a folder inside a state.
    """
    mount = _reached(path)[0]
    return mount if mount is not None and mount.root == "/" else None


def place_in_mount(path: Path) -> tuple[MountInfo, PurePosixPath] | None:
    """Return the statefs mount that `path` leads into, and where: relative to its store's root.

    None outside of all mounts. A bind mount of a folder inside a state leads there, too.
    """
    mount, at = _reached(path)
    if mount is None:
        return None
    return mount, PurePosixPath(mount.root.lstrip("/")) / at.relative_to(mount.mount_point)


def _reached(path: Path) -> tuple[MountInfo | None, Path]:
    """Follow `path` by name; return the innermost statefs mount it leads into, and where it leads.

    Symbolic links are followed on the way, but nothing inside a mount is ever touched.
    """
    by_point = {mount.mount_point: mount for mount in statefs_mounts()}

    def around(place: Path) -> MountInfo | None:
        return next((by_point[each] for each in (place, *place.parents) if each in by_point), None)

    whole = path if path.is_absolute() else Path.cwd() / path  # it may have been removed
    rest = list(reversed(whole.parts[1:]))
    at, links = Path("/"), 0
    while rest and links <= LINKS_MAX:
        name = rest.pop()
        at = at.parent if name == ".." else at / name
        if around(at) is not None:
            continue
        try:
            target = Path(os.readlink(at))
        except OSError:
            continue
        links += 1
        rest.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        at = Path("/") if target.is_absolute() else at.parent
    return (None if rest else around(at)), at


def is_stale(info: MountInfo) -> bool:
    """Return whether the daemon of a mount is gone. Takes at most `STALE_SECONDS`.

    A daemon that is merely slow is not gone: when no answer comes in time, the mount counts as
    stale only if no process at all holds the other end of its connection.
    """
    outcome: list[int] = []

    def ask() -> None:
        try:
            # Not stat(2): the kernel answers that from its cache long after the daemon died.
            os.statvfs(info.mount_point)
            outcome.append(0)
        except OSError as error:
            outcome.append(error.errno or errno.EIO)

    thread = threading.Thread(target=ask, name="statefs-is-stale", daemon=True)
    thread.start()
    thread.join(STALE_SECONDS)
    if outcome:
        return outcome[0] in (errno.ENOTCONN, errno.ECONNABORTED)
    return has_connection_open(info.device[1]) is False
