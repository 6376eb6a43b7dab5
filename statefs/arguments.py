"""What a program gives to the API, made into the plain values that operations take.

An operation is asked in this process or over a socket (statefs/doors.py): a type that only one of
these ways would notice is refused here; the rest the operation checks (maintenance/commands.py).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from typing import Any

from statefs.errors import UsageError
from statefs.snapshots.documents import SnapshotDocument

AnyPath = str | bytes | os.PathLike[str]
"""A path relative to current/."""
AnySnapshot = str | SnapshotDocument
"""A snapshot as the command line takes it, or as `save`, `show` and `list_snapshots` return it."""


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as they go to an operation; a snapshot's document goes as its name.

    Raises:
        UsageError: one has a type that no operation takes.
    """
    return {name: _plain(name, value) for name, value in arguments.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, SnapshotDocument):
        return value.name
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(name, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise UsageError(f"{name} takes plain values, such as text, not {type(value).__name__}")


def listed_paths(paths: object) -> list[str]:
    """Return one path, or several, as a list of them.

    Raises:
        UsageError: one is no text.
    """
    listed: list[Any] = [paths]
    if isinstance(paths, Iterable) and not isinstance(paths, str | bytes):
        listed = list(paths)
    for each in listed:
        if not isinstance(each, str):
            raise UsageError(f"each of the paths is text, not {type(each).__name__}")
    return listed


def encoded_path(path: AnyPath) -> str:
    """Return a path in base64: it may be no UTF-8.

    Raises:
        UsageError: it is no path.
    """
    try:
        return base64.b64encode(os.fsencode(path)).decode("ascii")
    except TypeError:
        raise UsageError(f"a path is text or bytes, not {type(path).__name__}") from None
