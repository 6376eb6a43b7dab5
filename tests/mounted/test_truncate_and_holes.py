from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
SECTOR_BYTES = 512
"""The unit of st_blocks, whatever the filesystem's own block is. Source: stat(2)."""


@pytest.mark.parametrize("size", [100, 100_000])
def test_truncate_cuts_and_the_cut_bytes_never_come_back(place: Path, size: int) -> None:
    """A file cut short and made long again reads zeros where the old bytes were."""
    (place / "f").write_bytes(b"x" * size)
    os.truncate(place / "f", 10)
    assert (place / "f").read_bytes() == b"x" * 10
    os.truncate(place / "f", size)
    assert (place / "f").read_bytes() == b"x" * 10 + bytes(size - 10)


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_write_after_a_cut_does_not_uncover_old_bytes(place: Path, size: int) -> None:
    """Zeros, not old bytes, lie between the cut and a later write behind it."""
    (place / "f").write_bytes(b"x" * size)
    with open(place / "f", "r+b") as file:
        file.truncate(10)
        file.seek(size)
        file.write(b"end")
    assert (place / "f").read_bytes() == b"x" * 10 + bytes(size - 10) + b"end"


def test_truncate_by_descriptor_and_by_name_agree(place: Path) -> None:
    """Ftruncate shows in stat and through other descriptors at once."""
    (place / "f").write_bytes(b"0123456789")
    writer = os.open(place / "f", os.O_RDWR)
    reader = os.open(place / "f", os.O_RDONLY)
    assert os.read(reader, 20) == b"0123456789"
    os.ftruncate(writer, 4)
    assert os.stat(place / "f").st_size == os.fstat(reader).st_size == 4
    assert os.pread(reader, 20, 0) == b"0123"
    os.truncate(place / "f", 6)
    assert os.pread(reader, 20, 0) == b"0123\0\0"
    os.close(writer)
    os.close(reader)


def test_truncate_moves_mtime_and_ctime(place: Path) -> None:
    """A change of length is a change of content."""
    (place / "f").write_bytes(b"0123456789")
    os.utime(place / "f", ns=(7, 7))
    before = os.stat(place / "f")
    os.truncate(place / "f", 3)
    after = os.stat(place / "f")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_truncate_refuses_what_is_no_file(place: Path) -> None:
    """A directory is EISDIR, a missing name ENOENT, a negative length EINVAL."""
    (place / "folder").mkdir()
    (place / "f").touch()
    for name, length, code in (
        ("folder", 0, errno.EISDIR),
        ("missing", 0, errno.ENOENT),
        ("f", -1, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            os.truncate(place / name, length)
        assert caught.value.errno == code


def test_a_sparse_file_reads_zeros_and_takes_little_space(place: Path) -> None:
    """Ten bytes at the end of 5 GiB take kilobytes on disk, and the hole reads as zeros."""
    with open(place / "f", "wb") as file:
        file.seek(5 * GIB)
        file.write(b"0123456789")
    status = os.stat(place / "f")
    assert status.st_size == 5 * GIB + 10
    assert status.st_blocks * SECTOR_BYTES <= MIB
    with open(place / "f", "rb") as file:
        assert file.read(MIB) == bytes(MIB)
        file.seek(3 * GIB - 5)
        assert file.read(10) == bytes(10)
        file.seek(5 * GIB - 3)
        assert file.read() == bytes(3) + b"0123456789"


def test_blocks_grow_with_what_is_written(place: Path) -> None:
    """st_blocks of a dense file is about its size, and 0 for an empty one."""
    (place / "empty").touch()
    (place / "dense").write_bytes(os.urandom(MIB))
    with open(place / "dense", "rb") as file:
        os.fsync(file.fileno())
    assert os.stat(place / "empty").st_blocks == 0
    assert MIB <= os.stat(place / "dense").st_blocks * SECTOR_BYTES <= MIB + 128 * KIB


def test_blocks_shrink_when_a_file_is_cut(place: Path) -> None:
    """A file truncated to nothing keeps no blocks."""
    (place / "f").write_bytes(os.urandom(MIB))
    os.truncate(place / "f", 0)
    assert os.stat(place / "f").st_blocks == 0


def test_holes_between_written_pieces_stay_zero(place: Path) -> None:
    """Every second 8 KiB is written; the others read as zeros, in one read across all."""
    piece = 8 * KIB
    with open(place / "f", "wb", buffering=0) as file:
        for number in range(0, 32, 2):
            file.seek(number * piece)
            file.write(bytes([number + 1]) * piece)
    wanted = b"".join(bytes([n + 1 if n % 2 == 0 else 0]) * piece for n in range(31))
    assert (place / "f").read_bytes() == wanted


def test_a_file_may_be_extended_without_writing(place: Path) -> None:
    """Ftruncate upwards of an empty file gives zeros; a write into them keeps the rest zero."""
    with open(place / "f", "w+b", buffering=0) as file:
        file.truncate(MIB)
        file.seek(500_000)
        file.write(b"middle")
        file.seek(0)
        assert file.read() == bytes(500_000) + b"middle" + bytes(MIB - 500_006)
