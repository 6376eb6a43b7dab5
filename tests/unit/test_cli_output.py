from __future__ import annotations

import json
import re

import pytest

from statefs.cli.output import (
    Column,
    fit_widths,
    one_line,
    print_facts,
    print_json,
    print_line,
    print_table,
)
from statefs.units import printable

COLUMNS = (Column("name"), Column("files", align_right=True), Column("message", may_shorten=True))


def test_plain_tables_line_up_and_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Into a pipe each row is one whole line, numbers to the right."""
    print_table(COLUMNS, [["a", "5", "x" * 300], ["longer", "1,234", "hm"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "NAME    FILES  MESSAGE"
    assert lines[1] == "a           5  " + "x" * 300
    assert lines[2] == "longer  1,234  hm"


def test_columns_that_are_empty_everywhere_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A list without messages has no message column."""
    print_table(COLUMNS, [["a", "5", ""], ["b", "6", ""]])
    assert capsys.readouterr().out == "NAME  FILES\na         5\nb         6\n"


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "a\tb", "bell\x07", "\x9b2J", "\u202egnp.exe", "\udcff"]
)
def test_nothing_a_terminal_obeys_is_printed(text: str) -> None:
    """Escape sequences, bidirectional overrides and broken bytes become visible escapes."""
    assert printable(text).isprintable()
    assert "\\" in printable(text)


def test_ordinary_text_is_left_alone() -> None:
    """Letters of any script are printable."""
    assert printable("Grüße, 你好") == "Grüße, 你好"


def test_several_lines_become_one() -> None:
    """An error is one line, whatever a message carries."""
    assert one_line("first\nsecond\n") == "first second"


def test_a_line_break_in_a_cell_does_not_break_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One row stays one line."""
    print_table(COLUMNS, [["a", "5", "one\ntwo"]])
    assert capsys.readouterr().out.splitlines()[1:] == ["a         5  one two"]


def test_json_keeps_order_and_letters(capsys: pytest.CaptureFixture[str]) -> None:
    """Keys stay as given and text is readable where the output is UTF-8."""
    print_json({"b": "ü", "a": 1})
    out = capsys.readouterr().out
    assert out == '{\n  "b": "ü",\n  "a": 1\n}\n'


def test_json_of_a_name_that_is_no_utf8_can_be_read_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lone surrogates, which stand for such bytes, are written as JSON escapes."""
    print_json({"name": "bad\udcff"})
    assert json.loads(capsys.readouterr().out) == {"name": "bad\udcff"}


def test_facts_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Names line up with the longest that is shown."""
    print_facts([("A", "1"), ("Left out, and long", ""), ("Bcd", "2\n3")])
    assert capsys.readouterr().out == "A    1\nBcd  2 3\n"


def test_a_line_is_printed_safely(capsys: pytest.CaptureFixture[str]) -> None:
    """A state's path may hold anything."""
    print_line("mounted /tmp/\x1b[2J")
    assert capsys.readouterr().out == "mounted /tmp/\\x1b[2J\n"


FITTED = (
    Column("name"),
    Column("taken", drop_rank=2),
    Column("reason", drop_rank=1),
    Column("labels", may_shorten=True),
    Column("message", may_shorten=True),
)


@pytest.mark.parametrize(
    ("available", "widths"),
    [
        (200, [20, 19, 8, 10, 60]),  # everything fits
        (125, [20, 19, 8, 10, 60]),  # exactly
        (124, [20, 19, 8, 10, 59]),  # the message is cut first: it needs the most
        (77, [20, 19, 8, 10, 12]),  # the least that says anything
        (76, [20, 19, 0, 10, 21]),  # better to leave the reason out
        (66, [20, 0, 0, 10, 32]),
        (30, [20, 0, 0, 3, 3]),  # nothing more can go
    ],
)
def test_a_narrow_terminal_cuts_and_then_drops_columns(available: int, widths: list[int]) -> None:
    """The name stays whole, and what is shown fits."""
    assert fit_widths(FITTED, [20, 19, 8, 10, 60], available) == widths
    shown = [width for width in widths if width]
    assert sum(shown) + 2 * (len(shown) - 1) <= available


def test_a_terminal_gets_the_same_rows_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Markup in a message is text, not a command to the library that draws."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(COLUMNS, [["a", "5", "[bold]x[/bold]"], ["b", "6", "m" * 100]])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.rstrip() for line in plain.splitlines()]
    assert lines[1] == "a         5  [bold]x[/bold]"
    assert lines[2].startswith("b         6  mmm") and lines[2].endswith("…")
    assert max(len(line) for line in lines) <= 40
