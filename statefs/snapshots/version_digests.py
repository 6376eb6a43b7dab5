"""The SHA-256 of versions of a file that nobody has stored, taken by whoever asks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from statefs.snapshots.reports import Version, path_bytes

VERSION_BYTES_MAX: Final = 4 << 20
"""Versions up to this size are hashed without being asked for: some hundredths of a second."""
ALL_BYTES_MAX: Final = 64 << 20
"""All together, so that a long history answers at once, too."""

Reading = Callable[[str, bytes], Iterator[bytes]]
"""Yields the bytes of a path in a snapshot."""


def with_digests(
    versions: Sequence[Version],
    read: Reading,
    wanted: bool | None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[Version]:
    """Return versions with their digests.

    Args:
        versions: of one path, oldest first.
        wanted: whether to hash what has no digest yet: None does so while it is cheap.
        on_progress: told how many bytes of how many have been read; may raise to give up.
    """
    chosen = _chosen(versions, wanted)
    total, done = sum(versions[number].size or 0 for number in chosen), 0
    found = list(versions)
    for number in chosen:
        version = versions[number]
        digest = hashlib.sha256()
        for part in read(version.snapshot, path_bytes(version.path, version.raw_path)):
            digest.update(part)
            done += len(part)
            if on_progress is not None:
                on_progress({"what": "hashing", "done": done, "total": total, "unit": "bytes"})
        found[number] = msgspec.structs.replace(version, sha256=digest.hexdigest())
    return found


def _chosen(versions: Sequence[Version], wanted: bool | None) -> list[int]:
    """Return the places of versions that are to be hashed."""
    chosen: list[int] = []
    left_bytes = ALL_BYTES_MAX
    for number, version in enumerate(versions):
        if version.type != "file" or version.size is None or version.sha256 is not None:
            continue
        if wanted or (wanted is None and version.size <= min(VERSION_BYTES_MAX, left_bytes)):
            left_bytes -= version.size
            chosen.append(number)
    return chosen
