"""Moments of a store, and what differs between two of them on one line, for tests of both."""

from __future__ import annotations

from statefs.ids import NOW, Epoch
from statefs.snapshots.reports import Difference
from tests.unit.engine_store import EngineStore


def now(engine: EngineStore) -> Epoch:
    """Return the present as a moment, settled."""
    engine.store.settle()
    return NOW


def then(engine: EngineStore, name: str = "a") -> Epoch:
    """Return the moment of a snapshot."""
    return engine.store.catalog.choose(name).epoch


def line(told: Difference) -> str:
    """Return a difference on one line: its kind, the path or both, in what it differs."""
    path = told.path if told.path_before is None else f"{told.path_before} -> {told.path}"
    return " ".join([told.kind, path, *told.changed])
