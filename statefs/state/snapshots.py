"""Snapshots for a folder that lies in a mounted state, through the doors every program has.

Asks the mount table and makes folders; needs neither the engine nor its socket.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from statefs.errors import SnapshotExists
from statefs.mounts import place_in_mount

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?Z")


@dataclass(frozen=True)
class MountedFolder:
    """A folder in the living part of a mounted state.

    Args:
        mount_point: of the state.
        place: of the folder, relative to `current/`.
    """

    mount_point: Path
    place: PurePosixPath

    def take_snapshot(self, label: str) -> Path:
        """Take a snapshot with the label `name`, and return its folder; it is durable then.

        Raises:
            SnapshotExists: another one has that label.
            OSError: the state refused it.
        """
        folder = self.mount_point / "snapshots" / label
        try:
            os.mkdir(folder)
        except FileExistsError:
            raise SnapshotExists(f"there is a snapshot '{label}' already") from None
        return folder

    def past_of(self, name: str) -> Iterator[Path]:
        """Return the file of that name in this folder in each snapshot, the newest first."""
        snapshots = self.mount_point / "snapshots"
        times = (each.name for each in os.scandir(snapshots) if _TIME.fullmatch(each.name))
        for time in sorted(times, key=lambda text: text.rstrip("Z"), reverse=True):
            path = snapshots / time / self.place / name
            if path.is_file():
                yield path


def mounted_folder(folder: Path) -> MountedFolder | None:
    """Return where in a mounted state a folder lies; None outside of `current/` of one.

    None, too, where only a part of a state is mounted, so that its doors are out of reach.
    """
    found = place_in_mount(folder)
    if found is None or found[0].root != "/" or found[1].parts[:1] != ("current",):
        return None
    return MountedFolder(found[0].mount_point, PurePosixPath(*found[1].parts[1:]))
