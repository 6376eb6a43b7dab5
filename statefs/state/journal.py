"""Records that are only ever added, one line each, durable one by one.

A line is `SEQUENCE CHECKSUM JSON`: a number that counts from 1 without gaps, and the CRC-32 of
`SEQUENCE JSON` in eight hexadecimal digits. Only the last line can be torn, for each record is
durable before the next is begun: it lacks its newline, or holds the zeros of a block that was
never written. That is cut at opening, and said. Any other damage is an error, never passed over.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from statefs.durable import open_plain, sync_folder
from statefs.errors import StateDamaged

LOST: Final = {"lost": True}
"""The value of a record that a repair could not save; its number is kept."""

_FIELDS: Final = 3
_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One record.

    Args:
        sequence: its number, from 1.
        value: what was appended, as JSON holds it.
        end: where its line ends in the file, in bytes.
    """

    sequence: int
    value: Any
    end: int


class Position(NamedTuple):
    """A place between two records.

    Args:
        sequence: the number of the record before it; 0 at the beginning.
        end: where that one's line ends, in bytes.
    """

    sequence: int
    end: int


START: Final = Position(0, 0)


class Journal:
    """A journal that can be added to; whoever opens it has the store's lock.

    Args:
        path: of the file, made where there is none.
        after: records before it are not read, and not checked.

    Raises:
        StateDamaged: a line that is not torn is broken, or the file ends before `after`.
    """

    def __init__(self, path: Path, after: Position = START) -> None:
        self.path = path
        self.cut_bytes = 0
        self._mutex = threading.Lock()
        self._sequence, self._end = after
        self._refusal = ""
        is_new = not path.exists()
        self._fd = open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            if is_new:
                sync_folder(path.parent)
            for record in read_journal(path, after):
                self._sequence, self._end = record.sequence, record.end
            self._cut_tail()
        except BaseException:
            os.close(self._fd)
            raise

    def _cut_tail(self) -> None:
        self.cut_bytes = os.fstat(self._fd).st_size - self._end
        if self.cut_bytes:
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
            _log.warning(
                "%s: %d bytes of a record that was never finished are cut off",
                self.path,
                self.cut_bytes,
            )

    def append(self, value: Any) -> int:
        """Add a record and return its number; it is durable then.

        Raises:
            OSError: the disk refused; the record is not there.
            TypeError, ValueError: JSON does not hold such a value.
        """
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with self._mutex:
            if self._refusal:
                raise OSError(errno.EIO, self._refusal, str(self.path))
            line = line_of(self._sequence + 1, text)
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fdatasync(self._fd)
            except BaseException:
                # What a failed sync has left on the disk is unknown until it is read again.
                self._refusal = "an append has failed: open the journal again"
                os.ftruncate(self._fd, self._end)
                os.fdatasync(self._fd)
                self._refusal = ""
                raise
            self._sequence += 1
            self._end += len(line)
            return self._sequence

    def position(self) -> Position:
        """Return the place behind the last record."""
        with self._mutex:
            return Position(self._sequence, self._end)

    def records(self) -> Iterator[Record]:
        """Return the records, the oldest first, read from the disk one by one."""
        return read_journal(self.path)

    def close(self) -> None:
        """Close the file; nothing is owed to the disk."""
        with self._mutex:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._refusal = -1, "the journal is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line_of(sequence: int, text: str) -> bytes:
    """Return the line of a record, its newline included."""
    return f"{sequence} {_checksum(sequence, text):08x} {text}\n".encode()


def read_journal(path: Path, after: Position = START) -> Iterator[Record]:
    """Return the records of a journal after a place, the oldest first; a torn tail is left out.

    Raises:
        FileNotFoundError: there is none.
        StateDamaged: a line that is not torn is broken, or the file ends before `after`; the
            message names file and line.
    """
    count, end = after
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if end > size or (end and os.pread(file.fileno(), 1, end - 1) != b"\n"):
            raise StateDamaged(f"{path}, line {count}: it does not end where it did")
        file.seek(end)
        for line in file:
            is_last = end + len(line) >= size
            if is_last and (not line.endswith(b"\n") or b"\0" in line):
                return
            end, count = end + len(line), count + 1
            yield Record(count, _value(line, count, path), end)


def record_in(line: bytes) -> int | None:
    """Return the number of the record in a line; None where the line is not whole."""
    try:
        number, fits, text = _parts_of(line)
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return number if fits else None


def _value(line: bytes, sequence: int, path: Path) -> Any:
    try:
        number, fits, text = _parts_of(line)
        if not fits:
            raise StateDamaged(f"{path}, line {sequence}: the checksum does not fit")
        if number != sequence:
            raise StateDamaged(f"{path}, line {sequence}: it has the number {number}")
        return json.loads(text)
    except (ValueError, RecursionError):
        raise StateDamaged(f"{path}, line {sequence}: not a record of a journal") from None


def _parts_of(line: bytes) -> tuple[int, bool, str]:
    """Return the number of a line, whether its checksum fits, and its JSON. Raises ValueError."""
    number, checksum, text = line.decode().rstrip("\n").split(" ", _FIELDS - 1)
    return int(number), int(checksum, 16) == _checksum(int(number), text), text


def _checksum(sequence: int, text: str) -> int:
    return zlib.crc32(f"{sequence} {text}".encode())
