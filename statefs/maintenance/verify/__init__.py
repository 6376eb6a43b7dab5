"""Checking a store against the numbered rules of docs/on-disk-format.md. Reads only.

Each rule is one `check_*` function over one read transaction, so a mount may go on meanwhile. What
is found is looked for once more a moment later: a save or a deletion under way may look like damage
between two of its steps, real damage stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import apsw
import msgspec

from statefs.errors import StatefsError
from statefs.layout import StoreLayout
from statefs.maintenance.verify import attributes, catalog, content, digests, history, tree
from statefs.maintenance.verify.reading import Reading
from statefs.metadata.connection import refused

Check = Callable[[Reading], Iterator[str]]

SHOWN_MAX: Final = 100
"""Problems told of one rule: a broken store should not print a million lines."""
STEP_SECONDS: Final = 1.0
"""Longer than a save takes from one of its steps to the next, as a rule."""

CHECKS: Final[Mapping[str, Check]] = {
    "R01": history.check_pages,
    "R02": history.check_store_keys,
    "R03": history.check_lifetimes,
    "R04": history.check_versions,
    "R05": history.check_past_is_pinned,
    "R06": history.check_numbers,
    "R07": tree.check_root,
    "R08": tree.check_entries,
    "R09": tree.check_names,
    "R10": tree.check_links,
    "R11": tree.check_folders,
    "R12": tree.check_reachable,
    "R13": tree.check_types,
    "R14": attributes.check_flags,
    "R15": attributes.check_values,
    "R16": content.check_inline,
    "R17": content.check_extents,
    "R18": content.check_owners,
    "R19": content.check_object_files,
    "R20": content.check_surplus_objects,
    "R21": catalog.check_snapshots,
    "R22": catalog.check_counts,
    "R23": catalog.check_totals,
    "R24": catalog.check_lists,
    "R25": catalog.check_documents,
    "R26": digests.check_digests,
    "R27": digests.check_state_digests,
    "R28": digests.check_sealed,
    "R29": content.check_shared,
    "R30": content.check_displaced,
}
"""Every rule and what checks it, in the order of the document."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A broken rule: its number, and what breaks it.

    Args:
        path: of the file or folder, where its content is what is wrong (D01, D02).
        snapshots: the names of those that see it.
        ranges: [start, end) of the bytes of a file that are damaged.
    """

    rule: str
    message: str
    path: str | None = None
    snapshots: Sequence[str] = ()
    ranges: Sequence[tuple[int, int]] = ()


def verify(
    layout: StoreLayout,
    totals: tuple[int, int] | None = None,
    on_rule: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Return every problem found in a store, in the order of the rules.

    Args:
        layout: a store that this process has open, or nobody.
        totals: files and bytes as the process counts them that has the store open and changes
            nothing meanwhile; without it they are checked after a clean close only.
        on_rule: told before each rule how many of how many have been checked; may raise to give up.

    Raises:
        OSError: a right, a descriptor or memory is missing to look: no problem of the store's.
    """
    found = _look(layout, CHECKS, totals, on_rule)
    if not found:
        return []
    time.sleep(STEP_SECONDS)
    again = set(_look(layout, {problem.rule for problem in found}, totals))
    return [problem for problem in found if problem in again]


def _look(
    layout: StoreLayout,
    rules: Iterable[str],
    totals: tuple[int, int] | None,
    on_rule: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Return what breaks some of the rules, as of one moment."""
    try:
        reading = Reading(layout, totals)
    except (apsw.Error, StatefsError) as error:
        return [Problem(rule="R01", message=f"meta.db cannot be read: {error}")]
    try:
        found = []
        for number, (rule, check) in enumerate(CHECKS.items()):
            if on_rule is not None:
                on_rule(number, len(CHECKS))
            if rule in rules:
                found += [Problem(rule=rule, message=each) for each in _messages(check, reading)]
        return found
    finally:
        reading.close()


def _messages(check: Check, reading: Reading) -> list[str]:
    """Run one check; that the store does not let it run is a problem, too."""
    messages: list[str] = []
    try:
        messages.extend(islice(check(reading), SHOWN_MAX + 1))
    except (apsw.Error, LookupError, TypeError, ValueError) as error:
        if isinstance(error, apsw.Error) and (why := refused(reading.layout.meta_db, error)):
            raise why from error
        messages.append(f"could not be checked: {error!r}")
    if len(messages) > SHOWN_MAX:
        messages[SHOWN_MAX:] = [f"and more of that kind, not shown after {SHOWN_MAX}"]
    return messages
