"""What SQLite finds in a database and its write-ahead log: pages that commits have made visible.

Two disks with the same pages are one to SQLite, whatever else lies in their logs, so that a test
opens them once. Source: https://sqlite.org/fileformat2.html, "The Write-Ahead Log".
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

HEADER: Final = struct.Struct(">8I")
"""Magic, version, page size, sequence, two salts, two sums."""
FRAME: Final = struct.Struct(">6I")
"""Page, size of the database in pages behind a commit, two salts, two sums."""
MAGIC_LITTLE: Final = 0x377F0682
MAGIC_BIG: Final = 0x377F0683
SUMMED_BYTES: Final = 8
"""Of a frame's header; the salts and the sums themselves are not summed."""


def visible(database: bytes, log: bytes) -> bytes:
    """Return a database with what the commits in its log have changed."""
    if len(log) < HEADER.size:
        return database
    magic, _, page_bytes, _, *salts, first, second = HEADER.unpack_from(log)
    if magic not in (MAGIC_LITTLE, MAGIC_BIG):
        return database
    order = "<" if magic == MAGIC_LITTLE else ">"
    sums = _summed(log[: HEADER.size - SUMMED_BYTES], (0, 0), order)
    if sums != (first, second):
        return database
    pages: dict[int, bytes] = {}
    shown, size = dict(pages), len(database) // page_bytes
    frame_bytes = FRAME.size + page_bytes
    for start in range(HEADER.size, len(log) - frame_bytes + 1, frame_bytes):
        number, commit, *frame_salts, first, second = FRAME.unpack_from(log, start)
        page = log[start + FRAME.size : start + frame_bytes]
        sums = _summed(log[start : start + SUMMED_BYTES] + page, sums, order)
        if frame_salts != salts or sums != (first, second):
            break
        pages[number] = page
        if commit:
            shown, size = dict(pages), commit
    result = bytearray(database[: size * page_bytes].ljust(size * page_bytes, b"\0"))
    for number, page in shown.items():
        result[(number - 1) * page_bytes : number * page_bytes] = page
    return bytes(result[: size * page_bytes])


@lru_cache(maxsize=4096)
def _summed(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second
