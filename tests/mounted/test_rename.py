from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.harness.processes import Child
from tests.harness.system_calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    errno_of,
    renameat2,
)


def failure(old: Path, new: Path, flags: int = 0) -> int:
    """Return the errno with which a rename fails."""
    with pytest.raises(OSError) as caught:
        renameat2(old, new, flags)
    assert caught.value.errno is not None
    return caught.value.errno


def test_rename_moves_the_same_inode(place: Path) -> None:
    """The new name is the old inode with its bytes; the old name is gone at once."""
    (place / "a").write_bytes(b"bytes")
    (place / "d").mkdir()
    ino = os.stat(place / "a").st_ino
    os.rename(place / "a", place / "d/b")
    assert os.stat(place / "d/b").st_ino == ino
    assert (place / "d/b").read_bytes() == b"bytes"
    assert not (place / "a").exists()


def test_rename_over_a_file_replaces_it(place: Path) -> None:
    """The replaced file loses its name; whoever had it open keeps its old bytes."""
    (place / "old").write_bytes(b"old")
    (place / "new").write_bytes(b"new")
    with open(place / "old", "rb") as reader:
        os.rename(place / "new", place / "old")
        assert reader.read() == b"old"
        assert os.fstat(reader.fileno()).st_nlink == 0
    assert (place / "old").read_bytes() == b"new"
    assert os.listdir(place) == ["old"]


def test_readers_see_the_old_or_the_new_file_and_nothing_else(place: Path) -> None:
    """While one process replaces a file again and again, another always finds a whole one."""
    contents = (b"a" * 20_000, b"b" * 300)
    (place / "f").write_bytes(contents[0])

    def replace() -> None:
        for number in range(300):
            (place / "tmp").write_bytes(contents[number % 2])
            os.rename(place / "tmp", place / "f")

    with Child({"replace": replace}) as child:
        child.ask("replace")
        seen = {(place / "f").read_bytes() for _ in range(300)}
        child.answer()
    assert seen <= set(contents)


def test_a_directory_replaces_only_an_empty_directory(place: Path) -> None:
    """A full target is ENOTEMPTY, an empty one goes; kinds must match."""
    for name in ("source", "empty", "full"):
        (place / name).mkdir()
    (place / "full/x").touch()
    (place / "file").touch()
    assert failure(place / "source", place / "full") in (errno.ENOTEMPTY, errno.EEXIST)
    assert failure(place / "source", place / "file") == errno.ENOTDIR
    assert failure(place / "file", place / "empty") == errno.EISDIR
    os.rename(place / "source", place / "empty")
    assert sorted(os.listdir(place)) == ["empty", "file", "full"]


def test_a_moved_directory_changes_its_parent(place: Path) -> None:
    """Link counts of both parents follow the move, and `..` leads to the new parent."""
    (place / "a/moved").mkdir(parents=True)
    (place / "b").mkdir()
    os.rename(place / "a/moved", place / "b/moved")
    assert os.stat(place / "a").st_nlink == 2
    assert os.stat(place / "b").st_nlink == 3
    assert os.stat(place / "b/moved/..").st_ino == os.stat(place / "b").st_ino


def test_a_directory_cannot_move_into_itself(place: Path) -> None:
    """Source below target is ENOTEMPTY, target below source is EINVAL."""
    (place / "a/b").mkdir(parents=True)
    assert failure(place / "a", place / "a/b/c") == errno.EINVAL
    assert failure(place / "a", place / "a/b") == errno.EINVAL
    assert failure(place / "a/b", place / "a") in (errno.ENOTEMPTY, errno.EEXIST)


def test_rename_onto_itself_changes_nothing(place: Path) -> None:
    """The same name, or another hard link of the same file, succeeds and removes nothing."""
    (place / "a").write_bytes(b"x")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "a")
    os.rename(place / "a", place / "b")
    assert sorted(os.listdir(place)) == ["a", "b"]
    assert os.stat(place / "a").st_nlink == 2


def test_rename_of_names_that_are_not_there(place: Path) -> None:
    """A missing source, a missing parent and a parent that is a file fail as POSIX says."""
    (place / "f").touch()
    assert failure(place / "missing", place / "x") == errno.ENOENT
    assert failure(place / "f", place / "missing/x") == errno.ENOENT
    assert failure(place / "f", place / "f/x") == errno.ENOTDIR


def test_no_replace_refuses_an_existing_target(place: Path) -> None:
    """RENAME_NOREPLACE is EEXIST over anything and an ordinary rename otherwise."""
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    assert failure(place / "a", place / "b", RENAME_NOREPLACE) == errno.EEXIST
    assert ((place / "a").read_bytes(), (place / "b").read_bytes()) == (b"a", b"b")
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert sorted(os.listdir(place)) == ["b", "c"]


def test_exchange_swaps_two_files(place: Path) -> None:
    """RENAME_EXCHANGE swaps inodes in one step, also between directories."""
    (place / "d").mkdir()
    (place / "a").write_bytes(b"a")
    (place / "d/b").write_bytes(b"b")
    inodes = os.stat(place / "a").st_ino, os.stat(place / "d/b").st_ino
    renameat2(place / "a", place / "d/b", RENAME_EXCHANGE)
    assert (os.stat(place / "d/b").st_ino, os.stat(place / "a").st_ino) == inodes
    assert ((place / "a").read_bytes(), (place / "d/b").read_bytes()) == (b"b", b"a")


def test_exchange_of_a_file_and_a_directory(place: Path) -> None:
    """Kinds may differ in an exchange; parents' link counts follow."""
    (place / "d1/sub").mkdir(parents=True)
    (place / "d1/sub/inside").touch()
    (place / "d2").mkdir()
    (place / "d2/file").write_bytes(b"f")
    renameat2(place / "d1/sub", place / "d2/file", RENAME_EXCHANGE)
    assert (place / "d1/sub").read_bytes() == b"f"
    assert (place / "d2/file/inside").exists()
    assert (os.stat(place / "d1").st_nlink, os.stat(place / "d2").st_nlink) == (2, 3)


def test_exchange_refuses_what_cannot_be_swapped(place: Path) -> None:
    """A missing side is ENOENT, a directory with its own child EINVAL, both flags EINVAL."""
    (place / "a/b").mkdir(parents=True)
    (place / "f").touch()
    assert failure(place / "f", place / "missing", RENAME_EXCHANGE) == errno.ENOENT
    assert failure(place / "a", place / "a/b", RENAME_EXCHANGE) == errno.EINVAL
    assert failure(place / "a/b", place / "a", RENAME_EXCHANGE) in (errno.EINVAL, errno.ENOTEMPTY)
    both = RENAME_NOREPLACE | RENAME_EXCHANGE
    assert failure(place / "f", place / "a", both) == errno.EINVAL


def test_whiteout_works_or_is_refused_in_the_known_way(place: Path) -> None:
    """RENAME_WHITEOUT, which only overlay filesystems use, is EINVAL where it is missing."""
    (place / "f").write_bytes(b"x")
    code = errno_of(lambda: renameat2(place / "f", place / "g", RENAME_WHITEOUT))
    assert code in (0, errno.EINVAL, errno.EPERM)
    assert (place / ("f" if code else "g")).read_bytes() == b"x"


def test_rename_moves_the_times_of_both_directories(place: Path) -> None:
    """Mtime and ctime of the parents move; the file's own mtime does not."""
    for name in ("a", "b"):
        (place / name).mkdir()
    (place / "a/f").write_bytes(b"x")
    os.utime(place / "a/f", ns=(3, 3))
    for name in ("a", "b"):
        os.utime(place / name, ns=(3, 3))
    os.rename(place / "a/f", place / "b/f")
    assert os.stat(place / "a").st_mtime_ns > 3
    assert os.stat(place / "b").st_mtime_ns > 3
    assert os.stat(place / "b/f").st_mtime_ns == 3


def test_an_open_file_survives_the_rename_of_its_parents(place: Path) -> None:
    """A descriptor stays valid while the directories above it are moved."""
    (place / "a/b").mkdir(parents=True)
    with open(place / "a/b/f", "w+b", buffering=0) as file:
        file.write(b"before ")
        os.rename(place / "a", place / "z")
        file.write(b"after")
    assert (place / "z/b/f").read_bytes() == b"before after"
