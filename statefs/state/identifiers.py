"""Names that callers choose, as names of files: checked, reversible, never two for one.

A name may hold anything that a person or a program puts into an id; what a file name cannot hold,
or what some system would understand otherwise, is percent-encoded. Only here are file names made.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from statefs.errors import UsageError

NAME_BYTES_MAX: Final = 255 - 40
"""Of a file name: NAME_MAX of Linux's filesystems (pathconf(3)), less the room that the name of a
temporary file, a copy or a broken file set aside needs beside it."""

_ENCODED: Final = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^\.|(?<=\.)\.|[. ]$')
"""What is encoded: what Windows or a shell refuses, a dot that hides a file or leads out of a
folder, and a dot or blank at the end, which Windows drops."""


def checked_id(text: object, what: str = "id") -> str:
    """Return `text` if it can name something in a store.

    Args:
        text: what a caller gave.
        what: it is meant to name, for the message.

    Raises:
        UsageError: it is no text, empty, or no UTF-8.
    """
    if not isinstance(text, str):
        raise UsageError(f"the {what} is no text, but of type {type(text).__name__}")
    if not text:
        raise UsageError(f"the {what} is empty")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"the {what} is not UTF-8")
    return text


def file_name_of(name: str, suffix: str = "", what: str = "id") -> str:
    """Return the file name that stands for a name; no other name has it.

    Args:
        name: checked here.
        suffix: of the file, such as `.json`; ASCII.
        what: the name names, for the message.

    Raises:
        UsageError: see `checked_id`; or the file name would be too long.
    """
    encoded = _ENCODED.sub(lambda hit: f"%{ord(hit[0]):02X}", checked_id(name, what))
    length = len(encoded.encode()) + len(suffix)
    if length > NAME_BYTES_MAX:
        raise UsageError(
            f"the {what} '{name[:40]}...' makes a file name of {length} bytes; "
            f"{NAME_BYTES_MAX} are allowed"
        )
    return encoded + suffix


def name_of_file(file_name: str, suffix: str = "") -> str | None:
    """Return the name that a file name stands for; None for a file that stands for none."""
    if not file_name.endswith(suffix) or file_name == suffix:
        return None
    try:
        name = unquote_to_bytes(file_name.removesuffix(suffix)).decode()
        return name if file_name_of(name, suffix) == file_name else None
    except (UnicodeError, UsageError):
        return None
