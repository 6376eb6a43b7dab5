"""Autosave and pruning as the daemon does them, without a mount, on a clock that jumps."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from statefs.daemon.keeping import Keeper
from statefs.maintenance import saving, steps
from statefs.maintenance.steps import Steps
from tests.unit.engine_store import EngineStore


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks runs where it is: the clock would jump while a thread is waited for."""

    async def here(action: Callable[..., Any], *arguments: Any) -> Any:
        return action(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", here)


async def at_once(operation: Steps[Any]) -> Any:
    """Run an operation while nothing else runs."""
    return steps.run(operation)


@asynccontextmanager
async def keeping(engine: EngineStore, settings: str) -> AsyncIterator[None]:
    """Have a keeper at work during the block."""
    engine.store.layout.config.write_text(settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Keeper(engine.store, at_once).run)
        yield
        nursery.cancel_scope.cancel()


def reasons(engine: EngineStore) -> list[str]:
    """Return why each snapshot was taken."""
    return [snapshot.reason for snapshot in engine.store.catalog.snapshots]


async def test_an_autosave_comes_a_period_after_a_change(
    engine: EngineStore, autojump_clock: MockClock
) -> None:
    """Not before, and once."""
    async with keeping(engine, "autosave = true\n"):
        await trio.sleep(100)
        engine.file("a")
        await trio.sleep(28)
        assert reasons(engine) == []
        await trio.sleep(5)
        assert reasons(engine) == ["autosave"]
        await trio.sleep(100)
        assert reasons(engine) == ["autosave"]


async def test_autosave_is_turned_on_and_off_while_it_runs(
    engine: EngineStore, autojump_clock: MockClock
) -> None:
    """What changed while it was off is saved when it is on."""
    async with keeping(engine, "autosave = false\n"):
        engine.file("a")
        await trio.sleep(100)
        assert reasons(engine) == []
        engine.store.layout.config.write_text("autosave = true\n")
        await trio.sleep(35)
        assert reasons(engine) == ["autosave"]
        engine.store.layout.config.write_text("")
        engine.file("b")
        await trio.sleep(100)
        assert reasons(engine) == ["autosave"]


async def test_an_autosave_that_fails_is_tried_again(
    engine: EngineStore,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After another period, also when it failed after the epoch had ended; the mount goes on."""
    sync, calls = engine.store.sync, 0

    def failing_first(*objects: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(5, "the disk is gone")
        sync(*objects)

    monkeypatch.setattr(engine.store, "sync", failing_first)
    async with keeping(engine, "autosave = true\n"):
        engine.file("a")
        await trio.sleep(35)
        assert (calls, reasons(engine)) == (1, [])
        await trio.sleep(35)
        assert (calls, reasons(engine)) == (2, ["autosave"])
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["autosave failed: [Errno 5] the disk is gone"]


async def test_pruning_follows_a_save_and_nothing_else(
    engine: EngineStore, autojump_clock: MockClock
) -> None:
    """A store that is opened under new settings keeps what it has until something is saved."""
    for _ in range(4):
        engine.save()
    async with keeping(engine, "[retention]\nmax_snapshots = 2\n"):
        await trio.sleep(100)
        assert len(reasons(engine)) == 4
        engine.save()
        await trio.sleep(2)
        assert len(reasons(engine)) == 2


async def test_a_prune_that_fails_is_tried_again(
    engine: EngineStore,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some seconds later, not all the time."""
    delete_all, calls = saving.delete_all, 0

    def failing_first(*arguments: Any) -> Steps[None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(5, "the disk is gone")
        return delete_all(*arguments)

    monkeypatch.setattr(saving, "delete_all", failing_first)
    async with keeping(engine, "[retention]\nmax_snapshots = 1\n"):
        engine.save()
        engine.save()
        await trio.sleep(5)
        assert (calls, len(reasons(engine))) == (1, 2)
        await trio.sleep(10)
        assert (calls, len(reasons(engine))) == (2, 1)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "pruning failed: [Errno 5] the disk is gone"
    ]


async def test_settings_that_become_wrong_meanwhile_are_told_once(
    engine: EngineStore, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As such, and not as a prune that failed; the prune is owed until they are right."""
    engine.save()
    path = engine.store.layout.config

    async def spoiling(operation: Steps[Any]) -> Any:
        if not caplog.records:
            path.write_text("[retention]\nmax_snapshot = 1\n")
        return steps.run(operation)

    path.write_text("[retention]\nmax_snapshots = 1\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Keeper(engine.store, spoiling).run)
        await trio.sleep(2)
        engine.save()
        await trio.sleep(60)
        assert len(reasons(engine)) == 2
        path.write_text("[retention]\nmax_snapshots = 1\n# right again\n")
        await trio.sleep(60)
        assert len(reasons(engine)) == 1
        nursery.cancel_scope.cancel()
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "until this is put right" in errors[0]


async def test_a_policy_that_says_nothing_prunes_nothing(
    engine: EngineStore, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log is not full of it."""
    async with keeping(engine, "[retention]\nmax_snapshots = 0\n"):
        engine.save()
        engine.save()
        await trio.sleep(100)
        assert len(reasons(engine)) == 2
    assert caplog.records == []


async def test_room_is_not_counted_while_it_is_being_freed(
    engine: EngineStore, autojump_clock: MockClock
) -> None:
    """Or more would be deleted than is needed."""
    for _ in range(3):
        engine.folder(f"folder{engine.table.epoch}")
        engine.save()
    engine.hide(1)
    assert engine.store.collector.is_busy
    async with keeping(engine, "[retention]\nmax_store_bytes = 1\n"):
        await trio.sleep(100)
        assert len(reasons(engine)) == 2
        engine.store.collect()
        await trio.sleep(100)
        assert len(reasons(engine)) == 1
