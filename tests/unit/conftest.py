from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from statefs.clock import SystemClock
from statefs.maintenance.store import Store, init_store, open_store
from statefs.maintenance.verify import verify
from statefs.state import SessionStore
from tests.unit.engine_store import EngineStore, SteppingClock
from tests.unit.supervisor_stage import Stage, staged


@pytest.fixture
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made durable: no test here cuts the power, and the disk takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store, open, as the daemon has it; closed after the test."""
    init_store(tmp_path / "store")
    opened = open_store(tmp_path / "store", SystemClock())
    yield opened
    opened.close()


@pytest.fixture
def sessions(tmp_path: Path) -> SessionStore:
    """A state store of journaled sessions, of any events and slots."""
    return SessionStore(tmp_path / "agent", "coder", clock=SteppingClock())


@pytest.fixture
def engine(
    tmp_path_factory: pytest.TempPathFactory, no_waiting_for_disks: None
) -> Iterator[EngineStore]:
    """A new store; closed after the test, and then sound.

    It does not lie in the test's own folder, whose stores are checked by the command line: that
    would take longer than most tests that need no mount.
    """
    folder = tmp_path_factory.mktemp("engine")
    try:
        with EngineStore(folder / "store") as engine:
            yield engine
        assert verify(engine.store.layout) == []
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A supervisor that has yet to run, in a folder of its own."""
    with staged(tmp_path, monkeypatch) as stage:
        yield stage


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    """What would be a mount point: a folder that has current/ in it."""
    (tmp_path / "state" / "current").mkdir(parents=True)
    return tmp_path / "state"
