"""Brings into current/ what was written into a mount point while nothing was mounted there.

The files are copied through the mount, so every rule of the filesystem holds for them, and removed
from under it only when all of them are in and on stable storage. Nothing in current/ is replaced:
where a name is taken, the file gets another.
"""

from __future__ import annotations

import filecmp
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
BATCH_NAMES: Final = 1000
"""Names given to one cp, which keeps hard links among them; a thousand fit a command line."""
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
        self.let_go()

    def let_go(self) -> None:
        """Close the folder: held open it would keep the mount busy."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What `bring_in` needs of the process that made this."""
        return (self._fd,)

    def bring_in(self) -> None:
        """Move every file into current/.

        Raises:
            StatefsError: copying failed; the files are still under the mount point.
        """
        source, target = Path(f"/proc/self/fd/{self._fd}"), self._mount_point / CURRENT
        names = os.listdir(source)
        if CURRENT in names and _is_folder(source / CURRENT):
            self._merge(source / CURRENT, target, os.listdir(source / CURRENT))
            self._merge(source, target, [name for name in names if name != CURRENT])
        else:
            self._merge(source, target, names)
        write_back(self._mount_point)
        for name in names:
            _remove(source / name)
        if names:
            log.info("brought in what lay under the mount: %s", ", ".join(sorted(names)))

    def _merge(self, source: Path, target: Path, names: list[str]) -> None:
        """Copy `names` of the folder `source` into the folder `target`, replacing nothing."""
        taken = [name for name in names if os.path.lexists(target / name)]
        free = sorted(set(names).difference(taken))
        for start in range(0, len(free), BATCH_NAMES):
            batch = [str(source / name) for name in free[start : start + BATCH_NAMES]]
            self._copy(f"--target-directory={target}", "--", *batch)
        for name in taken:
            old, new = source / name, target / name
            if _is_folder(old) and _is_folder(new):
                self._merge(old, new, os.listdir(old))
                continue
            if _are_equal_files(old, new):
                continue  # from an earlier attempt that was interrupted
            other = next(path for path in _other_names(new) if not os.path.lexists(path))
            log.info("%s is there already: what lay under the mount is now %s", new, other)
            self._copy("--no-target-directory", "--", str(old), str(other))

    def _copy(self, *arguments: str) -> None:
        # cp carries over what a file has besides its bytes: owner, times, links, xattrs, holes.
        done = subprocess.run(
            ["cp", "--archive", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[self._fd],
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


def _are_equal_files(first: Path, second: Path) -> bool:
    both_regular = all(stat.S_ISREG(path.lstat().st_mode) for path in (first, second))
    return both_regular and filecmp.cmp(first, second, shallow=False)


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
