"""What goes to the screen: JSON documents, tables, facts. Knows nothing of snapshots.

On a terminal rich draws (imported only then); into a pipe or a file goes plain text whose lines
are never cut, one row per line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from statefs.units import printable

_GAP: Final = "  "
_LEAST_CELLS: Final = 12
"""A column that is cut shorter than this tells nothing; another column is left out instead."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: shown in capitals above it.
        style: how rich draws its cells; no effect in plain text.
        align_right: for numbers.
        may_shorten: on a narrow terminal its cells are cut, with an ellipsis.
        drop_rank: on a terminal that is narrower still, columns go away in the order of this
            rank, 1 first; 0 stays.
    """

    title: str
    style: str = ""
    align_right: bool = False
    may_shorten: bool = False
    drop_rank: int = 0


def one_line(text: str) -> str:
    """Return `text` on one line, safe to print."""
    return printable(" ".join(text.split("\n"))).strip()


def print_line(text: str, *, err: bool = False) -> None:
    """Print one line of text; with `err` on standard error."""
    click.echo(one_line(text), err=err)


def warn(text: str) -> None:
    """Print one line about what goes on all the same, on standard error."""
    click.echo(f"statefs: warning: {one_line(text)}", err=True)


def plain(value: Any) -> Any:
    """Return what the API gave as plain values: documents as they stand in JSON."""
    import msgspec

    return msgspec.to_builtins(value)


def print_json(document: Any, *, err: bool = False) -> None:
    """Print a document as JSON, indented, its keys in the order given; with `err` as errors go."""
    import json

    unicode_out = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(document, indent=2, ensure_ascii=not unicode_out)
    # A name that is no UTF-8 arrives as lone surrogates; JSON writes those as \udcXX.
    click.echo(text.encode("utf-8", "backslashreplace") if unicode_out else text, err=err)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their titles; columns that are empty in every row are left out.

    Args:
        columns: n columns.
        rows: each of n cells.
    """
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    chosen = [columns[i] for i in used]
    cells = [[one_line(row[i]) for i in used] for row in rows]
    if sys.stdout.isatty():
        _draw_table(chosen, cells)
    else:
        _write_table(chosen, cells)


def _write_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    lines = [[column.title.upper() for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = [
            cell.rjust(width) if column.align_right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo(_GAP.join(padded).rstrip())


def _draw_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    needed = [
        max(len(column.title), *(cell_len(line[i]) for line in cells))
        for i, column in enumerate(columns)
    ]
    widths = fit_widths(columns, needed, console.width)
    shown = [i for i, width in enumerate(widths) if width]
    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for i in shown:
        table.add_column(
            columns[i].title.upper(),
            style=columns[i].style,
            justify="right" if columns[i].align_right else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=widths[i],
        )
    for line in cells:
        table.add_row(*(Text(line[i]) for i in shown))
    console.print(table)


def fit_widths(columns: Sequence[Column], needed: Sequence[int], available: int) -> list[int]:
    """Return the width of each column on a terminal, 0 for one that is left out.

    Args:
        columns: n columns.
        needed: the n widths that would show everything, in cells.
        available: the width of the terminal, in cells.
    """
    dropped: set[int] = set()
    ranked = sorted((column.drop_rank, i) for i, column in enumerate(columns) if column.drop_rank)
    for _, i in ranked:
        if _least_width(columns, needed, dropped) <= available:
            break
        dropped.add(i)
    widths = [0 if i in dropped else width for i, width in enumerate(needed)]
    shrinking = [i for i, width in enumerate(widths) if width and columns[i].may_shorten]
    gaps = len(_GAP) * (len(widths) - len(dropped) - 1)
    left = available - gaps - sum(widths) + sum(widths[i] for i in shrinking)
    # The smallest first, so that what it does not need goes to the others.
    for position, i in enumerate(sorted(shrinking, key=lambda i: widths[i])):
        share = max(1, left // (len(shrinking) - position))
        widths[i] = min(widths[i], share)
        left -= widths[i]
    return widths


def _least_width(columns: Sequence[Column], needed: Sequence[int], dropped: set[int]) -> int:
    least = [
        min(width, _LEAST_CELLS) if columns[i].may_shorten else width
        for i, width in enumerate(needed)
        if i not in dropped
    ]
    return sum(least) + len(_GAP) * (len(least) - 1)


def end_of_check(place: object, problems: int, exit_code: int) -> int:
    """Say how many problems a check of `place` has printed, or none; return how it exits."""
    if not problems:
        print_line(f"{place}: no problems found")
        return 0
    count = "1 problem" if problems == 1 else f"{problems} problems"
    click.echo(f"statefs: error: {place}: {count} found, see above", err=True)
    return exit_code


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line; pairs without a value are left out."""
    shown = [(name, one_line(value)) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    terminal = sys.stdout.isatty()
    for name, value in shown:
        label = click.style(name.ljust(width), bold=True) if terminal else name.ljust(width)
        click.echo(f"{label}{_GAP}{value}")
