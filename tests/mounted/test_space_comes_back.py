"""Promise 8: nothing leaks. What the store takes on its disk, by st_blocks, comes back."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Final

import pytest

from statefs.maintenance.pruning import bytes_on_disk
from tests.harness.mounted_state import MountedState, eventually

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SNAPSHOTS: Final = 50
ROWS_PER_PIECE: Final = 400
"""Bytes of meta.db for one piece of a file: its row, the row it ended, two index entries, slack."""
OVERHEAD: Final = 40 * MIB
"""What a store may take beyond its content: the log's longest, the reserve, pages not worth giving
back."""


def write_file(path: Path, size: int) -> None:
    """Make a file of random bytes, which no disk can compress."""
    with open(path, "wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))


def rewrite(path: Path, pieces: list[int], piece_bytes: int) -> None:
    """Write some pieces of a file anew, in place; each is named by its number."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for piece in pieces:
            os.pwrite(descriptor, os.urandom(piece_bytes), piece * piece_bytes)
    finally:
        os.close(descriptor)


def shrinks_to(state: MountedState, most: int, what: str) -> None:
    """Wait until the store takes no more than `most` bytes, for as long as it shrinks."""
    while (before := bytes_on_disk(state.store)) > most:
        eventually(lambda: bytes_on_disk(state.store) < before, f"{what}: at most {most} bytes")


@pytest.mark.parametrize(
    ("size", "piece_bytes"),
    [
        pytest.param(40 * MIB, 16 * KIB, marks=pytest.mark.timeout(300), id="40MB"),
        pytest.param(
            1024 * MIB,
            16 * KIB,
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(1800),
                pytest.mark.skipif(
                    "STATEFS_LONG_TESTS" not in os.environ,
                    reason="takes minutes: set STATEFS_LONG_TESTS",
                ),
            ],
            id="1GB",
        ),
    ],
)
def test_a_file_rewritten_in_small_pieces_gives_its_past_back(
    own_state: MountedState, size: int, piece_bytes: int
) -> None:
    """Over 50 snapshots every piece is written anew once, in random order.

    All of them together take the file twice, and once or twice more where the daemon has merged
    what the writes had scattered; with each snapshot that is deleted room comes back; all deleted,
    the file alone is left; without the file, an empty store.
    """
    empty = bytes_on_disk(own_state.store)
    path = own_state.files / "big"
    write_file(path, size)
    pieces = list(range(size // piece_bytes))
    random.Random(8).shuffle(pieces)
    share = -(-len(pieces) // SNAPSHOTS)
    names = []
    for start in range(0, len(pieces), share):
        names.append(own_state.save())
        rewrite(path, pieces[start : start + share], piece_bytes)
    overhead = empty + OVERHEAD + ROWS_PER_PIECE * len(pieces)
    taken = bytes_on_disk(own_state.store)
    assert 2 * size <= taken <= 4 * size + overhead

    listed = json.loads(own_state.command("list", own_state.state, "--sizes", "--json"))
    said = {each["name"]: each["freedBytes"] for each in listed["snapshots"]}
    assert share * piece_bytes <= said[names[0]] <= share * (piece_bytes + ROWS_PER_PIECE)
    for name in names[: len(names) // 2]:
        own_state.delete(name)
    shrinks_to(own_state, taken - size // 3, "half of the past is gone")
    for name in names[len(names) // 2 :]:
        own_state.delete(name)
    shrinks_to(own_state, size + overhead, "all of the past is gone")
    path.unlink()
    shrinks_to(own_state, overhead, "the file is gone")
    own_state.remount()
    shrinks_to(own_state, empty + OVERHEAD // 4, "an empty store")
