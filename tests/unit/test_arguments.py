"""What programs give to the Python API: snapshots as they were returned, and wrong types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import statefs
from statefs.api import State
from statefs.errors import UsageError
from tests.unit.engine_store import EngineStore


@pytest.fixture
def state(tmp_path: Path, no_waiting_for_disks: None) -> Iterator[State]:
    """A state with a file that is not mounted."""
    with EngineStore(tmp_path / "state.store") as engine:
        engine.file("a", b"one")
    with statefs.open(store=tmp_path / "state.store") as opened:
        yield opened


def test_a_snapshot_is_taken_as_it_was_returned(state: State, tmp_path: Path) -> None:
    """By each method that takes one, from each method that returns one."""
    saved = state.save(message="first")
    (listed,) = state.list_snapshots()
    shown = state.show(saved)
    assert shown.snapshot_id == listed.snapshot_id == saved.snapshot_id
    assert state.diff(saved, "current").differences == []
    assert state.diff(listed, shown).newer == saved.name
    assert state.restore(shown)["restored"] == saved.name
    assert state.pin(saved, "wanted").pin is not None
    assert state.unpin(saved).pin is None
    assert state.seal(saved).sealed
    assert b"".join(state.read(saved, "a")) == b"one"
    state.export(saved, tmp_path / "a.tar")
    assert state.copy_out(saved, tmp_path / "copy")["restored"] == saved.name
    assert state.clone(saved, "copy")["snapshot"] == saved.name
    assert state.verify(saved)["problems"] == []
    assert state.delete(saved).snapshot_id == saved.snapshot_id


WRONG: list[Callable[[Any], object]] = [
    lambda state: state.show(5),
    lambda state: state.show(None),
    lambda state: state.show(b"latest"),
    lambda state: state.diff(Path("latest")),
    lambda state: state.undo(of=object()),
    lambda state: state.restore("latest", 5),
    lambda state: state.restore("latest", b"a"),
    lambda state: state.restore("latest", [Path("a")]),
    lambda state: state.log(5),
    lambda state: state.pin("latest", 5),
    lambda state: state.save(message=5),
    lambda state: state.save(reason="no such reason"),
    lambda state: state.save(labels=5),
    lambda state: state.save(labels={"": ""}),
    lambda state: state.save(labels={"key": 5}),
    lambda state: state.save(labels={b"key": "value"}),
    lambda state: state.save(operation={"kind": 5}),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_type_is_refused_in_one_way(state: State, wrong: Callable[[Any], object]) -> None:
    """As on the command line, and nothing is done."""
    state.save()
    with pytest.raises(UsageError):
        wrong(state)
    assert len(state.list_snapshots()) == 1
