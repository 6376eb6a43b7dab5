"""Where each piece of a store lies. Owns names of files and folders; opens and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from statefs.ids import ObjectId

STORE_SUFFIX: Final = ".store"
CURRENT_FOLDERS: Final = ("files", "volumes", "runtime")
"""Folders that `statefs init` makes in current/."""
RUNTIME: Final = b"runtime"
"""The folder of current/ that snapshots leave out (it is the supervisor's, not user data)."""


@dataclass(frozen=True)
class StoreLayout:
    """The paths inside one store.

    Args:
        root: the store's folder (mode 0700).
    """

    root: Path

    @property
    def meta_db(self) -> Path:
        """The SQLite database of names, attributes, extents and small files."""
        return self.root / "meta.db"

    @property
    def objects(self) -> Path:
        """The folder of object files, in 256 folders by the last byte of their number."""
        return self.root / "objects"

    @property
    def reserve(self) -> Path:
        """Room held back, so that deleting works on a full disk (content/reserve.py)."""
        return self.root / "reserve"

    @property
    def lock(self) -> Path:
        """Locked with flock(2) by the one process that has the store open; names its pid."""
        return self.root / "lock"

    @property
    def control_socket(self) -> Path:
        """The daemon's Unix socket (0600)."""
        return self.root / "control.sock"

    @property
    def index_json(self) -> Path:
        """The copy of index.json kept as a plain file."""
        return self.root / "index.json"

    @property
    def snapshots(self) -> Path:
        """The folder of copies of metadata.json, one `NAME.json` for each snapshot."""
        return self.root / "snapshots"

    @property
    def backups(self) -> Path:
        """Copies of meta.db (maintenance/backups.py)."""
        return self.root / "backups"

    @property
    def config(self) -> Path:
        """The store's settings, written by people (config.py)."""
        return self.root / "statefs.toml"

    @property
    def scrub_json(self) -> Path:
        """What the last scrub found (maintenance/scrubbing.py)."""
        return self.root / "scrub.json"

    @property
    def trend_json(self) -> Path:
        """How the room on the disk has changed (telemetry/kept_trend.py)."""
        return self.root / "trend.json"

    @property
    def events(self) -> Path:
        """The newest events, a line of JSON for each (telemetry/kept.py)."""
        return self.root / "events.jsonl"

    @property
    def log(self) -> Path:
        """What a daemon in the background writes to its standard error."""
        return self.root / "statefs.log"

    def object_path(self, object_id: ObjectId) -> Path:
        """Return the path of an object file: objects/<low byte>/<number>, both hexadecimal."""
        return self.objects / f"{object_id & 0xFF:02x}" / f"{object_id:x}"


def default_store(state: Path) -> Path:
    """Return the store that belongs to a mount point when none is named: `STATE.store`."""
    return state.parent / f"{state.name}{STORE_SUFFIX}"
