"""A scrub reads everything at a limited rate, and what it found is known afterwards."""

from __future__ import annotations

import time
from typing import Any, Final

import pytest

from statefs.content.blocks import BLOCK_BYTES
from statefs.maintenance import steps
from statefs.maintenance.commands import Commands
from tests.unit.engine_store import SECOND_NS, EngineStore
from tests.unit.test_rereading import Listener, damage
from tests.unit.test_sealing import seal

BIG: Final = 3 * BLOCK_BYTES
DAY_NS: Final = 86400 * SECOND_NS


def scrub(engine: EngineStore, start: bool = True, listener: Listener | None = None) -> Any:
    """Do what `statefs scrub` does without a daemon."""
    commands = Commands(engine.store)
    return steps.run(commands.start("scrub", {"start": start}, listener or Listener()))


def test_what_a_scrub_found_is_kept(engine: EngineStore, caplog: pytest.LogCaptureFixture) -> None:
    """In the store, for the next process too; damage is an event, told once by each process."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    seal(engine)
    assert scrub(engine, start=False) == {"running": False, "last": None}
    assert engine.store.status()["damaged"] is None
    assert scrub(engine)["last"]["problems"] == []
    assert engine.store.status()["damaged"] == 0
    damage(engine, ino, 5)
    last = scrub(engine)["last"]
    assert [problem["path"] for problem in last["problems"]] == ["f"]
    assert last["bytes"] == BIG
    assert caplog.text == "", "the command that did the work tells it"
    steps.run(engine.store.scrubber.run())
    (told,) = (each for each in engine.store.kept_events.after(0) if "damage" in each)
    assert told["found_by"] == "scrub" and "f: bytes 0 to 1048576" in told["damage"]
    assert engine.store.status()["damaged"] == 1
    assert type(engine.store.scrubber)(engine.store).last == engine.store.scrubber.last
    damage(engine, ino, 5)


def test_a_scrub_is_no_faster_than_its_rate(engine: EngineStore) -> None:
    """3 MiB at 6 MiB a second take half a second; progress is told."""
    engine.store.layout.config.write_text('[scrub]\nrate = "6MiB"\n')
    engine.file("f", b"a" * BIG)
    engine.save()
    seal(engine)
    listener = Listener()
    began = time.monotonic()
    scrub(engine, listener=listener)
    assert time.monotonic() - began >= 0.5
    assert listener.heard[-1]["done"] == BIG


def test_a_scrub_that_nobody_waits_for_ends(engine: EngineStore) -> None:
    """Without a daemon; nothing is kept of it."""
    engine.store.layout.config.write_text('[scrub]\nrate = "1KiB"\n')
    engine.file("f", b"a" * BIG)
    engine.save()
    seal(engine)
    assert scrub(engine, listener=Listener(patience=0)) == {"running": False, "last": None}


def test_a_scrub_is_due_after_its_interval(engine: EngineStore) -> None:
    """Counted from the making of the store, then from the last one; never with 0."""
    scrubber = engine.store.scrubber
    assert not scrubber.is_due()
    engine.clock.time_ns += 30 * DAY_NS
    assert scrubber.is_due()
    scrub(engine)
    assert not scrubber.is_due()
    engine.store.layout.config.write_text('[scrub]\ninterval = "1d"\n')
    engine.clock.time_ns += DAY_NS
    assert scrubber.is_due()
    engine.store.layout.config.write_text("[scrub]\ninterval = 0\n")
    assert not scrubber.is_due()


def test_a_report_that_cannot_be_read_is_made_anew(
    engine: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no reason not to mount."""
    engine.store.layout.scrub_json.write_text("{")
    scrubber = type(engine.store.scrubber)(engine.store)
    assert scrubber.last is None
    assert "cannot be read" in caplog.text
    scrub(engine)
    assert engine.store.scrubber.last is not None
