"""What a mounted store does beside the requests, without a mount, on a clock that jumps."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from statefs.daemon import tasks as daemon_tasks
from statefs.daemon.tasks import FREEING_PAUSE_SECONDS, Tasks, in_threads
from statefs.fuse.durability import Durability
from statefs.ids import TREE_ROOT
from statefs.maintenance import gc, steps
from statefs.maintenance.steps import Steps
from tests.unit.engine_store import EngineStore

FILES = 5


async def alone(operation: Steps[Any]) -> Any:
    """Run an operation while nothing else runs."""
    return steps.run(operation)


async def here(action: Callable[..., Any], *arguments: Any) -> Any:
    """Run what blocks where it is: the clock would jump while a thread is waited for."""
    return action(*arguments)


@pytest.mark.parametrize("is_busy", [True, False])
async def test_who_frees_space_lets_operations_go_first(
    is_busy: bool,
    engine: EngineStore,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one runs that somebody waits for, there is a pause after each step."""
    monkeypatch.setattr(trio.to_thread, "run_sync", here)
    monkeypatch.setattr(gc, "OBJECTS_PER_STEP", 1)
    for number in range(FILES):
        engine.file(f"f{number}", b"a" * (1 << 20))
        engine.names.unlink(TREE_ROOT, b"f%d" % number)
    durability = Durability(engine.store.volume, "close", engine.store.freeing)
    tasks = Tasks(engine.store, durability, alone, lambda: is_busy)
    tasks.space.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tasks.run)
        while engine.rows("garbage") == FILES:
            await trio.lowlevel.checkpoint()
        began = trio.current_time()
        while engine.rows("garbage"):
            await trio.sleep(0.001)
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    assert (took >= (FILES - 2) * FREEING_PAUSE_SECONDS) == is_busy


async def test_who_frees_space_waits_for_a_long_log_to_be_moved(
    engine: EngineStore, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last checkpoint has much to move while commits wait."""
    monkeypatch.setattr(trio.to_thread, "run_sync", here)
    monkeypatch.setattr(daemon_tasks, "WAL_PAGES_RESTART", 0)
    monkeypatch.setattr(gc, "OBJECTS_PER_STEP", 1)
    for number in range(FILES):
        engine.file(f"f{number}", b"a" * (1 << 20))
        engine.names.unlink(TREE_ROOT, b"f%d" % number)
    left: list[int] = []

    def counted(restart: bool = False) -> None:
        assert restart
        left.append(engine.rows("garbage"))

    monkeypatch.setattr(engine.store.database, "checkpoint", counted)
    durability = Durability(engine.store.volume, "close", engine.store.freeing)
    tasks = Tasks(engine.store, durability, alone, lambda: False)
    tasks.space.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tasks.run)
        while engine.rows("garbage"):
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert len(set(left)) >= FILES - 1, left


async def test_giving_way_takes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One would wait for those that hash; others run meanwhile all the same."""
    turns: list[object] = []

    async def in_thread(action: Callable[..., Any]) -> Any:
        turns.append(action)
        return action()

    async def other() -> None:
        turns.append("other")

    def operation() -> Steps[object]:
        yield steps.give_way
        yield steps.give_way
        pid: object = yield os.getpid
        return pid

    monkeypatch.setattr(trio.to_thread, "run_sync", in_thread)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await in_threads(operation()) == os.getpid()
    assert turns == ["other", os.getpid]
