"""What is done when a folder of tasks is opened, and when it is read again."""

from __future__ import annotations

import logging

from statefs.clock import Clock
from statefs.state.snapshots import MountedFolder
from statefs.state.task_backups import StateBackups
from statefs.state.task_files import TaskFiles
from statefs.state.task_migration import migrated
from statefs.state.task_recovery import Recovered, read_beside_a_writer, recovered, set_aside
from statefs.state.task_saving import TaskSaving

_log = logging.getLogger(__name__)


def load_to_read(files: TaskFiles, backups: StateBackups, saving: TaskSaving) -> Recovered:
    """Have the memory say what the files say; they stay as they are.

    Raises:
        NewerStore, NoMigration, OSError: see `recovered`.
    """
    found = read_beside_a_writer(files, backups)
    _adopt(found, saving)
    return found


def load_to_write(
    files: TaskFiles,
    backups: StateBackups,
    saving: TaskSaving,
    clock: Clock,
    mounted: MountedFolder | None,
) -> Recovered:
    """Have the memory say what the files say, and then the files what is known.

    Files that are broken are set aside, older ones migrated, missing ones written again. What
    cannot be written stays in memory; a migration is undone then.

    Raises:
        NewerStore, NoMigration, OSError: see `recovered`.
        OSError: the disk refused a migration, or to set a file aside.
    """
    found = recovered(files, backups)
    _adopt(found, saving)
    files.make_folders()
    for path, aside in set_aside(found, files, clock):
        _log.warning("%s: what it was is in %s", path, aside.name)
    if found.older:
        migrated(files, found.older, saving.save_all, clock, mounted)
    elif saving.unsaved():
        saving.save_or_log()
    return found


def _adopt(found: Recovered, saving: TaskSaving) -> None:
    for loss in found.losses:
        _log.warning("%s", loss.message)
    saving.adopt(found)
