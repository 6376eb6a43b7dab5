"""Reading an archive member by member, whatever made it, trusting nothing in it.

Takes what GNU tar, star, bsdtar and `statefs export` write, plain or compressed. What a member
says of itself is checked here, before anything is made of it; every complaint names the member.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import IO, Any, Final, cast

import zstandard

from statefs.archive.acl_text import from_text
from statefs.archive.headers import (
    ACLS,
    TAR_BLOCK_BYTES,
    XATTR,
    Member,
    Range,
    padding,
    sparse_map,
    xattr_of,
)
from statefs.errors import PosixError, UsageError
from statefs.snapshots.documents import SnapshotDocument, decode
from statefs.snapshots.naming import check_label
from statefs.snapshots.reports import path_text

METADATA: Final = b"metadata.json"
METADATA_BYTES_MAX: Final = 16 << 20
"""A longer first member of that name is no document of ours."""
NAME_LABEL: Final = "name"
"""The label by which a snapshot can be called; no two have the same."""
NAME_MAX: Final = 255
END_BYTES: Final = 2 * TAR_BLOCK_BYTES
"""An archive that is whole ends in two empty blocks."""
_READ_BYTES: Final = 1 << 20
_MAGIC_BYTES: Final = 4
_SECOND_NS: Final = 1_000_000_000
_TIME_MAX_NS: Final = (1 << 63) - 1
_ID_MAX: Final = (1 << 32) - 2
"""The largest owner; the number above it means "leave it as it is". Source: chown(2)."""
_DEVICE_MAX: Final = (1 << 32) - 1
_SIZE_MAX: Final = (1 << 63) - 1
_HEADER_BYTES_MAX: Final = 16 << 20
"""Of an extended header, which is held in memory; names and attributes of a file need far less."""
_KINDS: Final = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
_EXTENDED: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _zstd(source: IO[bytes]) -> IO[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    return cast(
        "IO[bytes]", decompressor.stream_reader(source, read_across_frames=True, closefd=False)
    )


_DECOMPRESSIONS: Final[Mapping[bytes, Callable[[Any], Any]]] = {
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": lambda source: gzip.GzipFile(fileobj=source),
    b"BZ": bz2.BZ2File,
    b"\xfd7": lzma.LZMAFile,
}
"""By the first bytes of what they read. Python's tarfile knows some of them, too, but takes for the
end of an archive what is cut off there, and looks at no checksum."""


class _Input:
    """The bytes of an archive, counted, and its last ones kept; for tarfile's stream mode."""

    def __init__(self, source: IO[bytes], beginning: bytes) -> None:
        self._source = source
        self._beginning = beginning
        self.count = 0
        self.tail = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end."""
        data, self._beginning = self._beginning[:size], self._beginning[size:]
        while len(data) < size:
            more = self._source.read(size - len(data))
            if not more:
                break
            data += more
        self.count += len(data)
        self.tail = (self.tail + data)[-END_BYTES:]
        return data

    def drain(self) -> None:
        """Read on to the end."""
        while self.read(_READ_BYTES):
            pass


class _Header(tarfile.TarInfo):
    """A member's header; one that would fill the memory is refused before it is read."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and not 0 <= self.size <= _HEADER_BYTES_MAX:
            raise tarfile.ReadError("an extended header is too large")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # of typeshed
        return found


class Archive:
    """An archive, read once from its beginning to its end.

    Args:
        source: what it is read from.
        name: what it is called in messages.
    """

    def __init__(self, source: IO[bytes], name: str) -> None:
        self._name = name
        beginning = source.read(_MAGIC_BYTES)
        self._input = self._plain = _Input(source, beginning)
        for magic, decompressed in _DECOMPRESSIONS.items():
            if beginning.startswith(magic):
                self._plain = _Input(decompressed(self._input), b"")
        with self._faults():
            self._tar = tarfile.open(  # noqa: SIM115  # only `source` is to be closed
                fileobj=self._plain,  # type: ignore[call-overload]  # stream mode only reads
                mode="r|",
                tarinfo=_Header,
                encoding="utf-8",
                errors="surrogateescape",
            )
        self._info: tarfile.TarInfo | None = None

    @property
    def bytes_read(self) -> int:
        """How much of the source has been read."""
        return self._input.count

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise  # of what was understood
        except Exception as error:  # tarfile raises whatever it comes across, TypeError among it
            if isinstance(error, OSError) and error.errno:
                raise  # of the disk; those of decompressors have no number
            raise UsageError(f"{self._name} is damaged, or no tar archive: {error}") from error

    def members(self) -> Iterator[Member]:
        """Yield each member; its content can be read until the next one is asked for.

        Raises:
            UsageError: a member that must not be, or the archive is damaged or cut off.
        """
        while True:
            with self._faults():
                self._info = self._tar.next()
                # tarfile remembers every member; an archive of millions must fit into memory.
                self._tar.members = []
            if self._info is None:
                break
            self._correct_huge_sparse(self._info)
            yield self._member(self._info)
        with self._faults():
            self._plain.drain()
        if self._plain.tail != bytes(END_BYTES):
            raise UsageError(f"{self._name} is cut off: its end is missing")

    def _correct_huge_sparse(self, info: tarfile.TarInfo) -> None:
        """Set right what tarfile makes of a sparse member that stores more than eight gigabytes.

        It takes one of two sizes in the extended header, that of the file and that of what is
        stored, for both, and forgets the map before the data.
        """
        stored, size = (info.pax_headers.get(key) for key in ("size", "GNU.sparse.realsize"))
        if info.sparse is None or stored is None or size is None:
            return
        holes = [(start, start + length) for start, length in _map(info)]
        begin = info.offset_data - len(sparse_map(holes, holes[-1][1] if holes else 0))
        info.size = int(size)
        self._tar.offset = begin + int(stored) + len(padding(int(stored)))

    def content(self, member: Member) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of what the current member, a regular file, stores."""
        assert self._info is not None
        with self._faults():
            # tarfile's own reader of members wants to seek in the stream, which has no such thing.
            stream = self._tar.fileobj
            assert stream is not None
            stream.seek(self._info.offset_data)
            for start, end in member.data if member.data is not None else [(0, member.size)]:
                while start < end:
                    data = stream.read(min(_READ_BYTES, end - start))
                    if not data:
                        raise UsageError(f"{self._name} is cut off in {path_text(member.path)}")
                    yield start, data
                    start += len(data)

    def document(self, member: Member) -> SnapshotDocument | None:
        """Return the current, first member as a snapshot's metadata.json; None if it is none."""
        is_file = stat.S_ISREG(member.mode) and member.hard_link is None and member.data is None
        if member.path != METADATA or not is_file or member.size > METADATA_BYTES_MAX:
            return None
        data = b"".join(part for _, part in self.content(member))
        try:
            document = decode(data, SnapshotDocument)
            if NAME_LABEL in document.labels:
                check_label(document.labels[NAME_LABEL])
            return document
        except (ValueError, UsageError) as error:
            raise UsageError(
                f"metadata.json, the first member of {self._name}, is no snapshot's: {error}"
            ) from None

    def _member(self, info: tarfile.TarInfo) -> Member:
        path = checked_path(_bytes(info.name))
        kind = _KINDS.get(info.type)
        if kind is None:
            what = f"a member of the kind '{path_text(info.type)}' is not known"
            raise UsageError(f"{path_text(path)}: {what}")
        try:
            return Member(
                path,
                kind | stat.S_IMODE(_limited("mode", info.mode, _DEVICE_MAX)),
                _limited("owner", info.uid, _ID_MAX),
                _limited("group", info.gid, _ID_MAX),
                _time_ns(info.pax_headers.get("mtime"), info.mtime),
                _optional_time_ns(info.pax_headers.get("atime")),
                _limited("size", info.size, _SIZE_MAX),
                _device(info),
                _target(info) if info.issym() else b"",
                checked_path(_bytes(info.linkname)) if info.islnk() else None,
                _xattrs(info.pax_headers),
                _ranges(info),
            )
        except (ValueError, InvalidOperation, PosixError, UsageError) as error:
            raise UsageError(f"{path_text(path)}: {error}") from None


def _limited(what: str, number: int, most: int) -> int:
    """Return a number of a header. Raises UsageError: the kernel knows no such number."""
    if not 0 <= number <= most:
        raise UsageError(f"its {what} cannot be {number}")
    return number


def _device(info: tarfile.TarInfo) -> tuple[int, int]:
    if not info.isdev():
        return (0, 0)
    return (
        _limited("device", info.devmajor, _DEVICE_MAX),
        _limited("device", info.devminor, _DEVICE_MAX),
    )


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def checked_path(path: bytes) -> bytes:
    """Return a path as it is below the root: without `.` and doubled slashes; the root is `.`.

    Raises:
        UsageError: it is absolute, leads upwards, or can be no path.
    """
    if path.startswith(b"/"):
        raise UsageError(f"{path_text(path)}: an absolute path could lead anywhere; it is refused")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"{path_text(path)}: a path with '..' could lead anywhere; it is refused")
    if b"\0" in path or any(len(part) > NAME_MAX for part in parts):
        raise UsageError(f"{path_text(path)}: no file can have such a name")
    return b"/".join(parts) or b"."


def _target(info: tarfile.TarInfo) -> bytes:
    target = _bytes(info.linkname)
    if not target or b"\0" in target:
        raise UsageError("a symbolic link must lead somewhere")
    return target


def _time_ns(text: str | None, seconds: float) -> int:
    found = _optional_time_ns(text)
    return _limited_time_ns(Decimal(int(seconds))) if found is None else found


def _optional_time_ns(text: str | None) -> int | None:
    if text is None:
        return None
    time = Decimal(text)
    if not time.is_finite():
        raise ValueError(f"{text} is no time")
    return _limited_time_ns(time)


def _limited_time_ns(time: Decimal) -> int:
    """Return seconds in nanoseconds, the nearest that there are."""
    most = Decimal(_TIME_MAX_NS) / _SECOND_NS  # before multiplying: 1e999999 has many digits
    time_ns = int((max(-most, min(time, most)) * _SECOND_NS).to_integral_value())
    return max(-_TIME_MAX_NS, min(time_ns, _TIME_MAX_NS))


def _xattrs(records: Mapping[str, str]) -> dict[bytes, bytes]:
    found = {
        xattr_of(key.removeprefix(XATTR)): _bytes(value)
        for key, value in records.items()
        if key.startswith(XATTR)
    }
    for name, keyword in ACLS.items():
        if keyword in records:
            found[name] = from_text(records[keyword])
    if any(not name or b"\0" in name for name in found):
        raise UsageError("no extended attribute can have such a name")
    return {name: value for name, value in found.items() if value or name not in ACLS}


def _map(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return start and length of each range of a sparse member."""
    return cast(list[tuple[int, int]], info.sparse)  # typeshed says bytes


def _ranges(info: tarfile.TarInfo) -> list[Range] | None:
    """Return where a sparse member has bytes.

    Raises:
        UsageError: its map contradicts itself.
    """
    if info.sparse is None:
        return None
    ranges = [(start, start + length) for start, length in _map(info) if length]
    position = 0
    for start, end in ranges:
        if start < position or end < start or end > info.size:
            raise UsageError("the map of its holes contradicts itself")
        position = end
    return ranges
