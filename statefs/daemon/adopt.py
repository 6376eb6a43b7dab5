"""Brings into current/ what was written into a mount point while nothing was mounted there.

The files are copied through the mount, so every rule of the filesystem holds for them, into a
hidden folder, and renamed into place when all of them are there: all come in, or none. They are
removed from under the mount only when they are on stable storage. Nothing in current/ is replaced:
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
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from statefs.archive.extraction import FOLDER_FLAGS
from statefs.archive.placing import DURABILITY, NEW, move, staging_folder
from statefs.errors import MountPointNotEmpty, StatefsError, typed
from statefs.snapshots.namespace import METADATA_NAME

log = logging.getLogger(__name__)

CURRENT: Final = "current"
"""Files below a folder of this name keep their place; everything else goes directly into it."""
ADOPTED: Final = "adopted"
"""Comes after the name of a file whose own name is taken."""
RENAMED_NAMED_MAX: Final = 5
"""Files named in the message about names that were taken; the log has all of them."""


def refuse_reserved(mount_point: Path) -> None:
    """Refuse what no folder current/ can hold, before anything is made or copied.

    Raises:
        MountPointNotEmpty: names the file, and what to do.
    """
    reserved = os.fsdecode(METADATA_NAME)
    for path in (mount_point / reserved, mount_point / CURRENT / reserved):
        if os.path.lexists(path):
            raise MountPointNotEmpty(
                f"{path} cannot be brought into current/, where that name is kept for the "
                "documents of snapshots: rename it or move it away first"
            )


class CoveredFiles:
    """A hold on the folder under a mount, taken before the mount hides it.

    Args:
        mount_point: not mounted when the `with` block begins, mounted when bring_in() is called.

    Raises:
        MountPointNotEmpty: see `refuse_reserved`.
    """

    def __init__(self, mount_point: Path) -> None:
        self._mount_point = mount_point
        self._target = mount_point / CURRENT
        self._fd = -1
        self._moves: list[tuple[Path, Path]] = []
        self._renamed: list[str] = []

    def __enter__(self) -> Self:
        refuse_reserved(self._mount_point)
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

    def size(self) -> int:
        """Return how many bytes the files have, as far as this user may look."""
        found = 0
        for _, _, names, folder in os.fwalk(".", dir_fd=self._fd):
            for name in names:
                with suppress(OSError):  # what is wrong with it is told when it is copied
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    found += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return found

    def bring_in(self) -> str:
        """Move every file into current/.

        Returns:
            A line for the user about files that got another name; empty where there is none.

        Raises:
            StatefsError: it failed; the files are still under the mount point, and current/ is as
                it was, but for the case that the message tells of.
        """
        source = Path(f"/proc/self/fd/{self._fd}")
        names = os.listdir(source)
        if not names:
            return ""
        try:
            self._copy_and_place(source)
        except OSError as error:
            raise _failed(f"{error.strerror}") from error
        for name in names:
            self._remove(source, name)
        log.info("brought in what lay under the mount: %s", ", ".join(sorted(names)))
        return self._renamed_text()

    def _copy_and_place(self, source: Path) -> None:
        root = os.open(self._target, FOLDER_FLAGS)
        try:
            with staging_folder(self._target, root) as staging:
                os.setxattr(staging, DURABILITY, b"close")  # whatever the mount's mode is
                # /proc/self has the files of another thread (mounts/outside.py)
                new = Path(os.readlink(f"/proc/thread-self/fd/{staging}"), os.fsdecode(NEW))
                self._copy(f"{source}/.", new)
                try:
                    self._place_all(new)
                except BaseException:
                    while self._moves:
                        old, now = self._moves.pop()
                        move(None, now, None, old)
                    raise
            os.fsync(root)
        finally:
            os.close(root)

    def _place_all(self, new: Path) -> None:
        names = os.listdir(new)
        if CURRENT in names and _is_folder(new / CURRENT):
            names.remove(CURRENT)
            self._place(new / CURRENT, self._target, os.listdir(new / CURRENT))
        self._place(new, self._target, names)

    def _place(self, source: Path, target: Path, names: list[str]) -> None:
        """Move `names` of the folder `source` into the folder `target`, replacing nothing."""
        for name in sorted(names):
            old, new = source / name, target / name
            if os.path.lexists(new):
                if _is_folder(old) and _is_folder(new):
                    self._place(old, new, os.listdir(old))
                    continue
                if _are_equal_files(old, new):
                    continue  # from an earlier attempt that was interrupted
                new = next(path for path in _other_names(new) if not os.path.lexists(path))
                self._note_renamed(target / name, new)
            move(None, old, None, new)
            self._moves.append((old, new))

    def _note_renamed(self, wanted: Path, new: Path) -> None:
        log.info("%s is there already: what lay under the mount is now %s", wanted, new)
        self._renamed.append(os.fsencode(typed(new)).decode(errors="backslashreplace"))

    def _renamed_text(self) -> str:
        if not self._renamed:
            return ""
        left = len(self._renamed) - RENAMED_NAMED_MAX
        more = f" and {left} more, see the log" if left > 0 else ""
        named = ", ".join(self._renamed[:RENAMED_NAMED_MAX])
        return f"brought in under another name, as theirs was taken: {named}{more}"

    def _copy(self, source: str, target: Path) -> None:
        # cp carries over what a file has besides its bytes: owner, times, links, xattrs, holes.
        done = subprocess.run(
            ["cp", "--archive", "--", source, str(target)],
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[self._fd],
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.decode(errors="backslashreplace").strip().splitlines()
            last = said[-1] if said else "cp failed"
            for prefix in (f"{source}/", f"{target}/./", f"{target}/"):
                last = last.replace(prefix, f"{self._mount_point}/")
            raise _failed(last.removeprefix("cp: "))

    def _remove(self, source: Path, name: str) -> None:
        path = source / name
        try:
            if _is_folder(path):
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise StatefsError(
                f"what lay under the mount point is in current/ now, but {self._mount_point / name}"
                f" cannot be removed from under it ({error.strerror}): remove it, and mount again"
            ) from error


def _failed(why: str) -> StatefsError:
    return StatefsError(
        f"the files under the mount point could not be brought in: {why}; they are still there, "
        "and nothing of them is in current/: put that right, or move them away, and mount again"
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
