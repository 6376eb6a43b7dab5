"""A journal with broken lines put right: every whole record stays, under its number.

A record that is lost has `LOST` in its place, so that nothing after it changes its number; what
reads the journal says that it is lost. Older versions of the file, from the snapshots of a mounted
state, give lost records back: a journal is only added to, so a number has one record for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from statefs.clock import Clock
from statefs.durable import write_file
from statefs.errors import StateDamaged
from statefs.state.copies import place_aside
from statefs.state.documents import read_bytes
from statefs.state.journal import LOST, line_of, read_journal, record_in

GAP_MAX: Final = 100_000
"""A number that is so much higher than the one before it is no number: the line is broken."""


class Salvage(NamedTuple):
    """What was done to a journal.

    Args:
        path: of the journal.
        aside: where it is as it was; None where there was no file.
        lost: numbers of the records that could not be saved.
        source: an older version that has given records back; None where none was needed.
    """

    path: Path
    aside: Path | None
    lost: list[int]
    source: Path | None

    def text(self) -> str:
        """Return one line about it."""
        kept = "missing" if self.aside is None else f"moved to {self.aside.name}"
        given = "" if self.source is None else f", with records from {self.source}"
        if not self.lost:
            return f"{self.path}: {kept}; made again with all its records{given}"
        lines = ", ".join(map(str, self.lost[:10])) + (", ..." if len(self.lost) > 10 else "")
        return f"{self.path}: {kept}; made again{given}; lost: line {lines}"


def is_broken(path: Path, at_least: int = 0) -> bool:
    """Return whether a journal is missing, has broken lines, or fewer records than that."""
    count = 0
    try:
        for record in read_journal(path):
            count = record.sequence
    except (FileNotFoundError, StateDamaged):
        return True
    return count < at_least <= count + GAP_MAX


def salvage_journal(
    path: Path, clock: Clock, older: Iterable[Path] = (), at_least: int = 0
) -> Salvage:
    """Put a broken journal right; whoever does has the store's lock.

    Args:
        path: of the journal; it may be missing.
        clock: for the name under which the broken one is kept.
        older: versions of it, the newest first.
        at_least: the number of a record that it is known to have had.

    Raises:
        OSError: the disk refused; the journal is as it was.
    """
    data = read_bytes(path) if path.exists() else b""
    records, count = _records_in(data)
    source = None
    if at_least <= count + GAP_MAX:
        count = max(count, at_least)
    for version in older:
        if len(records) == count and count > 0:
            break
        past, past_count = _records_in(read_bytes(version))
        shared = past.keys() & records.keys()
        if past and all(past[number] == records[number] for number in shared):
            gained = past.keys() - records.keys()
            records, count = past | records, max(count, past_count)
            source = version if gained and source is None else source
    lost = [number for number in range(1, count + 1) if number not in records]
    aside = None
    if path.exists():
        aside = place_aside(path, clock)
        write_file(aside, data)
    gap = json.dumps(LOST)
    write_file(
        path,
        b"".join(records.get(number) or line_of(number, gap) for number in range(1, count + 1)),
    )
    return Salvage(path, aside, lost, source)


def _records_in(data: bytes) -> tuple[dict[int, bytes], int]:
    """Return the whole lines by their numbers, and how many records there have been.

    A line without its newline was never acknowledged, and is left out.
    """
    found: dict[int, bytes] = {}
    last = broken = 0
    for line in data.split(b"\n")[:-1]:
        record = record_in(line + b"\n")
        if record is None or not last < record <= last + GAP_MAX:
            broken += 1
            continue
        found[record] = line + b"\n"
        last, broken = record, 0
    return found, last + broken
