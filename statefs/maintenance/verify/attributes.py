"""Rules of extended attributes and ACLs: each holds now and in every snapshot."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from statefs.errors import PosixError
from statefs.maintenance.verify.reading import Reading, meet, shown
from statefs.metadata.inodes import InodeFlag
from statefs.volume import acl
from statefs.volume.attributes import (
    CAPABILITY,
    DURABILITY,
    DURABILITY_MODES,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
)

FLAGS: Final = {
    acl.ACCESS: InodeFlag.ACCESS_ACL,
    acl.DEFAULT: InodeFlag.DEFAULT_ACL,
    CAPABILITY: InodeFlag.CAPABILITY,
    DURABILITY: InodeFlag.DURABILITY,
}
"""Attributes that have a flag of their own beside XATTRS."""


def check_flags(reading: Reading) -> Iterator[str]:
    """R14: `flags` say which extended attributes an inode has, and those have an inode."""
    special = " ".join(f"WHEN x'{name.hex()}' THEN {flag:d}" for name, flag in FLAGS.items())
    flags = f"({InodeFlag.XATTRS:d} | CASE x.name {special} ELSE 0 END)"
    query = (
        f"SELECT x.ino, x.name FROM xattrs x WHERE {reading.count('x')} >"
        f" (SELECT coalesce(sum({reading.count('x', 'i')}), 0) FROM inodes i WHERE i.ino = x.ino"
        f" AND {meet('x', 'i')} AND i.flags & {flags} = {flags}) ORDER BY x.ino, x.name"
    )
    for ino, name in reading.rows(query):
        yield f"{reading.named(ino)} has {shown(name)}, but not always the flags for it"
    for attribute, flag in ((None, InodeFlag.XATTRS), *FLAGS.items()):
        which = "" if attribute is None else f" AND x.name = x'{attribute.hex()}'"
        query = (
            f"SELECT i.ino FROM inodes i WHERE i.flags & {flag:d} AND {reading.count('i')} >"
            f" (SELECT coalesce(sum({reading.count('i', 'x')}), 0) FROM xattrs x"
            f" WHERE x.ino = i.ino{which} AND {meet('i', 'x')}) ORDER BY i.ino"
        )
        for (ino,) in reading.rows(query):
            yield f"{reading.named(ino)} has the flag {flag.name}, but not always the attribute"


def check_values(reading: Reading) -> Iterator[str]:
    """R15: ACLs can be read and say what the mode says; names and values keep their limits."""
    query = (
        f"SELECT ino, name FROM xattrs WHERE length(name) NOT BETWEEN 1 AND {XATTR_NAME_MAX}"
        f" OR length(value) > {XATTR_SIZE_MAX} ORDER BY ino, name"
    )
    for ino, name in reading.rows(query):
        yield f"{reading.named(ino)} has an attribute {shown(name)} beyond the limits"
    query = "SELECT ino, value FROM xattrs WHERE name = ? ORDER BY ino, valid_to"
    for ino, value in reading.rows(query, (DURABILITY,)):
        if value not in DURABILITY_MODES:
            yield f"{reading.named(ino)} has a durability that does not exist: {shown(value)}"
    query = (
        f"SELECT i.ino, i.mode, x.value, {reading.count('x', 'i')} FROM xattrs x CROSS JOIN"
        f" inodes i ON i.ino = x.ino AND {meet('x', 'i')} WHERE x.name = ?"
        " ORDER BY i.ino, i.valid_to"
    )
    for name in (acl.ACCESS, acl.DEFAULT):
        for ino, mode, value, moments in reading.rows(query, (name,)):
            trouble = trouble_of(name, value, mode) if moments else None
            if trouble:
                yield f"{reading.named(ino)}: {name.decode()} {trouble}"


def is_possible(name: bytes, value: bytes) -> bool:
    """Whether an extended attribute keeps the limits, and a durability is one that there is."""
    is_durability = name == DURABILITY
    is_short = 1 <= len(name) <= XATTR_NAME_MAX and len(value) <= XATTR_SIZE_MAX
    return is_short and (not is_durability or value in DURABILITY_MODES)


def trouble_of(name: bytes, value: bytes, mode: int) -> str | None:
    """Return what is wrong with an ACL of an inode, None when nothing is."""
    if name not in (acl.ACCESS, acl.DEFAULT):
        return None
    try:
        entries = acl.parse(value)
    except PosixError:
        return "cannot be read"
    if not entries:
        return "is empty"
    if name == acl.DEFAULT:
        return None if stat.S_ISDIR(mode) else "belongs to folders only"
    if acl.is_minimal(entries):
        return "says no more than the mode, which should say it"
    if acl.mode_of(entries, mode) != mode:
        return f"does not fit the mode {stat.S_IMODE(mode):o}"
    return None
