"""Archives as no tar writes them: valid ones with fields changed, and their sums made right."""

from __future__ import annotations

import io
import random
import stat
import tarfile
from typing import Final

from statefs.archive.headers import END, TAR_BLOCK_BYTES, Member, encode_member

FIELDS: Final = [
    (0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8),
    (329, 8), (337, 8), (345, 155), (386, 96),
]  # fmt: skip
"""Offset and length of each field of a header block. Source: tar(5), "POSIX ustar Archives"."""
HOSTILE_WORDS: Final = [
    b"/etc/x", b"../x", b"files/../../x", b"files/s/x", b"a" * 99, b"a/" * 48, b"", b".", b"..",
    b"-1", b"0", b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"3", b"5", b"7" * 12, b"\n\x1b[31m",
]  # fmt: skip
SUM: Final = slice(148, 156)


def valid_archives() -> list[bytes]:
    """Return an archive with every kind of member in each format, and one of a file with holes."""
    holes = Member(b"files/sp", stat.S_IFREG | 0o644, size=100_000, data=[(0, 512), (4096, 4608)])
    return [
        _archive(tarfile.PAX_FORMAT),
        _archive(tarfile.GNU_FORMAT),
        encode_member(holes) + b"z" * 1024 + END,
    ]


def _archive(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, kind, data, link in (
            ("files", tarfile.DIRTYPE, b"", ""),
            ("files/setuid", tarfile.REGTYPE, b"hello", ""),
            ("files/" + "l" * 120, tarfile.REGTYPE, b"x" * 600, ""),
            ("files/hard", tarfile.LNKTYPE, b"", "files/setuid"),
            ("files/s", tarfile.SYMTYPE, b"", "../../outside"),
            ("files/null", tarfile.CHRTYPE, b"", ""),
            ("files/fifo", tarfile.FIFOTYPE, b"", ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname, info.mode = kind, len(data), link, 0o4755
            info.devmajor, info.devminor, info.mtime = 1, 3, 5.5
            if form == tarfile.PAX_FORMAT:
                acl = "user::rw-,group::r--,other::r--"
                info.pax_headers = {"SCHILY.xattr.user.a": "v", "SCHILY.acl.access": acl}
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def mutated(archive: bytes, seed: int) -> bytes:
    """Return an archive with one to three changes, most of them with a right sum."""
    chance = random.Random(seed)
    data = bytearray(archive)
    for _ in range(chance.randint(1, 3)):
        block = chance.randrange(len(data) // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
        offset, length = chance.choice(FIELDS)
        filling = [
            b"\x80" + chance.randbytes(length - 1),  # numbers in base 256
            b"\xff" + chance.randbytes(length - 1),  # below zero
            chance.randbytes(length),
            chance.choice(HOSTILE_WORDS),
        ]
        new = chance.choice(filling)[:length].ljust(length, b"\0")
        data[block + offset : block + offset + length] = new
        data[block + SUM.start : block + SUM.stop] = _sum_of(data[block : block + TAR_BLOCK_BYTES])
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


def _sum_of(block: bytearray) -> bytes:
    blank = 8 * ord(" ")
    return b"%06o\0 " % (blank + sum(block[: SUM.start]) + sum(block[SUM.stop :]))
