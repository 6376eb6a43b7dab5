"""The programs that use a mount while its daemon is killed: writers, and one that takes snapshots.

Each runs in a process of its own until the mount fails, and journals what it does.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.crash.journal import JournalWriter
from tests.harness.trees import DOCUMENT, capture, tree_digest
from tests.model.reference import ReferenceTree
from tests.model.targets import FolderTarget

GONE: Final = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV, errno.EBADF}
"""How system calls fail when the daemon was killed."""
NAMES: Final = ("a", "b", "c", "d", "e", "f", "g", "\xff", "n" * 200)
SIZES: Final = (1, 200, 3_000, 4_096, 5_000, 20_000, 66_000)
OFFSETS: Final = (0, 0, 10, 4_000, 8_192, 70_000)
UMASK: Final = 0o022
SNAPSHOTS_MIN: Final = 2
SNAPSHOTS_MAX: Final = 4


def data_of(seed: int, size: int) -> bytes:
    """Return the bytes that a journal names by their seed: every place differs from the others."""
    return random.Random(seed).randbytes(size)


def new_reference(folder: Path) -> ReferenceTree:
    """Return the reference of a folder in which nothing was done yet."""
    status = os.stat(folder)
    return ReferenceTree(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, UMASK)


def apply(side: Any, name: str, arguments: Sequence[Any]) -> int:
    """Do one journalled operation on a target or a reference; return its errno, 0 for success."""
    values: list[Any] = [
        value.encode("latin-1") if isinstance(value, str) else value for value in arguments
    ]
    if name in ("write", "append"):
        values[-2:] = [data_of(values[-2], values[-1])]
    elif name == "setxattr":
        values[1:] = [values[1].decode(), data_of(values[2], values[3])]
    try:
        getattr(side, name)(*values)
    except OSError as error:
        return error.errno or 0
    return 0


class Writer:
    """Changes a folder at random until the mount fails.

    Args:
        folder: an empty folder of the mount.
        journal: where to note what is done.
        seed: decides everything.
    """

    def __init__(self, folder: Path, journal: JournalWriter, seed: int) -> None:
        self._folder = folder
        # From within, so that paths do not lead elsewhere when the mount is taken away.
        self._target = FolderTarget(Path())
        self._reference = new_reference(folder)
        self._journal = journal
        self._rng = random.Random(seed)

    def run(self) -> None:
        """Go on until an operation fails in another way than the reference says."""
        os.umask(UMASK)
        os.chdir(self._folder)
        choices: tuple[Callable[[], bool], ...] = (
            *[self._save_atomically] * 4,
            *[self._write] * 4,
            *[self._append] * 4,
            *[self._create] * 3,
            *[self._rename] * 3,
            *[self._truncate] * 2,
            self._mkdir,
            self._rmdir,
            self._unlink,
            self._link,
            self._change_attributes,
        )
        while self._rng.choice(choices)():
            pass

    def _do(self, name: str, *arguments: Any) -> bool:
        """Do one operation; return whether the mount still works."""
        self._journal.intend(name, *arguments)
        got = apply(self._target, name, arguments)
        wanted = apply(self._reference, name, arguments)
        if got != wanted and got in GONE:
            return False
        self._journal.done(got)
        assert got == wanted, f"{name}{arguments}: expected {wanted}, got {got}"
        return True

    def _path(self) -> str:
        folder = self._rng.choice(self._reference.directories()).decode("latin-1")
        name = self._rng.choice(NAMES)
        return name if folder == "." else f"{folder}/{name}"

    def _data(self) -> tuple[int, int]:
        return self._rng.randrange(1 << 30), self._rng.choice(SIZES)

    def _create(self) -> bool:
        return self._do("create", self._path(), self._rng.choice((0o600, 0o644)))

    def _write(self) -> bool:
        return self._do("write", self._path(), self._rng.choice(OFFSETS), *self._data())

    def _append(self) -> bool:
        path = self._path()
        return all(
            self._do("append", path, *self._data()) for _ in range(self._rng.randrange(1, 6))
        )

    def _truncate(self) -> bool:
        return self._do("truncate", self._path(), self._rng.choice(SIZES))

    def _save_atomically(self) -> bool:
        """Write a new file and rename it over another, without fsync, as many programs do."""
        path = self._path()
        return (
            self._do("create", "tmp", 0o644)
            and self._do("write", "tmp", 0, *self._data())
            and self._do("rename", "tmp", path, 0)
        )

    def _rename(self) -> bool:
        return self._do("rename", self._path(), self._path(), self._rng.choice((0, 0, 1, 2)))

    def _link(self) -> bool:
        return self._do("link", self._path(), self._path())

    def _unlink(self) -> bool:
        return self._do("unlink", self._path())

    def _mkdir(self) -> bool:
        return self._do("mkdir", self._path(), 0o755)

    def _rmdir(self) -> bool:
        return self._do("rmdir", self._path())

    def _change_attributes(self) -> bool:
        path = self._path()
        return (
            self._do("chmod", path, self._rng.choice((0o700, 0o744, 0o755)))
            and self._do(
                "setxattr", path, "user.a", *self._data()[:1], self._rng.choice((0, 9, 900))
            )
            and self._do("utime", path, self._rng.randrange(1 << 60))
        )


class Saver:
    """Takes and deletes snapshots at random until the mount fails.

    Args:
        snapshots: the folder snapshots/ of the mount.
        journal: where to note what is done.
        seed: decides the order.
        existing: labels of the snapshots that are there already.
        prefix: of the labels of new ones.
    """

    def __init__(
        self,
        snapshots: Path,
        journal: JournalWriter,
        seed: int,
        existing: Sequence[str],
        prefix: str,
    ) -> None:
        self._snapshots = snapshots
        self._journal = journal
        self._rng = random.Random(seed)
        self._names = list(existing)
        self._prefix = prefix
        self._count = 0

    def run(self) -> None:
        """Go on until the mount fails."""
        try:
            os.chdir(self._snapshots)
            while True:
                few, many = len(self._names) < SNAPSHOTS_MIN, len(self._names) >= SNAPSHOTS_MAX
                if few or (not many and self._rng.random() < 0.6):
                    self._save()
                else:
                    self._delete()
        except OSError as error:
            if error.errno not in GONE:
                raise

    def _save(self) -> None:
        self._count += 1
        name = f"{self._prefix}{self._count}"
        self._journal.intend("save", name)
        os.mkdir(name)
        self._journal.done()
        self._names.append(name)
        self._journal.intend("digest", name)
        self._journal.done(tree_digest(capture(Path(name), leave_out=DOCUMENT)))

    def _delete(self) -> None:
        name = self._names.pop(self._rng.randrange(len(self._names)))
        self._journal.intend("delete", name)
        os.rmdir(name)
        self._journal.done()
