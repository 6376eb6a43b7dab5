"""prune, pin, unpin and list --sizes, as typed, on a store that nobody has mounted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli_fakes import call
from tests.unit.test_cli_documentation import example_document, shape

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def state(tmp_path: Path, capsys: Capture, no_waiting_for_disks: None) -> Path:
    """A state with three snapshots, the first of them called clean, of which two are kept."""
    state = tmp_path / "state"
    assert call(capsys, "init", state).exit_code == 0
    assert call(capsys, "save", state, "--label", "name=clean").exit_code == 0
    for _ in range(2):
        assert call(capsys, "save", state).exit_code == 0
    (tmp_path / "state.store" / "statefs.toml").write_text("[retention]\nkeep_last = 1\n")
    return state


def test_prune_explains_each_decision(state: Path, capsys: Capture) -> None:
    """A line for each snapshot, and what it comes to."""
    dry = call(capsys, "prune", state, "--dry-run")
    assert [line.split()[0] for line in dry.out.splitlines()[1:]] == [
        "keep", "remove", "keep", "would",
    ]  # fmt: skip
    assert "labelled" in dry.out and "newest; one of the last 1" in dry.out
    done = call(capsys, "prune", state)
    assert done.out.splitlines()[-1].startswith("removed 1 snapshot, ")
    assert call(capsys, "prune", state).out.splitlines()[-1] == "nothing to remove, 2 kept"


def test_the_json_of_prune_is_as_documented(state: Path, capsys: Capture) -> None:
    """Same keys in the same order."""
    printed = json.loads(call(capsys, "prune", state, "--dry-run", "--json").out)
    assert shape(printed) == shape(example_document("prune"))
    assert printed["removed"] == 1 and printed["done"] is False


def test_a_pin_is_shown_and_obeyed(state: Path, capsys: Capture) -> None:
    """In list and show; delete fails with exit code 19 and says why."""
    pinned = call(capsys, "pin", state, "clean", "--reason", "the auditors", "--until", "14d")
    assert pinned.exit_code == 0 and ": the auditors" in pinned.out
    assert "the auditors" in call(capsys, "show", state, "clean").out
    assert "PINNED" in call(capsys, "list", state).out
    refused = call(capsys, "delete", state, "clean")
    assert refused.exit_code == 19
    assert "is pinned until" in refused.err and ": the auditors;" in refused.err
    assert call(capsys, "unpin", state, "clean").out.endswith(" is not pinned any more\n")
    assert call(capsys, "delete", state, "clean").exit_code == 0


def test_pin_and_unpin_print_the_document(state: Path, capsys: Capture) -> None:
    """The same as show --json, but for what that says of sealing."""
    pinned = call(capsys, "pin", state, "clean", "--reason", "why", "--json")
    assert json.loads(pinned.out)["pin"]["reason"] == "why"
    shown = json.loads(call(capsys, "show", state, "clean", "--json").out)
    assert json.loads(pinned.out) | {"unsealable": None} == shown
    assert json.loads(call(capsys, "unpin", state, "clean", "--json").out)["pin"] is None


def test_a_pin_needs_a_reason(state: Path, capsys: Capture) -> None:
    """Whoever finds it later must know what to ask for."""
    assert call(capsys, "pin", state, "clean").exit_code == 2
    assert "needs a reason" in call(capsys, "pin", state, "clean", "--reason", "").err


def test_list_tells_what_deleting_frees(state: Path, capsys: Capture) -> None:
    """A column, or a key, that is there on demand only."""
    assert "FREES" in call(capsys, "list", state, "--sizes").out
    assert "FREES" not in call(capsys, "list", state).out
    printed = json.loads(call(capsys, "list", state, "--sizes", "--json").out)
    assert [type(each["freedBytes"]) for each in printed["snapshots"]] == [int, int, int]


def test_wrong_settings_are_one_line(state: Path, capsys: Capture) -> None:
    """With the file, the key, and the nearest one that is known."""
    path = state.with_name("state.store") / "statefs.toml"
    path.write_text("[retention]\nkeep_dayly = 3\n")
    refused = call(capsys, "prune", state)
    assert refused.exit_code == 17
    assert "keep_dayly: this key is not known; did you mean keep_daily?" in refused.err
