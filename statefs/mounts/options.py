"""The words of `-o`: what each means, and which are left to mount(8)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final, Literal, Self, get_args

from statefs.errors import UsageError

Durability = Literal["close", "fsync", "write"]


@dataclass(frozen=True)
class MountOptions:
    """What was asked for with `-o`.

    Args:
        allow_other: let every user in, not only the one who mounted.
        allow_root: let root in besides the user who mounted.
        read_only: the kernel refuses every write.
        suid: honour setuid and setgid bits (root only).
        dev: honour device nodes (root only).
        noexec: refuse to run programs.
        adopt: import the files found under the mount point instead of refusing.
        durability: what is on stable storage, and when (docs/semantics.md, "Durability").
    """

    allow_other: bool = False
    allow_root: bool = False
    read_only: bool = False
    suid: bool = False
    dev: bool = False
    noexec: bool = False
    adopt: bool = False
    durability: Durability = "close"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the options of a `-o` text, later words winning over earlier ones.

        Args:
            text: words with commas between them, as mount(8) and fstab(5) write them. Words that
                are meant for mount(8) or systemd are accepted and have no effect.

        Raises:
            UsageError: a word is unknown, or its value is; the message names the nearest known.
        """
        return cls(**_parsed(text))  # type: ignore[arg-type]  # each value fits its field

    @classmethod
    def named(cls, text: str) -> frozenset[str]:
        """Return the fields that a `-o` text names, whatever it says of them.

        Raises:
            UsageError: as parse().
        """
        return frozenset(_parsed(text))

    def differences(self, wanted: Self, named: Iterable[str]) -> list[str]:
        """Return phrases that say how these options differ from `wanted` in the fields `named`."""
        differing = sorted(f for f in named if getattr(self, f) != getattr(wanted, f))
        return [_difference(f, getattr(self, f), getattr(wanted, f)) for f in differing]

    def text(self) -> str:
        """Return the words that parse() turns into these options again; empty for the defaults."""
        words = [f"durability={self.durability}"] if self.durability != "close" else []
        named = {target: word for word, (target, on) in _SWITCHES.items() if on}
        words += [named[f.name] for f in fields(self) if getattr(self, f.name) is True]
        return ",".join(words)


def _parsed(text: str) -> dict[str, bool | str]:
    """Return each field that a `-o` text names, and what it sets it to."""
    values: dict[str, bool | str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = word.partition("=")
        if not equals and name in _SWITCHES:
            target, on = _SWITCHES[name]
            values[target] = on
        elif name == "durability":
            if value not in get_args(Durability):
                known = ", ".join(get_args(Durability))
                raise UsageError(f"durability={value} is not known; choose one of: {known}")
            values[name] = value
        elif name not in _FOR_MOUNT_8 and not name.startswith(("x-", "X-", "comment")):
            raise UsageError(_unknown_option(word))
    if values.get("allow_other") and values.get("allow_root"):
        raise UsageError("allow_other lets root in already: leave allow_root out")
    return values


def _difference(field: str, present: bool | str, wanted: bool | str) -> str:
    """Return one phrase, such as `rw instead of ro`, or `without allow_other`."""
    if field == "durability":
        return f"durability={present} instead of durability={wanted}"
    words: dict[tuple[str, object], str] = {setting: word for word, setting in _SWITCHES.items()}
    if (field, present) in words:
        return f"{words[field, present]} instead of {words[field, wanted]}"
    return f"without {words[field, wanted]}"


_SWITCHES: Final[dict[str, tuple[str, bool]]] = {
    "allow_other": ("allow_other", True),
    "allow_root": ("allow_root", True),
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "noexec": ("noexec", True),
    "exec": ("noexec", False),
    "adopt": ("adopt", True),
}
"""Each word of -o that stands alone: the field it sets, and to what."""

WORDS: Final = (*_SWITCHES, *(f"durability={mode}" for mode in get_args(Durability)))
"""Every word of -o that has an effect."""
_FOR_MOUNT_8: Final = frozenset({
    "_netdev", "async", "atime", "auto", "default_permissions", "defaults", "diratime", "dirsync",
    "group", "iversion", "lazytime", "loud", "mand", "noatime", "noauto", "nodiratime", "nofail",
    "noiversion", "nolazytime", "nomand", "norelatime", "nostrictatime", "nouser", "nousers",
    "owner", "relatime", "silent", "strictatime", "sync", "user", "users",
})  # fmt: skip
"""Words that fstab(5) lines carry for mount(8), or that change nothing for this filesystem."""


def _unknown_option(word: str) -> str:
    known = [*_SWITCHES, *(f"durability={value}" for value in get_args(Durability))]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"the mount option {word} is not known; did you mean {near[0]}?"
    return f"the mount option {word} is not known; statefs knows: {', '.join(known)}"
