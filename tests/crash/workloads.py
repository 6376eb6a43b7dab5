"""Short workloads: every operation, every pair, and samples of three, on a store with a past.

A workload is written `START:OPERATION,OPERATION,...`. START says which kind of file is used first:
`small` lies in the database, `old` in an object file that a snapshot holds, `new` in one that none
does. `!` behind an operation: what it changed is synced then, by fsync of the file or its folder.
`&OPERATION.PLACE` behind that: while that sync, or the operation, waits for the disk, another
program does something (tests/crash/meanwhile.py).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.crash.engine import DURING, Step
from tests.crash.meanwhile import PLACES, WITHIN

STARTS: Final = ("small", "old", "new")
ON_FILES: Final = ("create", "write", "overwrite", "append", "truncate", "link", "setxattr")
"""Operations that fsync of a file makes durable."""
ON_NAMES: Final = ("rename", "unlink", "mkdir", "rmdir")
"""Operations that fsync of a folder makes durable."""
DURABLE: Final = ("save", "restore", "prune", "clone")
"""Operations that are durable when they return."""
OPERATIONS: Final = (*ON_FILES, *ON_NAMES, *DURABLE)
BESIDE: Final = ("tick", "checkpoint", "collect", "seal", "kill")
"""What happens to a store beside operations: what the daemon does, and the process that is killed
and followed by another."""
CHANGING: Final = ("write", "overwrite", "append", "truncate")
"""Operations that change bytes of a file."""
WAITING: Final = ("tick", "save", "restore", "rename")
"""What waits for the bytes of a file that has not been synced."""
FILES: Final = b"files"
OLD: Final = b"1"
"""The older snapshot of the store."""
POLICY: Final = "[retention]\nmax_snapshots = 1\nprotect_labelled = false\n"
"""Of statefs.toml: pruning deletes all snapshots but the newest."""


@cache
def _bytes(seed: str, size: int) -> bytes:
    """Return bytes of which none is zero, and that differ from those of another seed."""
    rng = random.Random(seed)
    return bytes(rng.choices(range(1, 256), k=size))


SETUP: Final[tuple[Step, ...]] = (
    ("create", b"files/old", 0o644),
    ("write", b"files/old", 0, _bytes("old", 20_000)),
    ("create", b"files/small", 0o644),
    ("write", b"files/small", 0, _bytes("small", 700)),
    ("create", b"files/fourth", 0o644),
    ("write", b"files/fourth", 0, _bytes("fourth", 9_000)),
    ("mkdir", b"files/empty", 0o755),
    ("mkdir", b"files/hollow", 0o755),
    ("mkdir", b"files/void", 0o755),
    ("save", OLD),
    ("write", b"files/old", 4_000, _bytes("older", 3_000)),
    ("setxattr", b"files/small", "user.a", b"1"),
    ("save", b"2"),
    ("create", b"files/new", 0o644),
    ("write", b"files/new", 0, _bytes("new", 20_000)),
    ("create", b"files/spare", 0o644),
    ("write", b"files/spare", 0, _bytes("spare", 12_000)),
    ("create", b"files/third", 0o644),
    ("write", b"files/third", 0, _bytes("third", 300)),
    ("tick",),
)
"""What makes the store that each workload begins with."""
IN_SNAPSHOTS: Final = (b"fourth", b"old", b"small")
"""Files that its snapshots have."""


@dataclass(frozen=True)
class Workload:
    """Some operations.

    Args:
        start: one of STARTS.
        operations: each with a `!` where what it changed is synced.
    """

    start: str
    operations: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.start}:{','.join(self.operations)}"

    @staticmethod
    def parse(text: str) -> Workload:
        """Return the workload that `str` has written."""
        start, _, operations = text.partition(":")
        return Workload(start, tuple(filter(None, operations.split(","))))

    def steps(self) -> list[list[Step]]:
        """Return the steps of each operation."""
        script = _Script(self.start)
        return [script.steps(operation) for operation in self.operations]


class _Script:
    """Thinks of the steps of one operation after the other; each uses what those before left."""

    def __init__(self, start: str) -> None:
        self._start = start
        self._count = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Use the files of the store as it is made, or as its snapshots have it."""
        names = IN_SNAPSHOTS if self._count else (b"spare", b"third", *IN_SNAPSHOTS)
        first = [name for name in (self._start.encode(),) if not self._count or name in names]
        self._files = [*first, *(name for name in names if name not in first)]
        self._empty = [b"files/empty", b"files/hollow", b"files/void"]

    @property
    def _file(self) -> bytes:
        return FILES + b"/" + self._files[0]

    def steps(self, operation: str) -> list[Step]:
        operation, _, other = operation.partition("&")
        if other:
            return self._steps_with(operation, *other.split("."))
        name = operation.removesuffix("!")
        self._count += 1
        if name in BESIDE:
            return [(name,)]
        steps: list[Step] = getattr(self, f"_{name}")(b"%d" % self._count)
        if operation.endswith("!"):
            steps.append(("fsync", self._file) if name in ON_FILES else ("syncdir", FILES))
        return steps

    def _steps_with(self, operation: str, other: str, place: str) -> list[Step]:
        """Return the steps of an operation whose last one another lands in, on the same file."""
        if operation == "rename":  # while it still has its old name
            landing, steps = self.steps(other), self.steps(operation)
        else:
            steps, landing = self.steps(operation), self.steps(other)
        (landed,) = landing
        return [*steps[:-1], (DURING, steps[-1], landed, place)]

    def _create(self, number: bytes) -> list[Step]:
        self._files.insert(0, b"made" + number)
        return [("create", self._file, 0o644)]

    def _write(self, number: bytes) -> list[Step]:
        return [("write", self._file, 0, _bytes(f"write {number!r}", 16_000))]

    def _overwrite(self, number: bytes) -> list[Step]:
        return [("write", self._file, 100, _bytes(f"overwrite {number!r}", 600))]

    def _append(self, number: bytes) -> list[Step]:
        return [("append", self._file, _bytes(f"append {number!r}", 5_000))]

    def _truncate(self, number: bytes) -> list[Step]:
        return [("truncate", self._file, 400 // int(number))]

    def _rename(self, _: bytes) -> list[Step]:
        old, new = self._file, FILES + b"/" + self._files[1]
        del self._files[0]
        return [("rename", old, new, 0)]

    def _link(self, number: bytes) -> list[Step]:
        return [("link", self._file, b"files/link" + number)]

    def _unlink(self, _: bytes) -> list[Step]:
        return [("unlink", FILES + b"/" + self._files.pop(0))]

    def _mkdir(self, number: bytes) -> list[Step]:
        self._empty.insert(0, b"files/folder" + number)
        return [("mkdir", self._empty[0], 0o755)]

    def _rmdir(self, _: bytes) -> list[Step]:
        return [("rmdir", self._empty.pop(0))]

    def _setxattr(self, number: bytes) -> list[Step]:
        return [("setxattr", self._file, "user.b", _bytes(f"attribute {number!r}", 900))]

    def _save(self, number: bytes) -> list[Step]:
        return [("save", b"saved" + number)]

    def _restore(self, _: bytes) -> list[Step]:
        self._begin_anew()
        return [("restore", OLDEST)]

    def _prune(self, _: bytes) -> list[Step]:
        return [("prune",)]

    def _clone(self, number: bytes) -> list[Step]:
        return [("clone", b"clone" + number)]


OLDEST: Final = b"the oldest"
"""For a step: the oldest snapshot there is then."""


def all_of_one() -> Iterator[Workload]:
    """Yield no operation at all, then every one, synced, with each start."""
    yield Workload(STARTS[0], ())
    for start, operation in itertools.product(STARTS, OPERATIONS):
        yield Workload(start, (_synced(operation),))


def all_of_two(starts: tuple[str, ...] = STARTS) -> Iterator[Workload]:
    """Yield every pair of operations, the first synced and not, the second synced."""
    for start, one, two in itertools.product(starts, OPERATIONS, OPERATIONS):
        for first in dict.fromkeys((one, _synced(one))):
            yield Workload(start, (first, _synced(two)))


def all_with_beside(starts: tuple[str, ...] = STARTS) -> Iterator[Workload]:
    """Yield every operation, not synced, and something that happens beside it."""
    for start, operation, beside in itertools.product(starts, OPERATIONS, BESIDE):
        yield Workload(start, (operation, beside))


def all_during(starts: tuple[str, ...] = STARTS) -> Iterator[Workload]:
    """Yield what is waited for, and each operation that another program does meanwhile.

    First a file is changed and not synced; by the sync of the file, a tick, a save, a restore or
    when it replaces another one it is.
    """
    for start, one, other, place in itertools.product(starts, CHANGING, CHANGING, PLACES):
        landing = f"&{other}.{place}"
        yield Workload(start, (f"{one}!{landing}",))
        yield from (Workload(start, (one, f"{name}{landing}")) for name in WAITING)
    for start, one, other, place in itertools.product(starts, CHANGING, ON_NAMES[:2], PLACES):
        landing = f"&{other}.{place}"
        if other == "unlink" or place != WITHIN:  # it may have to sync, too
            yield Workload(start, (f"{one}!{landing}",))
            yield from (Workload(start, (one, f"{name}{landing}")) for name in ("tick", "save"))


def some_during(count: int, seed: int) -> Iterator[Workload]:
    """Yield some of them, with each kind of file but `old`, of which all are tried."""
    yield from random.Random(seed).sample([*all_during(("small", "new"))], count)


def some_of_three(count: int, seed: int) -> Iterator[Workload]:
    """Yield random workloads of three operations."""
    rng = random.Random(seed)
    for _ in range(count):
        operations = [rng.choice(OPERATIONS) for _ in range(3)]
        synced = [rng.choice((name, _synced(name))) for name in operations[:2]]
        yield Workload(rng.choice(STARTS), (*synced, _synced(operations[2])))


def _synced(operation: str) -> str:
    return operation if operation in DURABLE else f"{operation}!"
