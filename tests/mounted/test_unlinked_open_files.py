from __future__ import annotations

import os
from pathlib import Path

import pytest

SIZES = pytest.mark.parametrize("size", [10, 200_000], ids=["small", "large"])


@SIZES
def test_an_unlinked_file_lives_while_it_is_open(place: Path, size: int) -> None:
    """Its bytes are read, written and cut through the descriptor; the name is free."""
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(descriptor, b"x" * size)
    os.unlink(place / "f")
    assert os.listdir(place) == []
    status = os.fstat(descriptor)
    assert (status.st_nlink, status.st_size) == (0, size)
    assert os.pread(descriptor, size, 0) == b"x" * size
    os.pwrite(descriptor, b"more", size)
    assert os.fstat(descriptor).st_size == size + 4
    os.ftruncate(descriptor, 3)
    assert os.pread(descriptor, 10, 0) == b"xxx"
    os.close(descriptor)


def test_a_new_file_of_the_same_name_is_another_file(place: Path) -> None:
    """The old descriptor and the new name do not see each other."""
    old = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(old, b"old")
    os.unlink(place / "f")
    (place / "f").write_bytes(b"new!")
    assert os.fstat(old).st_ino != os.stat(place / "f").st_ino
    os.pwrite(old, b"OLD", 0)
    assert (place / "f").read_bytes() == b"new!"
    assert os.pread(old, 10, 0) == b"OLD"
    os.close(old)


def test_attributes_of_an_unlinked_file_can_be_changed(place: Path) -> None:
    """chmod, times and extended attributes work through the descriptor."""
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.unlink(place / "f")
    os.fchmod(descriptor, 0o600)
    os.utime(descriptor, ns=(1, 2))
    os.setxattr(descriptor, "user.a", b"x")
    os.fsync(descriptor)
    status = os.fstat(descriptor)
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o600, 2)
    assert os.getxattr(descriptor, "user.a") == b"x"
    os.close(descriptor)


def test_an_unlinked_file_with_another_name_stays(place: Path) -> None:
    """Only the last name's removal ends a file."""
    (place / "a").write_bytes(b"x")
    os.link(place / "a", place / "b")
    with open(place / "a", "rb") as file:
        os.unlink(place / "a")
        assert os.fstat(file.fileno()).st_nlink == 1
    assert (place / "b").read_bytes() == b"x"


def test_several_descriptors_keep_an_unlinked_file(place: Path) -> None:
    """The file lives until the last one is closed, also one opened through /proc."""
    first = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(first, b"shared")
    second = os.open(place / "f", os.O_RDONLY)
    os.unlink(place / "f")
    third = os.open(f"/proc/self/fd/{second}", os.O_RDONLY)
    os.close(first)
    os.close(second)
    assert os.read(third, 10) == b"shared"
    assert os.fstat(third).st_nlink == 0
    os.close(third)


def test_a_removed_working_directory_is_empty_but_usable(place: Path) -> None:
    """A directory that is open while it is removed lists nothing and takes no new names."""
    (place / "d").mkdir()
    descriptor = os.open(place / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(place / "d")
    assert os.listdir(descriptor) == []
    assert os.fstat(descriptor).st_nlink == 0
    with pytest.raises(FileNotFoundError):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(descriptor)


def test_a_replaced_file_lives_while_it_is_open(place: Path) -> None:
    """Rename over an open file leaves its reader the old bytes, written ones too."""
    (place / "f").write_bytes(b"old" * 10_000)
    with open(place / "f", "r+b", buffering=0) as file:
        (place / "g").write_bytes(b"new")
        os.rename(place / "g", place / "f")
        file.write(b"OLD")
        file.seek(0)
        assert file.read() == b"OLD" + b"old" * 9_999
    assert (place / "f").read_bytes() == b"new"
