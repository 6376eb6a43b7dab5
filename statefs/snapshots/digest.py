"""What a tree hashes to: the canonical form of docs/state-digest.md. Pure, no input or output.

A folder's digest is the SHA-256 of its entries, sorted by the bytes of their names; each entry is a
netstring of netstrings, so no two trees look alike. scripts/state_digest.py computes the same from
any folder and shares no code with this module.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from statefs.layout import RUNTIME

SHA256_BYTES: Final = 32
LEFT_OUT: Final = frozenset({RUNTIME, b"metadata.json"})
"""Names in the root that are no part of the state: of the supervisor, and of the mount itself."""
XATTR_SPACES: Final = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
HEX: Final = frozenset("0123456789abcdef")
DIGEST_PREFIX: Final = "sha256:"
"""What the text of a state digest begins with."""
_KINDS: Final = {
    stat.S_IFREG: b"f",
    stat.S_IFDIR: b"d",
    stat.S_IFLNK: b"l",
    stat.S_IFIFO: b"p",
    stat.S_IFSOCK: b"s",
    stat.S_IFCHR: b"c",
    stat.S_IFBLK: b"b",
}


class Entry(NamedTuple):
    """A name in a folder and everything about it that counts.

    Args:
        name: its bytes.
        mode: type and permissions, as in stat(2).
        uid, gid: the owner.
        size: of a file in bytes; not looked at for anything else.
        content: SHA-256 of a file, 32 bytes; a link's target; a folder's digest; of a device
            `device_number`; else empty.
        xattrs: name -> value.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    content: bytes
    xattrs: Mapping[bytes, bytes]


def is_state_digest(text: str) -> bool:
    """Return whether a text is, or could be, what `state_digest` returns."""
    prefix, digits = text[: len(DIGEST_PREFIX)], text[len(DIGEST_PREFIX) :]
    return prefix == DIGEST_PREFIX and len(digits) == 2 * SHA256_BYTES and set(digits) <= HEX


def netstring(data: bytes) -> bytes:
    """Return bytes with their length before them. Source: cr.yp.to/proto/netstrings.txt."""
    return b"%d:%b," % (len(data), data)


def device_number(rdev: int) -> bytes:
    """Return what stands for a device, `MAJOR:MINOR` in decimal."""
    return b"%d:%d" % (os.major(rdev), os.minor(rdev))


def record(entry: Entry) -> bytes:
    """Return the canonical form of an entry."""
    kind = _KINDS[stat.S_IFMT(entry.mode)]
    size = entry.size if kind == b"f" else len(entry.content) if kind == b"l" else 0
    xattrs = b"".join(
        netstring(name) + netstring(value)
        for name, value in sorted(entry.xattrs.items())
        if name.startswith(XATTR_SPACES)
    )
    numbers = (stat.S_IMODE(entry.mode), entry.uid, entry.gid, size)
    fields = (entry.name, kind, *(b"%d" % number for number in numbers), entry.content, xattrs)
    return netstring(b"".join(map(netstring, fields)))


class FolderHash:
    """The digest of a folder, of entries added one by one in the order of their names."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        self._hash.update(record(entry))

    def digest(self) -> bytes:
        """Return the digest of the entries so far, 32 bytes."""
        return self._hash.digest()


def folder_digest(entries: Iterable[Entry]) -> bytes:
    """Return the digest of a folder with these entries, in any order."""
    folder = FolderHash()
    for entry in sorted(entries):
        folder.add(entry)
    return folder.digest()


def state_digest(root: bytes) -> str:
    """Return the `stateDigest` of a tree whose root folder has the digest `root`."""
    return DIGEST_PREFIX + root.hex()
