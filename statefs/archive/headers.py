"""What stands before each member of an archive: pax headers, byte for byte. Pure.

The standard library writes the plain header block. The extended ones are written here, because
names and values may be any bytes, and files with holes are to keep them. Source: pax(1), "pax
Extended Header"; GNU tar's manual, "Storing Sparse Files" (PAX format 1.0); star(5), SCHILY.*.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from statefs.archive.acl_text import to_text
from statefs.volume import acl

TAR_BLOCK_BYTES: Final = 512
"""Everything in a tar archive begins at a multiple of this."""
END: Final = bytes(10_240)
"""The end of an archive: two empty blocks, filled up to the record size that tar reads."""
XATTR: Final = "SCHILY.xattr."
ACLS: Final = {acl.ACCESS: "SCHILY.acl.access", acl.DEFAULT: "SCHILY.acl.default"}
"""Extended attributes that tar carries as text, and the keyword of each."""

_SECOND_NS: Final = 1_000_000_000
_NAME_BYTES: Final = 98
"""Names up to this length, plain ASCII, fit the plain header block with a slash behind them."""
_LINK_BYTES: Final = 100
_ID_LIMIT: Final = 8**7
_SIZE_LIMIT: Final = 8**11
"""What the octal fields of the plain header block hold."""
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}

Range = tuple[int, int]
"""Bytes [start, end) of a file."""


class Member(NamedTuple):
    """A file, folder or link as it stands in an archive.

    Args:
        path: relative to the root; the root itself is `.`.
        mode: type and permissions.
        rdev: (major, minor) of a device.
        size: of a regular file, with its holes.
        target: where a symbolic link leads.
        hard_link: the member that is the same file, None for the first of its names.
        data: the ranges of a sparse file that are stored, made by `aligned`; None for a file
            without holes.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int | None = None
    size: int = 0
    rdev: tuple[int, int] = (0, 0)
    target: bytes = b""
    hard_link: bytes | None = None
    xattrs: Mapping[bytes, bytes] = {}
    data: Sequence[Range] | None = None


def can_hold(mode: int) -> bool:
    """Whether an archive can hold such a file; sockets it cannot."""
    return stat.S_IFMT(mode) in _TYPES


def padding(size: int) -> bytes:
    """Return what fills `size` bytes up to a whole number of blocks."""
    return bytes(-size % TAR_BLOCK_BYTES)


def encode_member(member: Member) -> bytes:
    """Return all that stands before the stored bytes of a member, the map of its holes included."""
    records = _records(member)
    holes = b"" if member.data is None else sparse_map(member.data, member.size)
    stored = _stored_bytes(member) + len(holes)
    info = _plain(member)
    info.size = stored if stored < _SIZE_LIMIT else 0
    if stored >= _SIZE_LIMIT:
        records["size"] = b"%d" % stored
    block = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")
    return _extended(records, info.name) + block + holes


def encode_document(name: bytes, data: bytes, member: Member) -> bytes:
    """Return a whole member with the bytes `data`, its other attributes those of `member`."""
    head = encode_member(member._replace(path=name, size=len(data)))
    return head + data + padding(len(data))


def aligned(ranges: Iterable[Range], size: int) -> list[Range]:
    """Return the ranges of a file grown to whole blocks, those that touch then as one.

    GNU tar takes each range of a sparse member from a block of its own.

    Args:
        ranges: sorted, none overlapping.
        size: of the file, where the last block ends.
    """
    found: list[Range] = []
    for start, end in ranges:
        start -= start % TAR_BLOCK_BYTES
        end = min(end + -end % TAR_BLOCK_BYTES, size)
        if found and found[-1][1] >= start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def sparse_map(data: Sequence[Range], size: int) -> bytes:
    """Return the map of a sparse file: how many ranges, then start and length of each."""
    ranges = [(start, end - start) for start, end in data]
    if not data or data[-1][1] < size:
        ranges.append((size, 0))  # as GNU tar does, for readers that take the size from here
    numbers = [len(ranges), *(number for each in ranges for number in each)]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + padding(len(text))


def _stored_bytes(member: Member) -> int:
    if member.hard_link is not None or not stat.S_ISREG(member.mode):
        return 0
    if member.data is None:
        return member.size
    return sum(end - start for start, end in member.data)


def _plain(member: Member) -> tarfile.TarInfo:
    """Return the plain header block's fields, those that do not fit left empty."""
    info = tarfile.TarInfo(_short_name(member))
    info.mode = stat.S_IMODE(member.mode)
    info.uid = member.uid if member.uid < _ID_LIMIT else 0
    info.gid = member.gid if member.gid < _ID_LIMIT else 0
    seconds = member.mtime_ns // _SECOND_NS
    info.mtime = seconds if 0 <= seconds < _SIZE_LIMIT else 0
    info.devmajor, info.devminor = member.rdev
    info.type = _TYPES[stat.S_IFMT(member.mode)]
    if member.hard_link is not None:
        info.type = tarfile.LNKTYPE
    link = member.target if member.hard_link is None else member.hard_link
    info.linkname = _ascii(link, _LINK_BYTES)
    return info


def _short_name(member: Member) -> str:
    if member.data is not None:
        return "GNUSparseFile.0/" + _ascii(member.path.rpartition(b"/")[2], _NAME_BYTES // 2)
    return _ascii(member.path, _NAME_BYTES)


def _ascii(name: bytes, limit: int) -> str:
    return name[-limit:].decode("ascii", "replace").replace("\ufffd", "_")


def _fits(name: bytes, limit: int) -> bool:
    return len(name) <= limit and name.isascii()


def _records(member: Member) -> dict[str, bytes]:
    """Return the extended header: what the plain block cannot say, or not exactly."""
    records = {"mtime": time_text(member.mtime_ns).encode()}
    if member.atime_ns is not None:
        records["atime"] = time_text(member.atime_ns).encode()
    if member.data is not None:
        records |= {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": member.path,
            "GNU.sparse.realsize": b"%d" % member.size,
        }
    elif not _fits(member.path, _NAME_BYTES):
        records["path"] = member.path
    link = member.target if member.hard_link is None else member.hard_link
    if not _fits(link, _LINK_BYTES):
        records["linkpath"] = link
    records |= {
        key: b"%d" % number
        for key, number in (("uid", member.uid), ("gid", member.gid))
        if number >= _ID_LIMIT
    }
    for name, value in member.xattrs.items():
        if name in ACLS:
            records[ACLS[name]] = to_text(value).encode()
        else:
            records[XATTR + keyword_of(name)] = value
    return records


def keyword_of(name: bytes) -> str:
    """Return the name of an extended attribute as GNU tar writes it into a keyword."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D").decode("utf-8", "surrogateescape")


def xattr_of(keyword: str) -> bytes:
    """Return the extended attribute that a keyword names, without its prefix."""
    name = keyword.encode("utf-8", "surrogateescape")
    return name.replace(b"%3D", b"=").replace(b"%25", b"%")


def time_text(time_ns: int) -> str:
    """Return nanoseconds since 1970 as decimal seconds, exactly."""
    seconds, rest = divmod(abs(time_ns), _SECOND_NS)
    return f"{'-' if time_ns < 0 else ''}{seconds}.{rest:09d}"


def _extended(records: Mapping[str, bytes], name: str) -> bytes:
    body = b"".join(_record(key, value) for key, value in records.items())
    info = tarfile.TarInfo("PaxHeaders.0/" + name.rstrip("/").rpartition("/")[2][:80])
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace") + body + padding(len(body))


def _record(keyword: str, value: bytes) -> bytes:
    """Return one record, which begins with its own length."""
    rest = b" " + keyword.encode("utf-8", "surrogateescape") + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest
