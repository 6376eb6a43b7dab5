from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import NewerStore, NotInStore, StateDamaged, UsageError
from statefs.state import SessionStore
from statefs.state.journal import Journal, line_of
from tests.unit.session_folders import contents, place, values


def line_damage(name: str, line: int, old: bytes, new: bytes) -> Callable[[Path], None]:
    """Return a change of some bytes in one line of a file."""

    def change(folder: Path) -> None:
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        assert old in lines[line - 1]
        lines[line - 1] = lines[line - 1].replace(old, new, 1)
        (folder / name).write_bytes(b"".join(lines))

    return change


def record_damage(name: str, value: Any) -> Callable[[Path], None]:
    """Return the addition of a record whose checksum fits."""

    def add(folder: Path) -> None:
        with Journal(folder / name) as journal:
            journal.append(value)

    return add


def without_last_line(name: str) -> Callable[[Path], None]:
    """Return the removal of what looks like a torn tail."""

    def cut(folder: Path) -> None:
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        (folder / name).write_bytes(b"".join(lines[:-1]))

    return cut


def no_file(name: str) -> Callable[[Path], None]:
    """Return the removal of a file."""
    return lambda folder: (folder / name).unlink()


def snapshot_of(written: int, slot: str = "x") -> dict[str, Any]:
    """Return a revision with one slot."""
    file = {"written": written, "form": "bytes", "bytes": 1, "sha256": ""}
    return {"event": "snapshot", "at": "", "reason": "", "events": 0, "end": 0, "actions": 0,
            "slots": {slot: file}, "label": None}  # fmt: skip


DAMAGES = {
    r"manifest\.json, line 2: the checksum": line_damage("manifest.json", 2, b"turn", b"tuna"),
    r"manifest\.json is missing or empty": no_file("manifest.json"),
    r"manifest\.json, line 4: .*`x`": record_damage(
        "manifest.json", {"event": "closed", "at": "", "x": 1}
    ),
    r"manifest\.json, line 4: .*created once more": record_damage(
        "manifest.json", {"event": "created", "version": 1, "store": "x", "id": "one", "at": ""}
    ),
    r"manifest\.json, line 4: a slot of revision 5": record_damage("manifest.json", snapshot_of(5)),
    r"manifest\.json, line 4: the slot is empty": record_damage(
        "manifest.json", snapshot_of(1, "")
    ),
    r"state/%2E%2E%2Fx\.1 is missing": record_damage("manifest.json", snapshot_of(1, "../x")),
    r"manifest\.json, line 4: expected `int` >= 0 at end": record_damage(
        "manifest.json", snapshot_of(1) | {"end": -1}
    ),
    r"journal\.log, line 9: it does not end": record_damage(
        "manifest.json", snapshot_of(1) | {"slots": {}, "events": 9, "end": 2**62}
    ),
    r"manifest\.json, line 4: invalid value at event": record_damage(
        "manifest.json", {"event": "x"}
    ),
    r"journal\.log, line 2: the checksum": line_damage("journal.log", 2, b"two", b"tow"),
    r"journal\.log, line 2: it was there, and is missing": without_last_line("journal.log"),
    r"actions\.log, line 2: it was there, and is missing": without_last_line("audit/actions.log"),
    r"journal\.log is missing": no_file("journal.log"),
    r"journal\.log, line 3: .*`evnet`": record_damage("journal.log", {"at": "", "evnet": 1}),
    r"journal\.log, line 3: expected `object`": record_damage("journal.log", []),
    r"journal\.log, line 1: it does not end": lambda folder: os.truncate(folder / "journal.log", 4),
    r"state/plan\.2: it is not what the manifest's line 2 says": line_damage(
        "state/plan.2", 1, b"begin", b"bogus"
    ),
    r"state/plan\.2 is missing": no_file("state/plan.2"),
    r"actions\.log is missing": no_file("audit/actions.log"),
    r"actions\.log, line 2: the checksum": line_damage("audit/actions.log", 2, b"done", b"gone"),
    r"actions\.log, line 3: expected `str`": record_damage("audit/actions.log", {"event": 1}),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_damage_is_one_error_that_names_file_and_line_and_nothing_is_changed(
    sessions: SessionStore, said: str
) -> None:
    """A changed byte, what is missing, and records of a right checksum that cannot be."""
    with sessions.create("one") as session:
        session.append("one")
        session.snapshot({"plan": "begin"})
        session.append("two")
        with session.audit("mail"):
            pass
    DAMAGES[said](place(sessions))
    before = contents(place(sessions))
    for _ in range(2):
        with pytest.raises(StateDamaged, match=said) as raised:
            sessions.resume("one")
        assert str(place(sessions)) in str(raised.value) and "\n" not in str(raised.value)
        assert contents(place(sessions)) == before
    with pytest.raises(StateDamaged if said.startswith("manifest") else UsageError):
        sessions.create("one")
    [listed] = sessions.unclean() or sessions.sessions()
    assert listed.damage is not None or "plan" in said or "%2E" in said
    sessions.remove("one")
    assert sessions.sessions() == []


def test_a_manifest_of_a_newer_program_and_a_deep_value_are_refused(sessions: SessionStore) -> None:
    """Neither is taken for something else."""
    sessions.create("one").close()
    record_damage("journal.log", 1)(place(sessions))
    deep = "[" * 100_000 + "]" * 100_000
    (place(sessions) / "journal.log").write_bytes(line_of(1, deep))
    with pytest.raises(StateDamaged, match=r"journal\.log, line 1: not a record"):
        sessions.resume("one")
    created = values(place(sessions) / "manifest.json")[0] | {"version": 2, "new": 1}
    (place(sessions) / "manifest.json").write_bytes(line_of(1, json.dumps(created)))
    with pytest.raises(NewerStore, match="has version 2 and this program knows 1"):
        sessions.resume("one")


def test_a_link_in_place_of_a_session_is_not_followed(
    sessions: SessionStore, tmp_path: Path
) -> None:
    """Nothing is written where it leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place(sessions).symlink_to(elsewhere)
    with pytest.raises(NotInStore):
        sessions.resume("one")
    with pytest.raises(UsageError, match="is a link"):
        sessions.create("one")
    sessions.create("two").close()
    (place(sessions, "two") / "state").rmdir()
    (place(sessions, "two") / "state").symlink_to(elsewhere)
    (elsewhere / "notes.1").touch()
    with pytest.raises(StateDamaged, match="two/state is no folder"):
        sessions.resume("two")
    assert [each.name for each in elsewhere.iterdir()] == ["notes.1"]
