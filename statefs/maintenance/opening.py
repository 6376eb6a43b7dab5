"""What a store must be like to be opened: of the current format, or mounted to get there; and
where nothing can be written, closed cleanly, and asked for nothing that would change it.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from statefs.content.objects import FOLDER_NAMES
from statefs.durable import is_on_read_only
from statefs.errors import CorruptStore, OlderStore, ReadOnlyStore, typed
from statefs.layout import StoreLayout, default_store
from statefs.metadata.connection import has_log
from statefs.metadata.schema import APPLICATION_ID, FORMAT_VERSION

_HEADER: Final = struct.Struct(">60x I 4x I")
"""Of a database: user_version and application_id. Source: sqlite.org/fileformat2.html, 1.3."""


def refuse_planted(layout: StoreLayout) -> None:
    """Refuse a store with a link, or something else that statefs has not made, among its files.

    A store that came from elsewhere must not lead out of itself. statefs.toml alone may be a link:
    what it says is trusted anyway.

    Raises:
        CorruptStore: it names what is in the way.
    """
    root = layout.root
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_symlink() and entry.name != layout.config.name:
                raise _planted(Path(entry.path))
    files = (
        layout.meta_db,
        layout.index_json,
        layout.scrub_json,
        layout.trend_json,
        layout.reserve,
        layout.events,
        layout.log,
    )
    for path in (*files, *(Path(f"{layout.meta_db}{end}") for end in ("-wal", "-shm"))):
        _require_kind(path, stat.S_IFREG)
    for path in (layout.objects, layout.snapshots, layout.backups):
        _require_kind(path, stat.S_IFDIR)
    with suppress(FileNotFoundError), os.scandir(layout.objects) as entries:
        for entry in entries:  # what else is there verify tells of, and repair takes away
            if entry.name in FOLDER_NAMES and not entry.is_dir(follow_symlinks=False):
                raise _planted(Path(entry.path))
    # Beside copies of the database lies what a repair has put aside, of any kind: nobody opens it.
    for path in (*layout.snapshots.glob("*"), *layout.backups.glob("meta-v*")):
        _require_kind(path, stat.S_IFREG)


def _require_kind(path: Path, kind: int) -> None:
    try:
        if stat.S_IFMT(path.lstat().st_mode) != kind:
            raise _planted(path)
    except FileNotFoundError:
        pass  # whoever needs it makes it, or says that it is missing


def _planted(path: Path) -> CorruptStore:
    return CorruptStore(
        f"{path} is a link, or of a kind that no such file of a store is, and is not followed: "
        "move it out of the store, or put back what it leads to"
    )


def refuse_older(layout: StoreLayout, state: Path | None = None) -> None:
    """Refuse a store of an older format: mounting it migrates it, and nothing else does.

    Args:
        state: where it belongs, if that is known.

    Raises:
        OlderStore: the message says what to type.
    """
    version = _format_of(layout.meta_db)
    if version is None or version >= FORMAT_VERSION:
        return  # what is newer, or no database, is told when it is opened
    what = f"the store {layout.root} has format {version}, and this statefs uses {FORMAT_VERSION}"
    if is_on_read_only(layout.root):
        raise OlderStore(f"{what}: {_copy_text(layout)} and mount the copy once to migrate it")
    is_beside = state is not None and default_store(state).resolve() == layout.root
    store = [] if is_beside else ["--store", layout.root]
    mount = typed("statefs", "mount", state or "STATE", *store)
    raise OlderStore(f"{what}: '{mount}' migrates it, and keeps a backup; then try again")


def _format_of(database: Path) -> int | None:
    """Return the format that the file's first page tells, None where it is no store's database."""
    try:
        with open(database, "rb") as file:
            header = file.read(_HEADER.size)
    except FileNotFoundError:
        return None
    if len(header) < _HEADER.size:
        return None
    version, identity = _HEADER.unpack(header)
    return int(version) if identity == APPLICATION_ID else None


def refuse_unclean(layout: StoreLayout, was_clean: bool = True) -> None:
    """Refuse a store on a read-only filesystem that would have to be recovered.

    Args:
        was_clean: what the store itself says of its last close.

    Raises:
        ReadOnlyStore: the message says what to do.
    """
    if has_log(layout.meta_db) or not was_clean:
        raise ReadOnlyStore(
            f"{layout.root} was not closed cleanly, and cannot be recovered on a read-only "
            f"filesystem: {_copy_text(layout)} and use the copy with --store"
        )


def refuse_change(layout: StoreLayout) -> None:
    """Refuse what has to write into a store where nothing can be written.

    Raises:
        ReadOnlyStore: the message says what to do.
    """
    if is_on_read_only(layout.root):
        raise ReadOnlyStore(
            f"{layout.root} lies on a read-only filesystem, where its snapshots can only be looked "
            f"at and exported: for more, {_copy_text(layout)} and use the copy with --store"
        )


def _copy_text(layout: StoreLayout) -> str:
    return f"copy it to another disk ('{typed('cp', '-a', layout.root, 'DIR')}')"
