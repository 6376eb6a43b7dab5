from __future__ import annotations

import errno
import mmap
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness.processes import NOBODY, Person, run_as
from tests.harness.system_calls import errno_of

BLOCK_BYTES = 4096
"""The alignment O_DIRECT asks for on every disk this runs on."""


def test_create_makes_an_empty_file_with_the_mode_less_the_umask(place: Path) -> None:
    """O_CREAT applies the umask to the mode it was given."""
    old = os.umask(0o027)
    try:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    status = os.stat(place / "f")
    assert (status.st_mode & 0o7777, status.st_size, status.st_nlink) == (0o640, 0, 1)


def test_open_of_a_missing_file_fails(place: Path) -> None:
    """Without O_CREAT a missing name is ENOENT, also when it was asked for just before."""
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            os.open(place / "missing", os.O_RDONLY)
    (place / "missing").write_bytes(b"now")
    assert (place / "missing").read_bytes() == b"now"


def test_exclusive_create_refuses_an_existing_name(place: Path) -> None:
    """O_EXCL is EEXIST for a file, a directory and a dangling symbolic link alike."""
    (place / "file").touch()
    (place / "folder").mkdir()
    (place / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(FileExistsError):
            os.open(place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(place / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def test_truncating_open_empties_the_file(place: Path) -> None:
    """O_TRUNC leaves no byte, keeps the inode and the mode, and moves mtime."""
    (place / "f").write_bytes(b"x" * 100_000)
    (place / "f").chmod(0o604)
    os.utime(place / "f", ns=(1, 1))
    before = os.stat(place / "f")
    os.close(os.open(place / "f", os.O_WRONLY | os.O_TRUNC))
    after = os.stat(place / "f")
    assert (after.st_size, after.st_blocks) == (0, 0)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert after.st_mtime_ns > before.st_mtime_ns


def test_truncating_open_shows_in_a_descriptor_opened_before(place: Path) -> None:
    """A reader with an open descriptor sees the file shrink, not bytes from its cache."""
    (place / "f").write_bytes(b"old content")
    with open(place / "f", "rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        os.close(os.open(place / "f", os.O_WRONLY | os.O_TRUNC))
        assert reader.read() == b""
        (place / "f").write_bytes(b"new words")
        assert reader.read() == b" words"


def test_append_always_writes_at_the_end(place: Path) -> None:
    """O_APPEND finds the end anew at each write, whoever moved it and wherever lseek went."""
    first = os.open(place / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    second = os.open(place / "log", os.O_WRONLY | os.O_APPEND)
    os.write(first, b"one ")
    os.write(second, b"two ")
    os.lseek(first, 0, os.SEEK_SET)
    os.write(first, b"three")
    os.close(first)
    os.close(second)
    assert (place / "log").read_bytes() == b"one two three"


def test_appends_of_several_processes_do_not_overwrite_each_other(place: Path) -> None:
    """Every record of 4 concurrent appenders is in the file once and whole."""
    path = place / "log"
    path.touch()
    writers, records = 4, 200
    pids = [_start_appender(path, writer, records) for writer in range(writers)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * writers
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{w}:{n:05}" for w in range(writers) for n in range(records))


def _start_appender(path: Path, writer: int, records: int) -> int:
    code = (
        "import os,sys\n"
        "fd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND)\n"
        "for n in range(int(sys.argv[3])): os.write(fd,f'{sys.argv[2]}:{n:05}\\n'.encode())\n"
    )
    arguments = [sys.executable, "-S", "-c", code, str(path), str(writer), str(records)]
    return os.posix_spawn(sys.executable, arguments, os.environ)


@pytest.mark.parametrize("extra", [0, os.O_SYNC, os.O_DSYNC], ids=["plain", "sync", "dsync"])
def test_direct_writes_are_read_back_by_buffered_reads(place: Path, extra: int) -> None:
    """O_DIRECT transfers whole blocks past the page cache, and both views agree."""
    block = mmap.mmap(-1, 2 * BLOCK_BYTES)
    block.write(b"d" * BLOCK_BYTES + b"e" * BLOCK_BYTES)
    (place / "f").write_bytes(b"-" * 3 * BLOCK_BYTES)
    (place / "f").read_bytes()
    descriptor = os.open(place / "f", os.O_RDWR | os.O_DIRECT | extra)
    try:
        assert os.pwritev(descriptor, [block], BLOCK_BYTES) == 2 * BLOCK_BYTES
        got = mmap.mmap(-1, 2 * BLOCK_BYTES)
        assert os.preadv(descriptor, [got], BLOCK_BYTES) == 2 * BLOCK_BYTES
        assert got[:] == block[:]
    finally:
        os.close(descriptor)
    wanted = b"-" * BLOCK_BYTES + b"d" * BLOCK_BYTES + b"e" * BLOCK_BYTES
    assert (place / "f").read_bytes() == wanted


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["sync", "dsync"])
def test_synchronous_writes_keep_every_byte(place: Path, flag: int) -> None:
    """O_SYNC and O_DSYNC change when bytes are durable, never which bytes there are."""
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR | flag, 0o644)
    for number in range(20):
        os.pwrite(descriptor, b"%04d" % number, number * 4)
    assert os.pread(descriptor, 80, 0) == b"".join(b"%04d" % n for n in range(20))
    os.close(descriptor)


def test_a_file_may_be_created_without_any_permission(place: Path) -> None:
    """The descriptor that created a file of mode 0 still writes and reads."""
    descriptor = os.open(place / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0)
    os.write(descriptor, b"text")
    assert os.pread(descriptor, 10, 0) == b"text"
    os.close(descriptor)
    assert os.stat(place / "f").st_mode & 0o7777 == 0


def test_open_follows_the_kind_of_what_it_finds(place: Path) -> None:
    """O_DIRECTORY, O_NOFOLLOW and writing to a directory fail with the code POSIX names."""
    (place / "file").touch()
    (place / "folder").mkdir()
    (place / "link").symlink_to("file")
    (place / "loop").symlink_to("loop")
    cases = [
        ("file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ("folder", os.O_WRONLY, errno.EISDIR),
        ("link", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("loop", os.O_RDONLY, errno.ELOOP),
        ("file/below", os.O_RDONLY, errno.ENOTDIR),
        ("missing/below", os.O_CREAT | os.O_WRONLY, errno.ENOENT),
    ]
    for name, flags, code in cases:
        with pytest.raises(OSError) as caught:
            os.open(place / name, flags)
        assert caught.value.errno == code, name


def test_opening_a_dangling_link_for_creation_makes_its_target(place: Path) -> None:
    """O_CREAT without O_EXCL follows a symbolic link and creates what it names."""
    (place / "link").symlink_to("target")
    os.close(os.open(place / "link", os.O_CREAT | os.O_WRONLY, 0o600))
    assert os.stat(place / "target").st_mode & 0o7777 == 0o600


def test_path_descriptors_name_without_opening(place: Path) -> None:
    """O_PATH works on a file nobody may read; reading through it is EBADF."""
    (place / "f").write_bytes(b"x")
    (place / "f").chmod(0)
    descriptor = os.open(place / "f", os.O_PATH)
    try:
        assert os.fstat(descriptor).st_size == 1
        with pytest.raises(OSError) as caught:
            os.read(descriptor, 1)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(descriptor)


def test_nameless_files_work_or_are_refused_in_the_known_way(place: Path) -> None:
    """O_TMPFILE is EOPNOTSUPP where it is missing, and tempfile falls back by itself."""
    nameless = errno_of(lambda: os.close(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)))
    assert nameless in (0, errno.EOPNOTSUPP)
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"scratch")
        file.seek(0)
        assert file.read() == b"scratch"
    assert os.listdir(place) == []


@pytest.mark.usefixtures("as_root")
def test_the_kernel_checks_permissions_at_open(place: Path) -> None:
    """Another user is refused what the mode denies and given what it allows."""
    (place / "private").write_bytes(b"s")
    (place / "private").chmod(0o600)
    (place / "public").write_bytes(b"p")
    (place / "public").chmod(0o604)
    nobody = Person(NOBODY, NOBODY)
    assert run_as(nobody, (place / "public").read_bytes) == b"p"
    with pytest.raises(PermissionError):
        run_as(nobody, (place / "private").read_bytes)
    with pytest.raises(PermissionError):
        run_as(nobody, lambda: os.open(place / "public", os.O_WRONLY))
    with pytest.raises(PermissionError):
        run_as(nobody, lambda: os.open(place / "new", os.O_CREAT | os.O_WRONLY))
