"""The blocks that a file's content is hashed in: their length, and what their bytes hash to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from blake3 import blake3

from statefs.content.objects import ObjectFiles, Piece

BLOCK_BYTES: Final = 1 << 20
"""A damaged byte is told to within a block of 1 MiB; its digest is a 32768th of it."""
BLOCKS_MAX: Final = 1 << 16
"""Blocks of larger files are larger, so that a file's row in the database stays below 2 MiB."""
BLAKE3_BYTES: Final = 32
READ_BYTES: Final = 1 << 20
"""Read at a time; long enough that hashing it lets go of Python's lock."""
ZEROS: Final = memoryview(bytes(READ_BYTES))


def block_bytes(size: int) -> int:
    """Return how long the blocks of a file of `size` bytes are: a power of two, 1 MiB at least."""
    length = BLOCK_BYTES
    while -(-size // length) > BLOCKS_MAX:
        length *= 2
    return length


def block_count(size: int) -> int:
    """Return for how many blocks a file of `size` bytes keeps digests; none where one is all."""
    count = -(-size // block_bytes(size))
    return count if count > 1 else 0


def block_digest(objects: ObjectFiles, pieces: Sequence[Piece]) -> bytes:
    """Return the BLAKE3 of the bytes of some pieces; may wait for the disk.

    Raises:
        OSError: an object file is missing, too short, or cannot be read.
    """
    if all(not number for _, _, number in pieces):
        return _hash_of_zeros(sum(end - start for start, end, _ in pieces))
    hasher = blake3()
    for start, end, number in pieces:
        for position in range(start, end, READ_BYTES):
            until = min(position + READ_BYTES, end)
            hasher.update(objects.read([(position, until, number)]))
    return hasher.digest()


def whole_digest(objects: ObjectFiles, pieces: Sequence[Piece]) -> bytes:
    """Return the SHA-256 of the bytes of a file of one block. Raises as `block_digest`."""
    return hashlib.sha256(objects.read(pieces)).digest()


@lru_cache(maxsize=8)
def _hash_of_zeros(length: int) -> bytes:
    hasher = blake3()
    while length > 0:
        hasher.update(ZEROS[:length])
        length -= READ_BYTES
    return hasher.digest()
