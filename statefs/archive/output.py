"""Where an exported archive goes: a pipe that the store's process fills, and a file at its end.

The file belongs to whoever asked, with their rights and working folder, so it is written here and
not by the daemon. It is `FILE.part` until it is complete and on stable storage.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, TypeVar

import zstandard

from statefs.durable import is_on_read_only, sync_folder
from statefs.errors import UsageError, typed

T = TypeVar("T")

COMPRESSED: Final = ".zst"
OTHER_COMPRESSIONS: Final = (".gz", ".tgz", ".bz2", ".xz", ".lz4", ".zip")
PART: Final = ".part"
COPY_BYTES: Final = 1 << 20
"""Taken from the pipe at a time: all that it holds."""
LEVEL: Final = 3
"""zstd's own default: faster than most disks."""
GIVE_UP_SECONDS: Final = 2.0
"""A copy that does not end then hangs in a pipe that nobody reads, and ends with the process."""
POLL_MS: Final = 200
"""How often a copy looks whether it was given up, while nothing comes."""


def check_name(path: Path) -> None:
    """Refuse a name of a folder, or that says another format than is written. Raises UsageError."""
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder: name a file in it, such as {path / 'state.tar'}")
    if path.suffix in OTHER_COMPRESSIONS:
        raise UsageError(
            f"{path} would not be what its name says: end it in .tar, or in .tar.zst to compress"
        )


Write = Callable[[bytes], object]
"""Takes the archive, all of what it is given each time."""


def writer_to(file: IO[bytes]) -> Write:
    """Return what writes into a file, past its buffer: a thread that hangs there holds no lock."""
    file.flush()
    try:
        fd = file.fileno()
    except OSError:  # io.UnsupportedOperation: it lies in memory
        return file.write

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def not_made(path: Path, error: OSError) -> Exception:
    """Return what to raise where a file or folder that somebody has named cannot be made."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(error.errno, error.strerror, str(path))
    what = f"{path} cannot be made ({error.strerror})"
    missing = next((each for each in reversed(path.parents) if not each.exists()), None)
    if error.errno == errno.ENOENT and missing is not None:
        way = typed("mkdir", "-p", path.parent)
        return UsageError(f"{what}: there is no folder {missing}; '{way}' makes it")
    return UsageError(
        f"{what}: name a place in a folder that is there, and where this user may write"
    )


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, `path` when the block ends; nothing is left when it raises.

    Raises:
        UsageError: no file can be made there. OSError: the disk refused.
    """
    part = path.with_name(path.name + PART)
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise not_made(path, error) from error
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            os.fsync(file.fileno())
        os.rename(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)
        with suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def receive(folder: Path, write: Write, compress: bool, ask: Callable[[str], T]) -> T:
    """Pass on what `ask` has written into a pipe, and return what it returned.

    Args:
        folder: where the pipe is made, while it is needed: the store's, if that can be written.
        write: takes the archive.
        compress: with zstd.
        ask: told the name of the pipe, its path if it is elsewhere; returns when all is written
            into it.

    Raises:
        OSError: `write` refused. Exception: as `ask`.
    """
    with _pipe(folder) as path:
        copy = _Copy(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), write, compress)
        try:
            result = ask(path.name if path.parent == folder else str(path))
            copy.finish()
        except BaseException:
            copy.give_up()
            if copy.error is not None:
                raise copy.error from None
            raise
    return result


@contextmanager
def _pipe(folder: Path) -> Iterator[Path]:
    """Give a named pipe in a store, or elsewhere if that lies on a read-only filesystem.

    No daemon has such a store open: this process writes into the pipe, too.
    """
    with ExitStack() as cleaning:
        if is_on_read_only(folder):
            folder = Path(cleaning.enter_context(TemporaryDirectory(prefix="statefs-export-")))
        path = folder / f"export-{secrets.token_hex(8)}.pipe"
        os.mkfifo(path, 0o600)
        cleaning.callback(path.unlink, missing_ok=True)
        if os.geteuid() == 0:  # then the daemon may be another user's
            owner = folder.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        yield path


class _Copy:
    """A thread that copies from a pipe until its writer closes it."""

    def __init__(self, fd: int, write: Write, compress: bool) -> None:
        self._fd = fd
        self._write = write
        self._compress = compress
        self._is_wanted = True
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="export", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the end of the archive. Raises what went wrong."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def give_up(self) -> None:
        """Stop; whoever writes into the pipe is told so, at the latest when this process ends."""
        self._is_wanted = False
        self._thread.join(GIVE_UP_SECONDS)

    def _run(self) -> None:
        try:
            if self._compress:
                packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
                self._copy(lambda data: self._write(packer.compress(data)))
                self._write(packer.flush())
            else:
                self._copy(self._write)
        except BaseException as error:
            self.error = error
        finally:
            os.close(self._fd)

    def _copy(self, write: Write) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while self._is_wanted:
            # A FIFO that nobody has opened for writing yet is no end: it has nothing to poll.
            if not poll.poll(POLL_MS):
                continue
            with suppress(BlockingIOError):
                data = os.read(self._fd, COPY_BYTES)
                if not data:
                    return
                write(data)
