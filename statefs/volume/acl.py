"""POSIX access control lists: the kernel's byte form, and how they and mode bits follow each other.

Pure functions. Source: acl(5); the extended attribute's form is that of include/uapi/linux/
posix_acl_xattr.h: a 4-byte version 2, then entries of tag (u16), permissions (u16), id (u32),
little-endian.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from statefs.errors import PosixError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
_NO_ID: Final = 0xFFFFFFFF
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """One line of an ACL: whom it is for (tag, id) and the three permission bits."""

    tag: int
    permissions: int
    id: int = _NO_ID


def parse(value: bytes) -> list[AclEntry]:
    """Return the entries of an ACL attribute, checked.

    Raises:
        PosixError: EINVAL when it is not a valid ACL; EOPNOTSUPP for another version.
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise PosixError(errno.EINVAL)
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise PosixError(errno.EOPNOTSUPP)
    entries = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    if entries:
        _check(entries)
    return entries


def _check(entries: list[AclEntry]) -> None:
    tags = [entry.tag for entry in entries]
    required = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    named = any(tag in (USER, GROUP) for tag in tags)
    known = {USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER}
    if (
        not required
        or tags.count(MASK) > 1
        or (named and MASK not in tags)
        or not known.issuperset(tags)
        or any(entry.permissions & ~0o7 for entry in entries)
        or len({(entry.tag, entry.id) for entry in entries if entry.tag in (USER, GROUP)})
        != sum(entry.tag in (USER, GROUP) for entry in entries)
    ):
        raise PosixError(errno.EINVAL)


def encode(entries: list[AclEntry]) -> bytes:
    """Return the attribute's bytes for the entries."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_minimal(entries: list[AclEntry]) -> bool:
    """Whether the entries say no more than mode bits can."""
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in entries)


def mode_of(entries: list[AclEntry], mode: int) -> int:
    """Return `mode` with the permission bits that the ACL stands for (the mask as the group's)."""
    bits = {entry.tag: entry.permissions for entry in entries}
    group = bits.get(MASK, bits[GROUP_OBJ])
    return (mode & ~0o777) | bits[USER_OBJ] << 6 | group << 3 | bits[OTHER]


def with_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """Return the ACL after chmod(2) to `mode`: the group's bits change the mask if there is one."""
    has_mask = any(entry.tag == MASK for entry in entries)
    bits = {
        USER_OBJ: mode >> 6 & 7,
        OTHER: mode & 7,
        MASK if has_mask else GROUP_OBJ: mode >> 3 & 7,
    }
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries]


def inherited(default: list[AclEntry], mode: int) -> tuple[int, list[AclEntry] | None]:
    """Return the mode and access ACL of a file created in a folder with a default ACL.

    The permissions asked for in `mode` only ever take away. The umask does not apply.

    Returns:
        The mode, and the access ACL or None when the mode bits say it all.

    Source: acl(5), "OBJECT CREATION AND DEFAULT ACLs".
    """
    has_mask = any(entry.tag == MASK for entry in default)
    allowed = {USER_OBJ: mode >> 6 & 7, OTHER: mode & 7}
    allowed[MASK if has_mask else GROUP_OBJ] = mode >> 3 & 7
    entries = [
        entry._replace(permissions=entry.permissions & allowed.get(entry.tag, 7))
        for entry in default
    ]
    return mode_of(entries, mode), None if is_minimal(entries) else entries
