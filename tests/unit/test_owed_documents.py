"""Documents that a save or a deletion could not bring up to date are so a moment later."""

from __future__ import annotations

import errno
from contextlib import nullcontext

import pytest

from statefs.errors import PosixError
from statefs.maintenance import restoring, steps, store
from statefs.maintenance.commands import Commands
from statefs.maintenance.store import Store
from statefs.snapshots.catalog import Catalog
from statefs.snapshots.restore import Restored
from tests.unit.engine_store import EngineStore
from tests.unit.test_rereading import Listener


def refused(*_: object) -> None:
    """Do what a disk does that is broken for a moment."""
    raise OSError(5, "Input/output error")


def test_a_deletion_that_failed_late_leaves_no_document(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is gone; its document and its line of index.json go later."""
    epoch = engine.save()
    with monkeypatch.context() as broken:
        broken.setattr(store, "write_file", refused)
        with pytest.raises(OSError, match="Input/output"):
            engine.delete(epoch)
    assert engine.problems() != []
    engine.store.pay_documents()
    assert engine.problems() == []


def test_a_save_that_failed_late_is_told_of_in_the_index(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of snapshots was touched, and index.json says when."""
    with monkeypatch.context() as broken:
        broken.setattr(Store, "write_document", refused)
        with pytest.raises(OSError, match="Input/output"):
            engine.save()
    engine.store.pay_documents()
    assert engine.problems() == []


def test_what_a_deletion_left_goes_although_a_save_has_come_since(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save has written index.json; the document of the other one is owed all the same."""
    epoch = engine.save()
    with monkeypatch.context() as broken:
        broken.setattr(Store, "remove_documents", refused)
        with pytest.raises(OSError, match="Input/output"):
            engine.delete(epoch)
    engine.save()
    assert engine.store.owes_documents
    engine.store.pay_documents()
    assert engine.problems() == []
    assert not engine.store.owes_documents


def test_a_restore_that_failed_late_is_told_of_to_the_kernel_and_in_the_index(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps what it has been told for years: it looks again before all else."""
    told: list[Restored] = []
    engine.file("f", b"old")
    engine.save()
    engine.file("g", b"new")
    monkeypatch.setattr(engine.store.host, "refreshing", lambda: nullcontext(told.append))
    arguments = {"snapshot": "latest", "paths": [], "force": False, "dry_run": False}
    with monkeypatch.context() as broken:
        broken.setattr(Catalog, "note_restored", refused)
        with pytest.raises(OSError, match="Input/output"):
            steps.run(Commands(engine.store).start("restore", arguments, Listener()))
    assert [name for each in told for _, name in each.names] == [b"g"]
    assert engine.store.owes_documents
    engine.store.pay_documents()
    assert engine.problems() == []


def test_a_restore_that_failed_leaves_its_safety_snapshot_in_the_index(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken before anything could fail, so it is listed, in the plain file, too."""

    def refuse(*_: object) -> None:
        raise PosixError(errno.EIO)

    engine.file("one", b"1")
    engine.save()
    engine.file("two", b"2")
    arguments = {"snapshot": "latest", "paths": [], "force": False, "dry_run": False}
    with monkeypatch.context() as broken:
        broken.setattr(restoring, "restore", refuse)
        with pytest.raises(PosixError):
            steps.run(Commands(engine.store).start("restore", arguments, Listener()))
    assert [each.reason for each in engine.store.catalog.snapshots] == ["manual", "before-restore"]
    engine.store.pay_documents()
    assert engine.problems() == []
