"""What goes to the screen: JSON documents, tables, facts. Knows nothing of snapshots.

On a terminal rich draws (imported only then); into a pipe or a file goes plain text whose lines
are never cut, one row per line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: shown in capitals above it.
        style: how rich draws its cells; no effect in plain text.
        align_right: for numbers.
        may_shorten: on a narrow terminal this column gives way first.
    """

    title: str
    style: str = ""
    align_right: bool = False
    may_shorten: bool = False


def printable(text: str) -> str:
    r"""Return `text` with everything a terminal might obey or choke on written as \x.. escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def one_line(text: str) -> str:
    """Return `text` on one line, safe to print."""
    return printable(" ".join(text.split("\n"))).strip()


def print_line(text: str) -> None:
    """Print one line of text."""
    click.echo(one_line(text))


def print_json(document: Any) -> None:
    """Print a document as JSON, indented, its keys in the order given."""
    import json

    unicode_out = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(document, indent=2, ensure_ascii=not unicode_out)
    # A name that is no UTF-8 arrives as lone surrogates; JSON writes those as \udcXX.
    click.echo(text.encode("utf-8", "backslashreplace") if unicode_out else text)


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.title.upper(),
            style=column.style,
            justify="right" if column.align_right else "left",
            no_wrap=True,
            overflow="ellipsis",
            # Without a ratio rich takes width from every column; names and times must stay whole.
            min_width=None if column.may_shorten else _width(columns, cells, column),
        )
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    Console(highlight=False).print(table)


def _width(columns: Sequence[Column], cells: Sequence[Sequence[str]], column: Column) -> int:
    index = columns.index(column)
    return max([len(column.title), *(len(line[index]) for line in cells)])


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line; pairs without a value are left out."""
    shown = [(name, one_line(value)) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    terminal = sys.stdout.isatty()
    for name, value in shown:
        label = click.style(name.ljust(width), bold=True) if terminal else name.ljust(width)
        click.echo(f"{label}{_GAP}{value}")
