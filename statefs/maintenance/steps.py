"""Long operations, written once: generators that yield what blocks and go on with what it returned.

An operation on a store is a sequence of critical sections on its tree with waits for the disk in
between. Written as a generator it says so plainly: each `yield` hands a blocking call out, and
between two of them nothing else touches the tree. The command line runs such a call where it is
(`run`), the daemon in a thread, so that the mount goes on meanwhile (`drive`). What a call raises
is raised inside the generator, at its `yield`.

    def save(store) -> Steps[Snapshot]:
        pending = store.catalog.begin(...)     # a critical section
        yield store.sync                       # blocks; the mount goes on
        return store.catalog.complete(pending)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")

Step = Callable[[], Any]
"""A call that may block for long and touches no row in memory (docs/concurrency.md)."""
Steps = Generator[Step, Any, T]
"""An operation that returns a T."""

LONG_SECONDS: Final = 0.02
SHORT_SECONDS: Final = 0.005


class Pace:
    """How many rows a step on the tree takes on, so that it is short on any disk.

    It begins with few, takes twice as many after a short step and half as many after a long one.

    Args:
        most: rows that are never exceeded.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.rows = max(1, most // 8)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the step inside the `with` block."""
        started = time.perf_counter()
        yield
        self.note(time.perf_counter() - started)

    def note(self, seconds: float) -> None:
        """Say how long the last step took."""
        if seconds > LONG_SECONDS:
            self.rows = max(1, self.rows // 2)
        elif seconds < SHORT_SECONDS:
            self.rows = min(self._most, 2 * self.rows)


def give_way() -> None:
    """Do nothing: a step between two parts of long work on the tree, for those who wait."""


async def drive(steps: Steps[T], call: Callable[[Step], Awaitable[Any]]) -> T:
    """Run an operation to its end, each of its steps through `call`, and return what it returns.

    Raises:
        BaseException: what the operation raises.
    """
    try:
        step = next(steps)
        while True:
            try:
                value = await call(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


def run(steps: Steps[T]) -> T:
    """Run an operation to its end in this thread, and return what it returns. Raises as `drive`."""
    try:
        drive(steps, _here).send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a coroutine that waits for nothing ends at once")


async def _here(step: Step) -> Any:
    return step()
