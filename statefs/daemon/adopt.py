"""Brings into current/ what was written into a mount point while nothing was mounted there.

The files are copied through the mount, so every rule of the filesystem holds for them, and removed
from under it only when all of them are in and on stable storage. Nothing in current/ is replaced:
where a name is taken, the file gets another.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from statefs.errors import StatefsError
from statefs.mounts import write_back

log = logging.getLogger(__name__)

CURRENT: Final = "current"
"""Files below a folder of this name keep their place; everything else goes directly into it."""
ADOPTED: Final = "adopted"
"""Comes after the name of a file whose own name is taken."""


class CoveredFiles:
    """A hold on the folder under a mount, taken before the mount hides it.

    Args:
        mount_point: not mounted when the `with` block begins, mounted when bring_in() is called.
    """

    def __init__(self, mount_point: Path) -> None:
        self._mount_point = mount_point
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = os.open(self._mount_point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)

    def bring_in(self) -> None:
        """Move every file into current/.

        Raises:
            StatefsError: copying failed; the files are still under the mount point.
        """
        source = Path(f"/proc/self/fd/{self._fd}")
        names = os.listdir(source)
        for name in names:
            target = self._mount_point / CURRENT
            self._merge(source / name, target if name == CURRENT else target / name)
        write_back(self._mount_point)
        for name in names:
            _remove(source / name)
        if names:
            log.info("brought in what lay under the mount: %s", ", ".join(sorted(names)))

    def _merge(self, source: Path, target: Path) -> None:
        """Copy `source` to `target`, or what is in it to what is there if both are folders."""
        if not os.path.lexists(target):
            self._copy(source, target)
        elif _is_folder(source) and _is_folder(target):
            for name in os.listdir(source):
                self._merge(source / name, target / name)
        else:
            free = next(name for name in _other_names(target) if not os.path.lexists(name))
            log.info("%s is there already: what lay under the mount is now %s", target, free)
            self._copy(source, free)

    def _copy(self, source: Path, target: Path) -> None:
        # cp carries over what a file has besides its bytes: owner, times, links, xattrs, holes.
        fd = self._fd
        done = subprocess.run(
            ["cp", "--archive", "--no-target-directory", "--", str(source), str(target)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[fd],
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["cp failed"]
            raise StatefsError(
                f"the files under the mount point could not be brought in: {said[-1]}; "
                "they are still there, and nothing of them was removed"
            )


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _other_names(target: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield target.with_name(f"{target.name}.{ADOPTED}-{number}")
        number += 1


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink()
