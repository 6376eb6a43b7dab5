from __future__ import annotations

import errno
import os
import random
import resource
import signal
from pathlib import Path

import pytest

KIB = 1024
MIB = 1024 * KIB


def test_reads_past_the_end_are_short_and_then_empty(place: Path) -> None:
    """A read across the end returns what is there; one beyond it returns nothing."""
    (place / "f").write_bytes(b"0123456789")
    descriptor = os.open(place / "f", os.O_RDONLY)
    assert os.pread(descriptor, 100, 5) == b"56789"
    assert os.pread(descriptor, 100, 10) == b""
    assert os.pread(descriptor, 100, 10**9) == b""
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 16384, 16385, 65537, MIB, 5 * MIB + 3])
def test_every_size_is_read_back(place: Path, size: int) -> None:
    """Sizes around pages, the inline limit and the kernel's largest request keep every byte."""
    content = random.Random(size).randbytes(size)
    (place / "f").write_bytes(content)
    assert (place / "f").read_bytes() == content
    assert os.stat(place / "f").st_size == size


def test_random_overlapping_writes_equal_a_byte_array(place: Path) -> None:
    """Three hundred writes of any size and place leave what they leave in memory."""
    rng = random.Random(20260313)
    expected = bytearray()
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    for _ in range(300):
        start, piece = rng.randrange(200 * KIB), rng.randbytes(rng.choice((1, 10, 4096, 9000)))
        expected.extend(bytes(max(0, start + len(piece) - len(expected))))
        expected[start : start + len(piece)] = piece
        assert os.pwrite(descriptor, piece, start) == len(piece)
    assert os.pread(descriptor, len(expected) + 1, 0) == bytes(expected)
    os.close(descriptor)
    assert (place / "f").read_bytes() == bytes(expected)


def test_a_file_grows_byte_by_byte(place: Path) -> None:
    """Small appends across the inline limit join without a gap."""
    with open(place / "f", "ab", buffering=0) as file:
        for number in range(2500):
            file.write(b"%010d\n" % number)
    assert (place / "f").read_bytes() == b"".join(b"%010d\n" % n for n in range(2500))


def test_gathered_writes_and_scattered_reads_keep_their_order(place: Path) -> None:
    """Writev and readv move several buffers as one stretch of the file."""
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    assert os.writev(descriptor, [b"ab", b"", b"cde", b"f" * 5000]) == 5005
    os.lseek(descriptor, 1, os.SEEK_SET)
    first, second = bytearray(2), bytearray(4)
    assert os.readv(descriptor, [first, second]) == 6
    assert (bytes(first), bytes(second)) == (b"bc", b"deff")
    os.close(descriptor)


def test_two_descriptors_of_a_file_see_each_other(place: Path) -> None:
    """What one writes the other reads at once, and each has its own position."""
    writer = os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o644)
    reader = os.open(place / "f", os.O_RDONLY)
    for number in range(50):
        os.write(writer, b"%03d" % number)
        assert os.read(reader, 10) == b"%03d" % number
        assert os.fstat(reader).st_size == 3 * (number + 1)
    os.close(writer)
    os.close(reader)


def test_a_write_moves_mtime_and_ctime_but_not_atime(place: Path) -> None:
    """Mtime and ctime of a written file are later than before the write."""
    (place / "f").write_bytes(b"a")
    os.utime(place / "f", ns=(5, 5))
    before = os.stat(place / "f")
    with open(place / "f", "r+b") as file:
        file.write(b"b")
    after = os.stat(place / "f")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_atime_ns == before.st_atime_ns


def test_fsync_succeeds_on_files_and_directories(place: Path) -> None:
    """Fsync and fdatasync work on every descriptor a program would use them on."""
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(descriptor, b"x" * 100_000)
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
    assert (place / "f").read_bytes() == b"x" * 100_000


def test_wrong_descriptors_are_refused(place: Path) -> None:
    """Reading a writer, writing a reader and reading a directory fail as POSIX says."""
    writer = os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o644)
    reader = os.open(place / "f", os.O_RDONLY)
    folder = os.open(place, os.O_RDONLY)
    for call, code in (
        (lambda: os.read(writer, 1), errno.EBADF),
        (lambda: os.write(reader, b"x"), errno.EBADF),
        (lambda: os.read(folder, 1), errno.EISDIR),
        (lambda: os.ftruncate(reader, 0), errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == code
    for descriptor in (writer, reader, folder):
        os.close(descriptor)


def test_a_write_beyond_the_file_size_limit_is_refused(place: Path) -> None:
    """RLIMIT_FSIZE cuts a write short and then fails with EFBIG; the file keeps what fitted."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    descriptor = os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old_limit[1]))
        assert os.write(descriptor, b"x" * 12_000) == 10_000
        with pytest.raises(OSError) as caught:
            os.write(descriptor, b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_action)
        os.close(descriptor)
    assert caught.value.errno == errno.EFBIG
    assert os.stat(place / "f").st_size == 10_000
