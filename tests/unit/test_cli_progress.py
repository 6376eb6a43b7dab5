from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from statefs.cli.progress import Bar, JsonEvents, shown_progress, state_text

Capture = pytest.CaptureFixture[str]


def test_json_events_are_lines_and_not_too_many(capsys: Capture) -> None:
    """The first of each kind of work and the last come at once, those between now and then."""
    now = 0.0
    events = JsonEvents(clock=lambda: now)
    for done in range(101):
        now += 0.01
        events({"what": "reading", "done": done, "total": 100, "unit": "bytes"})
    events({"what": "hashing", "done": 0, "total": None, "unit": "files"})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["done"] for line in lines] == [0, 20, 40, 60, 80, 100, 0]
    assert lines[0] == {
        "event": "progress", "what": "reading", "done": 0, "total": 100, "unit": "bytes",
    }  # fmt: skip


def test_a_pipe_is_told_nothing(capsys: Capture) -> None:
    """Unless --json asks for events."""
    with shown_progress(as_json=False) as on_progress:
        assert on_progress is None
    with shown_progress(as_json=True) as on_progress:
        assert on_progress is not None
        on_progress({"what": "reading", "done": 1, "total": None, "unit": "files"})
    assert capsys.readouterr().err.count("\n") == 1


def test_a_terminal_shows_a_bar_of_each_kind_of_work() -> None:
    """With amounts in the unit of the work; what a terminal would obey is escaped."""
    drawn = io.StringIO()
    with Bar(Console(file=drawn, force_terminal=True, width=120)) as bar:
        bar({"what": "reading \x1b[2J", "done": 1 << 20, "total": 5 << 20, "unit": "bytes"})
        bar({"what": "[bold]checking", "done": 7, "total": 1234, "unit": "files"})
    text = drawn.getvalue()
    assert "[bold]checking" in text and "7 files of 1,234 files" in text
    assert "\x1b[2J" not in text


def test_a_bar_fits_on_one_line() -> None:
    """Of an ordinary terminal, where the numbers have their greatest length."""
    drawn = io.StringIO()
    with Bar(Console(file=drawn, force_terminal=True, width=80)) as bar:
        for done in (1 << 20, 999 << 20):
            bar({"what": "reading the archive", "done": done, "total": 999 << 20, "unit": "bytes"})
    lines = [line for line in drawn.getvalue().splitlines() if "MiB" in line]
    assert lines and all("reading the archive" in line for line in lines)


def test_a_bar_that_was_told_nothing_draws_nothing() -> None:
    """A quick command leaves no trace on the terminal."""
    drawn = io.StringIO()
    with Bar(Console(file=drawn, force_terminal=True)):
        pass
    assert drawn.getvalue() == ""


def test_amounts_have_units() -> None:
    """Sizes are binary, other units are counted; what is not known is left out."""
    assert state_text(1 << 20, 5 << 20, 2 << 20, "bytes") == "1.0 MiB of 5.0 MiB, 2.0 MiB/s"
    assert state_text(1234, None, None, "files") == "1,234 files"
