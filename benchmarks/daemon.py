"""`python -m benchmarks.daemon MODE STATE STORE OPTIONS FILE`: a daemon whose worker is looked at.

MODE is `plain` (as it is), `uncounted` (requests are not counted, benchmarks/counting.py), `count`
(raises the counters in FILE for every request and statement), `profile` (writes cProfile's
statistics of the loop's thread to FILE when it ends), `steps` (writes a line to FILE for what the
loop does without looking at requests, benchmarks/steps.py) or `write-back` (the kernel keeps what
is written for a while, benchmarks/write_back.py).
"""

from __future__ import annotations

import cProfile
import os
import socket
import sys
import types
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from pathlib import Path
from time import thread_time_ns
from typing import Any, Final

import apsw
import trio

from benchmarks import counting, steps
from benchmarks.counters import REQUESTS, Counters
from statefs.daemon import worker
from statefs.daemon.supervisor import run_foreground
from statefs.fuse import handshake
from statefs.fuse.operations import Operations
from statefs.fuse.session_loop import SessionLoop
from statefs.mounts import MountOptions

WRITEBACK_CACHE: Final = 1 << 16
"""FUSE_WRITEBACK_CACHE. Source: linux/fuse.h, "INIT request/reply flags"."""
WORKER: Final = "worker"
"""In the place of MODE: what the supervisor starts."""


@types.coroutine
def _measured(
    awaited: Awaitable[Any], slots: memoryview[int], place: int
) -> Generator[Any, Any, Any]:
    """Await something and add the CPU it takes itself, without that of others meanwhile."""
    steps = awaited.__await__()
    resume: Callable[[Any], Any] = steps.send
    value: Any = None
    while True:
        started = thread_time_ns()
        try:
            trap = resume(value)
        except StopIteration as end:
            return end.value
        finally:
            slots[place] += thread_time_ns() - started
        try:
            value = yield trap
            resume = steps.send
        except BaseException as error:
            value = error
            resume = steps.throw


def _count_requests(counters: Counters) -> None:
    """Put a counting door before every handler."""
    slots = counters.slots

    def counted(name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        count, spent = counters.place(name), counters.place(f"{name}_ns")

        async def counting(self: Operations, *args: Any) -> Any:
            slots[count] += 1
            return await _measured(handler(self, *args), slots, spent)

        return counting

    for name in REQUESTS:
        setattr(Operations, name, counted(name, getattr(Operations, name)))


def _count_waiting(counters: Counters) -> None:
    """Count what looking for the next request costs; the loop's own detail, so it is asked for."""
    slots, place = counters.slots, counters.place("waiting_ns")
    wait = getattr(SessionLoop, "_wait", None)
    if wait is None:
        return

    async def waiting(self: SessionLoop, *args: Any) -> None:
        await _measured(wait(self, *args), slots, place)

    SessionLoop._wait = waiting  # type: ignore[method-assign, assignment]


def _count_statements(counters: Counters) -> None:
    """Count the statements of every connection made from now on."""
    slots = counters.slots
    statements, commits = counters.place("statements"), counters.place("commits")

    def trace(_: Any, statement: str, __: Any) -> bool:
        slots[statements] += 1
        if statement == "COMMIT":
            slots[commits] += 1
        return True

    def hook(connection: apsw.Connection) -> None:
        connection.set_exec_trace(trace)

    apsw.connection_hooks.append(hook)


def _profile(file: Path) -> None:
    """Run the loop under cProfile."""
    run = trio.run

    def profiled(*args: Any, **kwargs: Any) -> Any:
        profile = cProfile.Profile()
        try:
            return profile.runcall(run, *args, **kwargs)
        finally:
            profile.dump_stats(file)

    trio.run = profiled  # type: ignore[assignment]  # lifecycle calls it with its own arguments


def _spawn(mode: str, file: str, end: socket.socket) -> int:
    """Start a worker that is looked at."""
    end.set_inheritable(True)
    command = [sys.executable, "-m", "benchmarks.daemon", WORKER, mode, file, str(end.fileno())]
    return os.posix_spawn(command[0], command, os.environ, setsid=True)


def _serve(mode: str, file: Path, end: socket.socket) -> int:
    """Be the worker."""
    if mode == "count":
        counters = Counters(file)
        _count_statements(counters)
        _count_requests(counters)
        _count_waiting(counters)
    elif mode == "uncounted":
        counting.count_nothing()
    elif mode == "profile":
        _profile(file)
    elif mode == "steps":
        steps.watch(file)
    elif mode == "write-back":
        handshake.WANTED |= WRITEBACK_CACHE  # type: ignore[misc]  # an experiment with a constant
    return worker.main(end)


def main() -> int:
    """Serve until unmounted."""
    if sys.argv[1] == WORKER:
        mode, file, fd = sys.argv[2:5]
        return _serve(mode, Path(file), socket.socket(fileno=int(fd)))
    mode, state, store, options, file = sys.argv[1:6]
    spawn = partial(_spawn, mode, file)
    run_foreground(Path(state), Path(store), MountOptions.parse(options), spawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
