"""How far a long command is, on standard error: a bar for people, JSON lines for programs.

An operation reports documents such as `{"what": "reading", "done": 512, "total": 4096, "unit":
"bytes"}` (docs/cli.md, "Progress"). `shown_progress` gives the function that takes them:

    with shown_progress(as_json) as on_progress:
        problems = opened.verify(on_progress=on_progress)

On a terminal that is a bar with its rate; in a pipe nothing, or with `--json` one line each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from statefs.cli.output import one_line
from statefs.units import count_text, size_text

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.text import Text

Document = dict[str, Any]
OnProgress = Callable[[Document], None]

EVENT_SECONDS: Final = 0.2
"""Between two JSON lines of one kind of work; the first comes at once, and so does the last."""
BYTES: Final = "bytes"
"""The unit that is shown as a size; every other one is a count of what it names."""
_DRAWS_A_SECOND: Final = 5


@contextmanager
def shown_progress(as_json: bool) -> Iterator[OnProgress | None]:
    """Give the function that shows the progress of an operation, None where nobody looks.

    Args:
        as_json: the command has `--json`: events are lines of JSON on standard error.
    """
    if as_json:
        yield JsonEvents()
    elif sys.stderr.isatty():
        with Bar() as bar:
            yield bar
    else:
        yield None


class JsonEvents:
    """Writes each event as one line, `{"event": "progress", ...}`.

    Args:
        clock: tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._what: object = None
        self._next_at = 0.0

    def __call__(self, progress: Document) -> None:
        """Write an event, unless one of the same work has just been written."""
        now = self._clock()
        is_last = progress.get("total") is not None and progress["done"] == progress["total"]
        if progress.get("what") == self._what and now < self._next_at and not is_last:
            return
        self._what, self._next_at = progress.get("what"), now + EVENT_SECONDS
        click.echo(json.dumps({"event": "progress", **progress}), err=True)


class Bar:
    """Draws a bar for each kind of work, with its rate; gone when the work is done.

    Args:
        console: where to draw; left out, standard error.
    """

    def __init__(self, console: Any = None) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._what: str | None = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, progress: Document) -> None:
        """Draw an event."""
        if self._progress is None:
            self._progress = _drawn(self._console)
            self._progress.start()
        what = one_line(str(progress.get("what", "")))
        if what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._what = what
            self._task = self._progress.add_task(what, total=None)
        unit = str(progress.get("unit", ""))
        done, total = progress["done"], progress.get("total")
        self._progress.update(self._task, completed=done, total=total, unit=unit)


def amount_text(amount: float, unit: str) -> str:
    """Return an amount of a unit: `1.5 KiB`, `1,234 files`."""
    return size_text(int(amount)) if unit == BYTES else f"{count_text(int(amount))} {unit}"


def state_text(done: float, total: float | None, rate: float | None, unit: str) -> str:
    """Return what stands behind a bar: `1.0 MiB of 5.0 MiB, 2.0 MiB/s`; "" where nobody counts."""
    if not done and total is None:
        return ""
    text = amount_text(done, unit)
    if total is not None:
        text += f" of {amount_text(total, unit)}"
    return text if rate is None else f"{text}, {amount_text(rate, unit)}/s"


def _drawn(console: Any) -> Progress:
    """Return a display that is not yet drawn; rich is imported only here."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class State(ProgressColumn):
        """Done, total and rate."""

        def render(self, task: Task) -> Text:
            unit = str(task.fields.get("unit", ""))
            return Text(state_text(task.completed, task.total, task.speed, unit))

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        State(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True),
        console=console or Console(stderr=True, highlight=False),
        transient=True,
        expand=True,
        refresh_per_second=_DRAWS_A_SECOND,
    )
