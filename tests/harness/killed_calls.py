"""Runs a function in a child process that is killed at the n-th call that changes the disk.

A write that is the n-th is done by half first. Syncs are counted and left out: what a process has
written survives its end, and only that is tried here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from tests.harness.processes import start

Acknowledge = Callable[[str], None]

CALLS: Final = (
    "open", "write", "pwrite", "rename", "link", "unlink", "mkdir", "ftruncate", "chmod"
)  # fmt: skip
SYNCS: Final = ("fsync", "fdatasync")


class Killed(NamedTuple):
    """One run.

    Args:
        at: the number of the call that killed it, from 1.
        acknowledged: what the function said before.
    """

    at: int
    acknowledged: list[str]


def each_kill(
    function: Callable[[Acknowledge], None], calls: Sequence[str] = (*CALLS, *SYNCS)
) -> Iterator[Killed]:
    """Run `function` killed at its first call, at its second, until it ends by itself.

    Args:
        function: is told how to say what it has done; what it changes is put back by the caller.
        calls: those that count.
    """
    at = 0
    while True:
        at += 1
        acknowledged, was_killed = _run(function, at, calls)
        if not was_killed:
            assert at > len(SYNCS), "nothing was killed: the function changes nothing"
            return
        yield Killed(at, acknowledged)


def _run(
    function: Callable[[Acknowledge], None], at: int, calls: Sequence[str]
) -> tuple[list[str], bool]:
    reader, writer = os.pipe()
    write = os.write

    def acknowledge(word: str) -> None:
        write(writer, f"{word}\n".encode())

    def child() -> None:
        os.close(reader)
        _arm(at, calls)
        function(acknowledge)

    pid = start(child)
    os.close(writer)
    with open(reader) as stream:
        words = stream.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the function failed when killed at call {at}"
    return words, status != 0


def _arm(at: int, calls: Sequence[str]) -> None:
    """Count calls of this process and kill it at one of them."""
    count = 0
    write = os.write

    def counted(call: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            if name == "write":
                write(args[0], bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return None if name in SYNCS else call(*args, **kwargs)

    for name in calls:
        setattr(os, name, partial(counted, getattr(os, name), name))
