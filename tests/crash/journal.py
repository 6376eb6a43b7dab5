"""What clients of a mount were about to do and what was acknowledged, kept outside of it.

A client writes one line before each operation and one when its system calls have returned. The
file lies on the disk, not in the mount, and is written with write(2): it outlives the daemon.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_INTENT: Final = "I"
_DONE: Final = "D"


@dataclass(frozen=True)
class Step:
    """One operation of a client.

    Args:
        name: of the operation.
        arguments: JSON values; paths are latin-1 text of their bytes.
        begun_ns: CLOCK_MONOTONIC before its first system call.
        done_ns: after its last one; None when that never returned.
        answer: what it reported, None without an answer.
    """

    name: str
    arguments: tuple[Any, ...]
    begun_ns: int
    done_ns: int | None = None
    answer: Any = None


class JournalWriter:
    """Writes the journal of one client.

    Args:
        path: a new file outside of the mount.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def intend(self, name: str, *arguments: Any) -> None:
        """Note what is done next."""
        self._write([_INTENT, time.monotonic_ns(), name, arguments])

    def done(self, answer: Any = None) -> None:
        """Note that what was intended last has returned."""
        self._write([_DONE, time.monotonic_ns(), answer])

    def _write(self, record: list[Any]) -> None:
        os.write(self._descriptor, json.dumps(record).encode() + b"\n")


def read_journal(path: Path) -> list[Step]:
    """Return the steps of a journal in their order; at most the last one has no answer."""
    steps: list[Step] = []
    for line in path.read_bytes().splitlines():
        kind, when_ns, *rest = json.loads(line)
        if kind == _INTENT:
            steps.append(Step(rest[0], tuple(rest[1]), when_ns))
        else:
            last = steps[-1]
            steps[-1] = Step(last.name, last.arguments, last.begun_ns, when_ns, rest[0])
    assert all(step.done_ns is not None for step in steps[:-1])
    return steps
