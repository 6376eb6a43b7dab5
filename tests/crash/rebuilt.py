"""Stores as a power cut may have left them: put on a disk, looked at, opened, verified."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec

from statefs.content.objects import FOLDERS, ObjectFiles
from statefs.ids import ObjectId
from statefs.layout import StoreLayout
from statefs.maintenance import store
from statefs.snapshots.documents import ChangedPaths, IndexDocument, IndexEntry, SnapshotDocument
from tests.crash.disk import UNWATCHED, Image
from tests.crash.engine import clones_of, ino_of, key_of, living_tree_of, snapshot_trees_of
from tests.harness.trees import Tree
from tests.unit.engine_store import EngineStore

KINDS: Final[dict[str, type]] = {".json": SnapshotDocument, ".changed": ChangedPaths}
"""What lies beside the snapshots' documents, by the end of its name."""


@dataclass
class Found:
    """What a store holds that was opened after a power cut.

    Args:
        listed: the snapshots that index.json named before the store was opened.
        documented: those that had a document then.
        noted: the snapshots of which it is known what a restore changed after them.
        sealed: those that have a digest.
        problems: documents that were torn, and rules that the store breaks.
    """

    living: Tree
    snapshots: dict[bytes, Tree]
    clones: dict[bytes, Tree]
    contents: dict[bytes, bytes]
    listed: frozenset[bytes]
    documented: frozenset[bytes]
    noted: frozenset[bytes]
    sealed: frozenset[bytes]
    problems: list[str]


class Place:
    """A folder for one such store after the other; what they have in common stays there.

    Args:
        root: a folder that does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700)
        for number in range(FOLDERS):
            (root / f"objects/{number:02x}").mkdir(mode=0o700, parents=True)
        (root / "snapshots").mkdir(mode=0o700)

    def put(self, image: Image) -> None:
        """Make the folder hold an image, and nothing else."""
        layout = StoreLayout(self.root)
        entries = (entry for each in (self.root, layout.snapshots) for entry in os.scandir(each))
        for path in (Path(entry) for entry in entries if entry.is_file()):
            if path.name not in UNWATCHED:
                path.unlink()
        for number in ObjectFiles(layout).present():
            layout.object_path(ObjectId(number)).unlink()
        image.write_to(self.root)

    def opened(self, image: Image) -> Found:
        """Return what is found when a disk holds an image and the machine was started again."""
        self.put(image)
        listed, documented, torn = _documents(image)
        with (
            patch.object(store, "boot_id", lambda: "another"),
            EngineStore(self.root) as engine,
        ):
            living, snapshots = living_tree_of(engine), snapshot_trees_of(engine)
            contents = {
                path: engine.content(ino_of(engine, path))
                for path, entry in living.items()
                if entry.kind == "-"
            }
            noted = frozenset(
                key_of(each)
                for each in engine.store.catalog.snapshots
                if engine.store.read_changed(each) is not None
            )
            sealed = frozenset(
                key_of(each) for each in engine.store.catalog.snapshots if each.state_digest
            )
            return Found(
                living, snapshots, clones_of(engine), contents, listed, documented, noted, sealed,
                torn + engine.problems(),
            )  # fmt: skip


def _documents(image: Image) -> tuple[frozenset[bytes], frozenset[bytes], list[str]]:
    """Return which snapshots index.json lists, which have a document, and documents not whole."""
    torn: list[str] = []
    listed: frozenset[bytes] = frozenset()
    documented: set[bytes] = set()
    try:
        index = msgspec.json.decode(image.file(".", "index.json") or b"", type=IndexDocument)
        listed = frozenset(map(_key, index.snapshots))
    except msgspec.MsgspecError as error:
        torn.append(f"index.json is not whole: {error}")
    for name in image.names.get(StoreLayout(Path()).snapshots.name, {}):
        kind = KINDS.get(Path(name).suffix)
        if kind is None:
            continue  # a temporary file
        try:
            document: Any = msgspec.json.decode(image.file("snapshots", name) or b"", type=kind)
            if isinstance(document, SnapshotDocument):
                documented.add(_key(document))
        except msgspec.MsgspecError as error:
            torn.append(f"{name} is not whole: {error}")
    return listed, frozenset(documented), torn


def _key(document: IndexEntry | SnapshotDocument) -> bytes:
    """Return by what name these tests know a snapshot (`key_of`)."""
    return (document.labels.get("name") or document.name).encode()
