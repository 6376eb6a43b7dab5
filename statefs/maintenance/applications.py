"""Applications around a save: prepared before the epoch ends, released whatever happens (hooks/).

Only where the store is mounted: nobody uses the files of a store that is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

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


def at_rest(store: Store, reason: str, save: Save) -> Steps[Snapshot]:
    """Run `save` between preparing and releasing the applications of statefs.toml.

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
        _tell((yield partial(held.release, Ending(snapshot=snapshot.name))))
        return snapshot
    finally:
        held.let_go()


def _held(store: Store, reason: str) -> Held:
    mount_point = store.host.mount_point()
    if mount_point is None:
        return Held((), store.layout.root, reason)
    return Held(store.settings.read().volumes, mount_point / "current", reason)


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        log.warning("releasing an application after a save failed: %s", problem)


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
