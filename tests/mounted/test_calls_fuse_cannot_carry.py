from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from functools import partial
from pathlib import Path

from tests.harness.system_calls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    errno_of,
    fallocate,
)

KIB = 1024
FS_IOC_GETFLAGS = 0x80086601
"""What lsattr asks. Source: linux/fs.h."""
FICLONE = 0x40049409
"""What cp --reflink asks. Source: ioctl_ficlone(2)."""


def test_fallocate_works_or_is_unsupported(place: Path) -> None:
    """EOPNOTSUPP is the one answer upon which programs and glibc fall back to writing zeros."""
    with open(place / "f", "w+b") as file:
        code = errno_of(lambda: fallocate(file.fileno(), 0, 0, 64 * KIB))
        assert code in (0, errno.EOPNOTSUPP)
        assert os.fstat(file.fileno()).st_size == (0 if code else 64 * KIB)


def test_posix_fallocate_reserves_either_way(place: Path) -> None:
    """The file is long enough afterwards, reads zeros, and keeps what it had."""
    (place / "f").write_bytes(b"content")
    with open(place / "f", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * KIB)
    assert (place / "f").read_bytes() == b"content" + bytes(64 * KIB - 7)


def test_punching_a_hole_works_or_changes_nothing(place: Path) -> None:
    """A refused hole leaves every byte."""
    content = os.urandom(64 * KIB)
    (place / "f").write_bytes(content)
    flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    with open(place / "f", "r+b") as file:
        code = errno_of(lambda: fallocate(file.fileno(), flags, 16 * KIB, 16 * KIB))
    assert code in (0, errno.EOPNOTSUPP)
    wanted = content if code else content[: 16 * KIB] + bytes(16 * KIB) + content[32 * KIB :]
    assert (place / "f").read_bytes() == wanted


def test_copy_file_range_copies(place: Path) -> None:
    """The kernel copies by itself where the filesystem has no way of its own."""
    content = os.urandom(300 * KIB)
    (place / "a").write_bytes(content)
    with open(place / "a", "rb") as source, open(place / "b", "wb") as target:
        done = 0
        while done < len(content):
            step = os.copy_file_range(source.fileno(), target.fileno(), len(content) - done)
            assert step > 0
            done += step
    assert (place / "b").read_bytes() == content


def test_sendfile_copies(place: Path) -> None:
    """Sendfile between two files of the tree moves every byte."""
    content = os.urandom(300 * KIB)
    (place / "a").write_bytes(content)
    with open(place / "a", "rb") as source, open(place / "b", "wb") as target:
        done = 0
        while done < len(content):
            done += os.sendfile(target.fileno(), source.fileno(), done, len(content) - done)
    assert (place / "b").read_bytes() == content


def test_seeking_data_and_holes_is_never_wrong(place: Path) -> None:
    """A filesystem that knows no holes calls everything data, with one hole at the end."""
    with open(place / "f", "w+b") as file:
        file.truncate(1024 * KIB)
        file.seek(512 * KIB)
        file.write(b"d" * 4 * KIB)
        file.flush()
        descriptor = file.fileno()
        assert os.lseek(descriptor, 0, os.SEEK_DATA) <= 512 * KIB
        assert os.lseek(descriptor, 512 * KIB, os.SEEK_DATA) == 512 * KIB
        assert os.lseek(descriptor, 512 * KIB, os.SEEK_HOLE) in (516 * KIB, 1024 * KIB)
        past_the_end = 1024 * KIB
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            code = errno_of(partial(os.lseek, descriptor, past_the_end, whence))
            assert code == errno.ENXIO


def test_unknown_ioctls_are_refused_as_programs_expect(place: Path) -> None:
    """Lsattr and cp --reflink ask by ioctl and take these codes for `not here`."""
    (place / "a").write_bytes(b"x")
    with open(place / "a", "rb") as source, open(place / "b", "wb") as target:
        flags = errno_of(lambda: fcntl.ioctl(source.fileno(), FS_IOC_GETFLAGS, bytearray(8)))
        clone = errno_of(lambda: fcntl.ioctl(target.fileno(), FICLONE, source.fileno()))
        terminal = errno_of(lambda: os.tcgetpgrp(source.fileno()))
    assert flags in (0, errno.ENOTTY, errno.EOPNOTSUPP)
    assert clone in (0, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)
    assert terminal == errno.ENOTTY


def test_cp_copies_with_every_choice(place: Path) -> None:
    """Cp finds its way with reflinks and sparse files, whatever the filesystem offers."""
    with open(place / "a", "wb") as file:
        file.seek(2048 * KIB)
        file.write(b"end")
    for number, option in enumerate(("--reflink=auto", "--sparse=always", "--sparse=never")):
        copy = place / f"copy{number}"
        subprocess.run(["cp", option, str(place / "a"), str(copy)], check=True, timeout=30)
        assert copy.read_bytes() == bytes(2048 * KIB) + b"end"
