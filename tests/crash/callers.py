"""Where in the engine a system call was asked for: what a test without one of them is named by."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, GeneratorType
from typing import Any, Final

import statefs

PACKAGE: Final = str(Path(statefs.__file__).parent) + "/"
PASSING_ON: Final = frozenset(
    {
        "durable.py", "content/objects.py", "metadata/connection.py", "fuse/durability.py",
    }
)  # fmt: skip
"""Modules that sync because others ask for it: the place is that of who asked."""
TASKS: Final = frozenset({"move_log"})
"""What a driver does by itself."""
NAMELESS: Final = ("durable.py", "sync_file")
"""Stands in for a system call: who calls it has the name."""
DRIVERS: Final = frozenset({"maintenance/steps.py", "daemon/tasks.py"})
"""Modules that run what others have made: they are not told."""


def place_of_call() -> str:
    """Return the functions of the engine that led to here, from the inside out.

    The last one is the first that does not only pass the call on.
    """
    found: list[str] = []
    for module, function in _callers(sys._getframe(1)):
        if (module, function) == NAMELESS or (module in DRIVERS and function not in TASKS):
            continue
        step = f"{module}:{function}"
        if not found or found[-1] != step:
            found.append(step)
        if module not in PASSING_ON and not (
            module == "maintenance/store.py" and function in ("sync", "_sync_object", "freeing")
        ):
            break
    return " < ".join(found)


def _callers(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    while frame is not None:
        yield from _named(frame)
        steps = frame.f_locals.get("steps")
        if isinstance(
            steps, GeneratorType
        ):  # it waits for what is being done (maintenance/steps.py)
            yield from _waiting(steps)
        frame = frame.f_back


def _named(frame: FrameType) -> Iterator[tuple[str, str]]:
    path = frame.f_code.co_filename
    name = frame.f_code.co_name
    if path.startswith(PACKAGE) and not name.startswith("<"):
        yield path.removeprefix(PACKAGE), name


def _waiting(steps: Any) -> Iterator[tuple[str, str]]:
    """Yield the generators that wait for a step, from the inside out."""
    frames: list[FrameType] = []
    while isinstance(steps, GeneratorType):
        if steps.gi_frame is not None:
            frames.append(steps.gi_frame)
        steps = steps.gi_yieldfrom
    for frame in reversed(frames):
        yield from _named(frame)
