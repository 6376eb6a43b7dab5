"""What is known of a volume after it was prepared or checked. Values only."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Consistency = Literal["crash-consistent", "app-consistent", "verified"]
"""What is known of a volume's content: as after a power cut; hooks ran; opened and checked."""

Kind = Literal["sqlite", "postgres", "json"]
"""What is opened when a snapshot is checked."""
CONSISTENCY_LABEL: Final = "consistency"
"""The label that tells how a check of a snapshot ended."""


class DumpResult(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A logical dump that was made before a save."""

    path: str
    bytes: int
    digest: str


class VolumeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of preparing one volume.

    Args:
        folder: below current/.
        format: what the data is: "files", "sqlite", "postgres-15".
        bytes: the size of the databases in it, where there are some.
        notes: what a person should know, e.g. that a server does not run.
    """

    name: str
    folder: str
    consistency: Consistency = "crash-consistent"
    format: str = "files"
    bytes: int | None = None
    dump: DumpResult | None = None
    notes: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was opened in a copy of a snapshot.

    Args:
        path: below the folder that was checked.
        kind: "sqlite", "postgres" or "json".
        problem: what is wrong with it, None when it is sound.
        unchecked: why it could not be looked at, None when it was.
        note: what a person should know of how it was looked at, None where all went as usual.
    """

    path: str
    kind: Kind
    problem: str | None = None
    unchecked: str | None = None
    note: str | None = None
