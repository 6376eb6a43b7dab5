"""Where figures go: a JSON file for each run, with the machine it ran on, and tables."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec
from rich.console import Console
from rich.table import Table

from statefs import __version__

RESULTS: Final = Path(__file__).parent / "results"
FILE_WIDTH: Final = 180
"""Characters of a line in a file or a pipe: the widest table is whole."""
console: Final = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def machine() -> dict[str, Any]:
    """Return what figures depend on besides the program."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "statefs": __version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def keep(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write the figures of a run into a folder and return the file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    surroundings = {"machine": machine(), "arguments": sys.argv[1:]}
    path.write_bytes(
        msgspec.json.format(msgspec.json.encode(surroundings | figures), indent=2) + b"\n"
    )
    return path


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, figures to the right."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console.print(made)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as docs/performance.md has it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, is_markdown: bool
) -> None:
    """Print a table, for a terminal or for docs/performance.md."""
    if is_markdown:
        print(f"{title}\n\n{markdown(columns, rows)}\n")
    else:
        table(title, columns, rows)


def median(values: Sequence[float]) -> float:
    """Return the median, which a disturbed round does not move."""
    return statistics.median(values)


def figure(value: float) -> str:
    """Return a number with three digits that matter."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
