from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path

from tests.harness.mounted_state import MountedState
from tests.harness.processes import Child
from tests.harness.system_calls import errno_of
from tests.harness.trees import capture, differences

WRITERS = 3
SAVES = 200
COUNTER = struct.Struct("<Q")


def count_up(folder: Path, stop: Path) -> int:
    """Write each number to `a`, then to `b`, then as a new file over `c`, until `stop` exists."""
    with (
        open(folder / "a", "wb", buffering=0) as first,
        open(folder / "b", "wb", buffering=0) as last,
    ):
        for number in itertools.count(1):
            os.pwrite(first.fileno(), COUNTER.pack(number), 0)
            os.pwrite(last.fileno(), COUNTER.pack(number), 70_000)
            (folder / "new").write_bytes(COUNTER.pack(number) * 1_000)
            os.rename(folder / "new", folder / "c")
            if stop.exists():
                return number
    raise AssertionError


def writing_in(folder: Path, stop: Path) -> dict[str, Callable[[], int]]:
    """Return the step of one writer."""
    folder.mkdir()
    return {"count": lambda: count_up(folder, stop)}


def read_counter(path: Path, offset: int = 0) -> int:
    """Return a counter that a writer left; 0 where it had not begun."""
    with open(path, "rb") as file:
        data = os.pread(file.fileno(), COUNTER.size, offset)
    return int(COUNTER.unpack(data)[0]) if data else 0


def test_every_snapshot_is_one_moment(own_state: MountedState, wide_folder: Path) -> None:
    """What was written first is never behind what was written after it, in any writer's files.

    A snapshot that collected files one after the other would show a later `b` beside an earlier
    `a`. The writers go on while it is taken: each counts on between any two saves.
    """
    stop = wide_folder / "stop"
    folders = [own_state.files / f"w{number}" for number in range(WRITERS)]
    children = [Child(writing_in(folder, stop)) for folder in folders]
    for child in children:
        child.ask("count")
    names = []
    for number in range(SAVES):
        (own_state.snapshots / f"s{number}").mkdir()
        names.append(f"s{number}")
    stop.touch()
    totals = [child.answer() for child in children]
    for child in children:
        child.kill()
    stop.unlink()
    seen: dict[Path, list[int]] = {folder: [] for folder in folders}
    for name, folder in itertools.product(names, folders):
        past = own_state.snapshots / name / folder.relative_to(own_state.current)
        if not (past / "c").exists():
            continue
        first, last = read_counter(past / "a"), read_counter(past / "b", 70_000)
        content = (past / "c").read_bytes()
        renamed = read_counter(past / "c")
        assert content == COUNTER.pack(renamed) * 1_000
        assert first >= last >= renamed >= first - 1
        seen[folder].append(first)
    for folder, total in zip(folders, totals, strict=True):
        assert seen[folder] == sorted(seen[folder])
        assert len(set(seen[folder])) > SAVES // 3
        assert max(seen[folder]) <= total


def test_a_snapshot_that_is_read_while_others_come_and_go(own_state: MountedState) -> None:
    """Reading one snapshot is not disturbed by saves, deletions and changes beside it."""
    for number in range(60):
        (own_state.files / f"f{number}").write_bytes(os.urandom(12_000))
    name = own_state.save()
    past = own_state.snapshots / name / "files"
    wanted = capture(past)

    def disturb() -> None:
        for number in range(12):
            (own_state.files / f"f{number}").write_bytes(b"new")
            (own_state.files / f"f{number + 20}").unlink()
            (own_state.snapshots / f"t{number}").mkdir()
            if number % 3 == 2:
                (own_state.snapshots / f"t{number - 1}").rmdir()

    with Child({"disturb": disturb}) as child:
        child.ask("disturb")
        for _ in range(8):
            assert differences(wanted, capture(past)) == []
        child.answer()
    assert differences(wanted, capture(past)) == []


def test_deleting_a_snapshot_that_is_in_use(own_state: MountedState) -> None:
    """Whoever has its files open reads what was in them or an error, never anything else."""
    content = os.urandom(300_000)
    (own_state.files / "f").write_bytes(content)
    name = own_state.save()
    past = own_state.snapshots / name
    folder = os.open(past / "files", os.O_RDONLY | os.O_DIRECTORY)
    with open(past / "files/f", "rb", buffering=0) as file:
        assert file.read(1000) == content[:1000]
        own_state.delete(name)
        (own_state.files / "f").write_bytes(b"z" * 300_000)
        got: list[bytes] = []
        code = errno_of(lambda: got.append(os.pread(file.fileno(), 300_000, 0)))
        assert code or content.startswith(got[0])
    assert errno_of(lambda: os.stat(past)) != 0
    assert errno_of(lambda: os.listdir(folder)) or os.listdir(folder) in ([], ["f"])
    os.close(folder)
    assert (own_state.files / "f").read_bytes() == b"z" * 300_000
