"""Long operations tell how far they are; given up by who asked, they leave the store as it was."""

from __future__ import annotations

from typing import Any, Final

import pytest

from statefs.errors import StatefsError
from statefs.ids import TREE_ROOT
from statefs.maintenance import cloning, pruning, steps
from statefs.maintenance.commands import Commands
from statefs.snapshots import restore_plan, sharing
from tests.unit.engine_store import EngineStore, tree_of
from tests.unit.test_rereading import Listener

FILES: Final = 12
BIG: Final = b"x" * 10_000


@pytest.fixture
def filled(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> EngineStore:
    """A store with some snapshots; operations tell of each thing that they look at."""
    monkeypatch.setattr(restore_plan, "PROGRESS_INODES", 1)
    monkeypatch.setattr(sharing, "PROGRESS_OBJECTS", 1)
    monkeypatch.setattr(cloning, "INODES_PER_STEP", 1)
    monkeypatch.setattr(pruning, "REMOVED_PER_STEP", 1)
    files = [engine.file(f"f{number}", BIG) for number in range(FILES)]
    for _ in range(3):
        engine.save()
        for each in files:
            engine.data.write(each, 5, b"changed")
    engine.store.layout.config.write_text("[retention]\nkeep_last = 1\n")
    return engine


RESTORE: Final = {"snapshot": "latest", "paths": [], "force": True, "dry_run": False}
CLONE: Final = {"snapshot": "latest", "name": "c", "path": ""}
OPERATIONS: Final[list[tuple[str, dict[str, Any], str, str]]] = [
    ("restore", RESTORE, "finding out what changed", "files"),
    ("clone", CLONE, "copying ", "files"),
    ("prune", {"dry_run": False}, "measuring what is freed", "objects"),
    ("prune", {"dry_run": False}, "deleting", "snapshots"),
    ("sizes", {}, "measuring what is freed", "objects"),
    ("verify", {}, "checking rules", "rules"),
]


@pytest.mark.parametrize(("op", "arguments", "what", "unit"), OPERATIONS)
def test_it_is_told_how_far_it_is(
    filled: EngineStore, op: str, arguments: dict[str, Any], what: str, unit: str
) -> None:
    """From the beginning on, never more than there is, never back."""
    asker = Listener()
    steps.run(Commands(filled.store).start(op, arguments, asker))
    heard = [each for each in asker.heard if each["what"].startswith(what)]
    done = [each["done"] for each in heard]
    assert len(set(done)) > 1 and done == sorted(done)
    assert all(each["done"] <= each["total"] and each["unit"] == unit for each in heard)


@pytest.mark.parametrize(("op", "arguments"), [("restore", RESTORE), ("undo", {"force": True})])
def test_a_restore_given_up_has_changed_nothing(
    filled: EngineStore, op: str, arguments: dict[str, Any]
) -> None:
    """While it finds out what to do; no snapshot is taken either."""
    if op == "undo":
        steps.run(Commands(filled.store).start("restore", RESTORE, Listener()))
    before, count = tree_of(filled), len(filled.store.catalog.snapshots)
    with pytest.raises(StatefsError, match="nobody waits"):
        steps.run(Commands(filled.store).start(op, arguments, Listener(patience=2)))
    assert tree_of(filled) == before
    assert len(filled.store.catalog.snapshots) == count
    assert filled.problems() == []


def test_a_clone_given_up_is_gone(filled: EngineStore) -> None:
    """With what was copied of it by then; its name is free."""
    rows = filled.rows("inodes")

    def start(asker: Listener) -> Any:
        return steps.run(Commands(filled.store).start("clone", CLONE, asker))

    with pytest.raises(StatefsError, match="nobody waits"):
        start(Listener(patience=3))
    assert filled.rows("inodes") > rows
    filled.store.collect()
    assert filled.rows("inodes") == rows
    assert start(Listener())["name"] == "c"
    assert filled.names.lookup(TREE_ROOT, b"f0").is_file
    assert filled.problems() == []


def test_pruning_given_up_has_deleted_some(filled: EngineStore) -> None:
    """Whole snapshots, the oldest first; pruning again deletes the others."""
    asker = Listener()
    steps.run(Commands(filled.store).start("prune", {"dry_run": True}, asker))
    with pytest.raises(StatefsError, match="nobody waits"):
        steps.run(
            Commands(filled.store).start(
                "prune", {"dry_run": False}, Listener(patience=len(asker.heard) + 1)
            )
        )
    filled.store.collect()
    assert len(filled.store.catalog.snapshots) == 2
    assert filled.problems() == []
    done = steps.run(Commands(filled.store).start("prune", {"dry_run": False}, Listener()))
    assert done["removed"] == 1
    filled.store.collect()
