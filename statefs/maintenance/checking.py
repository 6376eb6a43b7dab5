"""Checking what a snapshot holds, and writing down how that ended.

The work is done on the mount by a process of its own (hooks/process.py), beside saves and deletes:
in a clone that is thrown away, or, where only some folders are looked at, in copies.
Writing down is an operation by itself, because one that changes a snapshot's documents excludes the
others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from statefs.errors import NotMounted
from statefs.hooks.process import CheckRequest, check_in_process
from statefs.hooks.results import CONSISTENCY_LABEL, Consistency, Finding
from statefs.maintenance import cloning, saving
from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.documents import VolumeManifest, folder_of

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

NOTES_MAX: Final = 20
"""How many problems of one volume go into metadata.json, which each reader of it pays for."""
NOTE: Final = "check: "
"""How notes begin that a check has left, and that the next one replaces."""


class Listener(NamedTuple):
    """Who waits for a check.

    Args:
        report: told how many things have been opened.
        is_wanted: whether the check should go on.
    """

    report: Callable[[int], None]
    is_wanted: Callable[[], bool]


class Report(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """How a check ended.

    Args:
        outcome: "damaged", "unchecked" where something could not be looked at, "verified", or null
            where there was nothing to open. The label `consistency`.
        opened: how many of each kind.
        findings: all databases, and of the documents those that are not sound.
        volumes: the volumes in which something was opened, as their manifests will be.
    """

    snapshot_id: str
    name: str
    outcome: str | None
    opened: dict[str, int]
    findings: list[Finding]
    volumes: list[CheckedVolume]


class CheckedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """What a check changes in a volume's manifest."""

    name: str
    consistency: Consistency
    notes: list[str]


def check(
    store: Store, snapshot: Snapshot, listener: Listener, original: str | None = None
) -> Steps[Report]:
    """Open the databases and documents of a snapshot in a throw-away clone; return what came of it.

    Args:
        original: where programs know `current/`; left out, where it is mounted now.

    Raises:
        NotMounted: programs can open nothing in a store that is not. HookFailed: the work failed.
        NoSuchSnapshot: it was deleted before its clone was made. OSError: the disk refused that.
    """
    mount_point = yield from _mounted_at(store)
    with cloning.throw_away(store) as name:
        yield partial(store.host.alone, _clone(store, snapshot, name))
        request = CheckRequest(
            tree=str(mount_point / "clones" / os.fsdecode(name)),
            original=original or str(mount_point / "current"),
            is_writable=True,
        )
        found: list[Finding] = yield lambda: _collected(request, listener)
    return report_of(snapshot, found)


def _clone(store: Store, snapshot: Snapshot, name: bytes) -> Steps[None]:
    yield from cloning.clone(store, store.catalog.choose(snapshot.name), name)


def check_folders(
    store: Store, snapshot: Snapshot, listener: Listener, folders: Sequence[str]
) -> Steps[Report]:
    """Check some folders of a snapshot, each database in a copy.

    Not in a clone, as `check`: after each save it would write a row for every file of the snapshot
    and delete it again, and hold up the next save meanwhile. A clone of the folders alone would
    leave out what links of PostgreSQL lead to elsewhere in current/, tablespaces and logs, and so
    call a sound cluster damaged. The price is a copy of the databases; `check = false` avoids it.

    Raises:
        NotMounted, HookFailed: as `check`.
    """
    mount_point = yield from _mounted_at(store)
    request = CheckRequest(
        tree=str(mount_point / "snapshots" / snapshot.name),
        original=str(mount_point / "current"),
        folders=tuple(folders),
    )
    found: list[Finding] = yield lambda: _collected(request, listener)
    return report_of(snapshot, found)


def _mounted_at(store: Store) -> Steps[Path]:
    mount_point: Path | None = yield store.host.mount_point
    if mount_point is None:
        raise NotMounted("what a snapshot holds is opened on the mount: 'statefs mount' it first")
    return mount_point


def _collected(request: CheckRequest, listener: Listener) -> list[Finding]:
    found: list[Finding] = []
    for finding in check_in_process(request, listener.is_wanted):
        found.append(finding)
        listener.report(len(found))
    return sorted(found, key=lambda finding: finding.path)


def report_of(snapshot: Snapshot, findings: Sequence[Finding]) -> Report:
    """Return how a check ended that has found `findings`."""
    volumes = (_checked(volume, findings) for volume in snapshot.volumes)
    return Report(
        snapshot_id=snapshot.uuid,
        name=snapshot.name,
        outcome=_outcome(findings),
        opened=dict(sorted(Counter(finding.kind for finding in findings).items())),
        findings=[each for each in findings if each.kind != "json" or _is_bad(each)],
        volumes=[volume for volume in volumes if volume is not None],
    )


def _outcome(findings: Sequence[Finding]) -> str | None:
    if any(finding.problem for finding in findings):
        return "damaged"
    if any(finding.unchecked for finding in findings):
        return "unchecked"
    return "verified" if findings else None


def _checked(volume: VolumeManifest, findings: Sequence[Finding]) -> CheckedVolume | None:
    folder = Path(folder_of(volume))
    own = [finding for finding in findings if Path(finding.path).is_relative_to(folder)]
    if not own:
        return None
    notes = [note for note in volume.notes if not note.startswith(NOTE)]
    told = [f"{NOTE}{each.path}: {each.problem or each.unchecked}" for each in own if _is_bad(each)]
    consistency = volume.consistency
    if not told:
        consistency = "verified"
    elif consistency == "verified" or any(finding.problem for finding in own):
        consistency = "crash-consistent"
    return CheckedVolume(
        name=volume.name, consistency=consistency, notes=[*notes, *told[:NOTES_MAX]]
    )


def _is_bad(finding: Finding) -> bool:
    return finding.problem is not None or finding.unchecked is not None


def write_down(
    store: Store, snapshot: Snapshot, outcome: str | None, volumes: Sequence[CheckedVolume]
) -> Steps[Snapshot]:
    """Put the outcome of a check into the snapshot's manifests and its label `consistency`.

    Args:
        outcome: of the whole snapshot; None leaves the label as it is.
    """
    if outcome is None and not volumes:
        yield from ()
        return snapshot
    by_name = {volume.name: volume for volume in volumes}
    amended = [
        replace(each, consistency=checked.consistency, notes=checked.notes)
        if (checked := by_name.get(each.name))
        else each
        for each in snapshot.volumes
    ]
    labels = snapshot.labels | ({} if outcome is None else {CONSISTENCY_LABEL: outcome})
    return (yield from saving.amend(store, snapshot, volumes=amended, labels=labels))
