from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, get_args

import pytest

from statefs.cli.events import event_text
from statefs.config import EventName
from statefs.errors import PosixError
from statefs.maintenance import saving, steps
from statefs.telemetry import kept as kept_module
from statefs.telemetry.events import AnyEvent, AutosaveTriggered, DiskLow, Events, SaveError
from statefs.telemetry.kept import KeptEvents
from statefs.telemetry.lines import EVENT_FIELD, JsonLines, TextLines, begin_log, choose_format
from statefs.telemetry.logged import event_names, level_of, sentence
from tests.unit.engine_store import EngineStore, SteppingClock

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def autosaves(kept: KeptEvents, count: int) -> None:
    """Have so many events be kept."""
    for _ in range(count):
        kept.keep(AutosaveTriggered(time="2026-03-13T12:00:00Z"))


def told_by(engine: EngineStore) -> list[dict[str, Any]]:
    """Return the events of a store without their numbers and times."""
    events = engine.store.kept_events.after(0)
    return [
        {key: value for key, value in each.items() if key not in ("number", "time", "seconds")}
        for each in events
    ]


def test_everybody_is_told_the_same_in_order() -> None:
    """Each listener gets each event, with the moment at which it was told."""
    events = Events(SteppingClock())
    first: list[AnyEvent] = []
    second: list[AnyEvent] = []
    events.listen(first.append)
    events.listen(second.append)
    events.tell(AutosaveTriggered)
    events.tell(DiskLow, free_bytes=1, total_bytes=2, why="little")
    assert first == second
    assert [each.time for each in first] == ["2023-11-14T22:13:21Z", "2023-11-14T22:13:22Z"]
    assert isinstance(first[1], DiskLow) and first[1].why == "little"


def test_numbers_go_on_in_the_next_process(tmp_path: Path) -> None:
    """Who follows by numbers misses no event of a new worker."""
    autosaves(KeptEvents(tmp_path / "events"), 3)
    later = KeptEvents(tmp_path / "events")
    assert later.newest == 3
    autosaves(later, 1)
    assert [each["number"] for each in later.after(2)] == [3, 4]
    assert later.after(4) == []


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the newest events, and never more than twice as many lines as are kept."""
    monkeypatch.setattr(kept_module, "KEPT_EVENTS", 10)
    monkeypatch.setattr(kept_module, "LINES_MAX", 20)
    path = tmp_path / "events"
    kept = KeptEvents(path)
    for _ in range(50):
        autosaves(kept, 1)
        assert len(path.read_text().splitlines()) <= 20
    numbers = [each["number"] for each in KeptEvents(path).after(0)]
    assert numbers == list(range(41, 51)) == [each["number"] for each in kept.after(0)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_half_a_line_costs_that_line_only(tmp_path: Path) -> None:
    """After a loss of power in the midst of a line the next event has a line of its own."""
    path = tmp_path / "events"
    autosaves(KeptEvents(path), 2)
    with path.open("ab") as file:
        file.write(b'{"number": 3, "ev')
    autosaves(KeptEvents(path), 1)
    assert [each["number"] for each in KeptEvents(path).after(0)] == [1, 2, 3]


def test_a_disk_that_refuses_costs_no_event_while_the_process_lives(tmp_path: Path) -> None:
    """It is known here, and written when the disk takes it again."""
    folder = tmp_path / "gone"
    kept = KeptEvents(folder / "events")
    autosaves(kept, 2)
    assert kept.newest == 2
    folder.mkdir()
    autosaves(kept, 1)
    assert [each["number"] for each in KeptEvents(folder / "events").after(0)] == [1, 2, 3]


def test_each_event_is_documented_and_can_be_said() -> None:
    """In the table of docs/operations.md with what it says; and in words, from JSON."""
    rows = {line.split("|")[1].strip(" `"): line for line in PAGE.splitlines() if "| `" in line}
    for kind in AnyEvent.__args__:
        name = kind.__struct_config__.tag
        fields = [field for field in kind.__struct_fields__ if field != "time"]
        assert all(f"`{field}`" in rows[name].split("|")[3] for field in fields), name
        values = dict.fromkeys(fields, 1) | {"time": "t"}
        said = sentence(kind(**values))
        assert said and "\n" not in said
    assert set(event_names()) <= set(rows)


def test_an_unknown_event_is_shown_as_it_is() -> None:
    """Kept by a newer version: nothing is lost."""
    known = {"number": 1, "event": "state:save-error", "time": "t", "reason": "turn", "error": "x"}
    assert event_text(known) == "the save (turn) failed: x"
    strange = {"number": 2, "event": "moon:full", "time": "t"}
    assert json.loads(event_text(strange)) == {"event": "moon:full", "time": "t"}


def test_a_log_of_json_has_all_of_an_event() -> None:
    """Each line is an object with time, level and message; of an event with its own words too."""
    event = SaveError(time="2026-03-13T12:00:00Z", reason="turn", error="no room")
    record = logging.makeLogRecord(
        {"name": "x", "levelno": level_of(event), "levelname": "INFO", "msg": "%s", "args": ("hi",)}
    )
    plain = json.loads(JsonLines().format(record))
    assert plain.keys() == {"time", "level", "logger", "message"} and plain["message"] == "hi"
    setattr(record, EVENT_FIELD, event)
    told = json.loads(JsonLines().format(record))
    assert told["error"] == "no room" and told["event"] == "state:save-error"
    assert told["time"] == event.time


def test_saves_and_restores_are_told(engine: EngineStore) -> None:
    """A save with what it holds; a restore with the snapshot that was taken before it."""
    ino = engine.file("a", b"one")
    engine.save()
    first = engine.store.catalog.snapshots[0].name
    engine.data.write(ino, 0, b"two")
    arguments = {"snapshot": first, "paths": [], "force": False, "dry_run": False}
    run(engine, "restore", **arguments)
    saved, before, loaded = told_by(engine)
    assert saved == {
        "event": "state:saved", "snapshot": first, "reason": "manual", "files": 1, "bytes": 3,
    }  # fmt: skip
    assert (before["event"], before["reason"]) == ("state:saved", "before-restore")
    assert loaded == {
        "event": "state:loaded", "how": "restore", "snapshot": first, "changes": 1,
    }  # fmt: skip
    run(engine, "restore", **arguments)
    assert len(told_by(engine)) == 3, "a restore that changes nothing is told of"


class Asker:
    """Somebody who waits."""

    is_wanted = True
    pid = 0

    def report(self, _progress: dict[str, Any]) -> None:
        """Take no notice."""


def run(engine: EngineStore, op: str, **arguments: Any) -> Any:
    """Do one operation as a command does."""
    from statefs.maintenance.commands import Commands

    return steps.run(Commands(engine.store).start(op, arguments, Asker()))


def test_a_save_that_fails_is_told(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With why; a label that cannot be is a mistake of who asks, and no event."""

    def refuse() -> None:
        raise PosixError(28)

    monkeypatch.setattr(engine.store.reserve, "require", refuse)
    with pytest.raises(PosixError):
        steps.run(saving.save(engine.store, "turn", "", {}))
    (told,) = told_by(engine)
    assert told["event"] == "state:save-error" and told["reason"] == "turn" and told["error"]
    with pytest.raises(Exception, match="reason"):
        steps.run(saving.save(engine.store, "boredom", "", {}))
    assert len(told_by(engine)) == 1


def test_the_same_damage_is_told_once(engine: EngineStore) -> None:
    """However often and by whomever it is found."""
    engine.store.tell_damages("read", ["files/a: broken"])
    engine.store.tell_damages("scrub", ["files/a: broken", "files/b: broken"])
    told = [(each["found_by"], each["damage"]) for each in told_by(engine)]
    assert told == [("read", "files/a: broken"), ("scrub", "files/b: broken")]
    assert engine.store.status()["damages_seen"] == 2


def test_who_asks_for_events_gets_those_after_a_number(engine: EngineStore) -> None:
    """And waits only where there is none and waiting is wanted."""
    engine.save()
    engine.save()
    assert [each["number"] for each in run(engine, "events", after=0, wait=True)] == [1, 2]
    assert [each["number"] for each in run(engine, "events", after=1, wait=False)] == [2]
    assert run(engine, "events", after=2, wait=False) == []


def test_bytes_that_are_not_synced_are_counted(engine: EngineStore) -> None:
    """Those of object files and of the log; none after a sync."""
    engine.store.sync()
    assert engine.store.status()["unsynced_bytes"] == 0
    engine.file("large", b"x" * 100_000)
    assert engine.store.status()["unsynced_bytes"] > 100_000
    engine.store.sync()
    assert engine.store.status()["unsynced_bytes"] == 0


def test_the_form_of_the_log_follows_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process writes changes at once; what others have set up stays as it is."""
    root, others = logging.RootLogger(logging.INFO), logging.StreamHandler()
    monkeypatch.setattr(logging, "getLogger", lambda _=None: root)
    monkeypatch.setattr(logging, "root", root)
    begin_log()
    root.addHandler(others)
    (own,) = (each for each in root.handlers if each is not others)
    assert isinstance(own.formatter, TextLines)
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "hi", "created": 0.5})
    assert own.format(record).startswith("1970-01-01T00:00:00.")
    choose_format("json")
    assert isinstance(own.formatter, JsonLines) and others.formatter is None
    choose_format("text")
    assert isinstance(own.formatter, TextLines)


def test_settings_know_the_events_there_are() -> None:
    """What `on` of [[events]] takes."""
    assert get_args(EventName) == event_names()
