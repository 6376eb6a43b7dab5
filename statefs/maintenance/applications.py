"""Applications around a save: prepared before the epoch ends, released whatever happens (hooks/).

Only where the store is mounted: nobody uses the files of a store that is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from statefs.hooks.process import Ending, Held
from statefs.hooks.results import VolumeResult
from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.documents import VolumeManifest

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

log = logging.getLogger(__name__)

Save = Callable[[Sequence[VolumeManifest]], Steps[Snapshot]]
"""What is done while the applications are at rest, given what is known of their volumes."""


def at_rest(store: Store, reason: str, save: Save) -> Steps[tuple[Snapshot, Sequence[str]]]:
    """Run `save` between preparing and releasing the applications of statefs.toml.

    Returns:
        The snapshot, and what failed when the applications were released, a line each.

    Raises:
        InvalidConfig: statefs.toml is wrong. HookFailed: an application could not be prepared;
            all have been released. Exception: what `save` raises.
    """
    held = yield partial(_held, store, reason)
    try:
        prepared = yield held.prepare
        snapshot = yield from save([manifest_of(result) for result in prepared])
    except Exception as error:
        _tell((yield partial(held.release, Ending(snapshot=None, error=str(error)))))
        raise
    else:
        problems: Sequence[str] = yield partial(held.release, Ending(snapshot=snapshot.name))
        _tell(problems)
        return snapshot, problems
    finally:
        held.let_go()


def _held(store: Store, reason: str) -> Held:
    mount_point = store.host.mount_point()
    if mount_point is None:
        return Held((), store.layout.root, reason)
    return Held(store.settings.read().volumes, mount_point / "current", reason)


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        log.warning("an application was not released after a save: %s", problem)


def noted(volumes: Sequence[VolumeManifest], problems: Sequence[str]) -> list[VolumeManifest]:
    """Return volumes with what failed when they were released.

    Args:
        problems: a line each, which begins with `volume NAME: ` where it is known of which.
    """
    found: list[VolumeManifest] = []
    for volume in volumes:
        head = f"volume {volume.name}: "
        notes = [f"not released: {p.removeprefix(head)}" for p in problems if p.startswith(head)]
        found.append(replace(volume, notes=[*volume.notes, *notes]) if notes else volume)
    return found


def manifest_of(result: VolumeResult) -> VolumeManifest:
    """Return what metadata.json says of a volume that was prepared."""
    return VolumeManifest(
        name=result.name,
        path=result.folder,
        consistency=result.consistency,
        format=result.format,
        bytes=result.bytes,
        dump=result.dump,
        notes=list(result.notes),
    )
