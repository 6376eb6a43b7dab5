"""Long operations, written once: generators that yield what blocks and go on with what it returned.

An operation on a store is a sequence of critical sections on its tree with waits for the disk in
between. Written as a generator it says so plainly: each `yield` hands a blocking call out, and
between two of them nothing else touches the tree. The command line runs such a call where it is
(`run`), the daemon in a thread, so that the mount goes on meanwhile (statefs.daemon.service). What
a call raises is raised inside the generator, at its `yield`.

    def save(store) -> Steps[Snapshot]:
        pending = store.catalog.begin(...)     # a critical section
        yield store.sync                       # blocks; the mount goes on
        return store.catalog.complete(pending)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")

Step = Callable[[], Any]
"""A call that may block for long and touches no row in memory (docs/concurrency.md)."""
Steps = Generator[Step, Any, T]
"""An operation that returns a T."""


def run(steps: Steps[T]) -> T:
    """Run an operation to its end in this thread, and return what it returns.

    Raises:
        Exception: what the operation raises.
    """
    try:
        step = next(steps)
        while True:
            try:
                value = step()
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result
