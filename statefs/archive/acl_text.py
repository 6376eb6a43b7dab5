"""Access control lists as text, the form in which tar archives carry them.

Written: `user::rwx,user:1000:r--,group::r-x,mask::r-x,other::---`, ids as numbers. Read: that, one
entry a line, names of users and groups, and star's form with the id behind the permissions.
Pure, but for looking names up. Source: acl(5), "ACL TEXT FORMS"; star(5), SCHILY.acl.access.
"""

from __future__ import annotations

import grp
import pwd
import re
from typing import Final

from statefs.volume.acl import (
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    encode,
    parse,
)

_WORDS: Final = {
    USER_OBJ: "user",
    USER: "user",
    GROUP_OBJ: "group",
    GROUP: "group",
    MASK: "mask",
    OTHER: "other",
}
_OWN: Final = {"user": USER_OBJ, "group": GROUP_OBJ, "mask": MASK, "other": OTHER}
_NAMED: Final = {"user": USER, "group": GROUP}
_FULL: Final = {"u": "user", "g": "group", "m": "mask", "o": "other"}
_LETTERS: Final = ((4, "r"), (2, "w"), (1, "x"))
_FIELDS: Final = (3, 4)
"""word:who:permissions, and star's word:name:permissions:id."""


def to_text(value: bytes) -> str:
    """Return the text of an ACL attribute.

    Raises:
        PosixError: it is none.
    """
    entries = []
    for entry in parse(value):
        who = str(entry.id) if entry.tag in (USER, GROUP) else ""
        letters = "".join(letter if entry.permissions & bit else "-" for bit, letter in _LETTERS)
        entries.append(f"{_WORDS[entry.tag]}:{who}:{letters}")
    return ",".join(entries)


def from_text(text: str) -> bytes:
    """Return the ACL attribute that a text stands for; empty for a text without entries.

    Raises:
        ValueError: it cannot be understood.
        PosixError: the entries are no ACL together.
    """
    words = (line.partition("#")[0].strip() for line in re.split(r"[,\n]", text))
    entries = [_entry(word) for word in words if word]
    if not entries:
        return b""
    value = encode(sorted(entries, key=lambda entry: (entry.tag, entry.id)))
    parse(value)
    return value


def _entry(text: str) -> AclEntry:
    fields = text.split(":")
    if len(fields) not in _FIELDS:
        raise ValueError(f"'{text}' is no entry of an ACL")
    word = _FULL.get(fields[0], fields[0])
    who, letters = fields[1], fields[2]
    if word not in _OWN or set(letters) - set("rwx-") or (who and word not in _NAMED):
        raise ValueError(f"'{text}' is no entry of an ACL")
    permissions = sum(bit for bit, letter in _LETTERS if letter in letters)
    if not who:
        return AclEntry(_OWN[word], permissions)
    known = fields[3] if len(fields) == len("wwpi") and fields[3].isdigit() else who
    return AclEntry(_NAMED[word], permissions, _id(word, known))


def _id(word: str, who: str) -> int:
    if who.isdigit():
        return int(who)
    try:
        return pwd.getpwnam(who).pw_uid if word == "user" else grp.getgrnam(who).gr_gid
    except KeyError:
        raise ValueError(f"there is no {word} '{who}' here") from None
