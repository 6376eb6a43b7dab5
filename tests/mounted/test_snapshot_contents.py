from __future__ import annotations

import mmap
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState
from tests.harness.sample_tree import change_everything, make_sample_tree
from tests.harness.trees import capture, differences

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def folder(shared_state: MountedState, request: pytest.FixtureRequest) -> Path:
    """An empty folder of the shared state, named after the test."""
    made: Path = shared_state.files / request.node.name[:200].replace("/", "-")
    made.mkdir()
    return made


def frozen(state: MountedState, folder: Path) -> Path:
    """Save, and return `folder` as the snapshot has it."""
    name = state.save()
    return state.snapshots / name / folder.relative_to(state.current)


def test_a_snapshot_is_the_tree_at_the_save(shared_state: MountedState, folder: Path) -> None:
    """Bytes, modes, owners, times, links, attributes and ACLs of every kind of file are equal."""
    make_sample_tree(folder)
    before = capture(folder)
    past = frozen(shared_state, folder)
    assert differences(before, capture(past)) == []


def test_a_snapshot_stays_when_everything_changes(shared_state: MountedState, folder: Path) -> None:
    """Changing, moving and removing all of current leaves the snapshot as it was, also later."""
    make_sample_tree(folder)
    before = capture(folder)
    past = frozen(shared_state, folder)
    change_everything(folder)
    assert differences(before, capture(past)) == []
    changed = capture(folder)
    later = frozen(shared_state, folder)
    shutil.rmtree(folder)
    assert differences(before, capture(past)) == []
    assert differences(changed, capture(later)) == []


def test_writing_after_a_save_never_reaches_the_snapshot(
    shared_state: MountedState, folder: Path
) -> None:
    """Random overwrites, appends and cuts in three epochs each keep what they had."""
    rng = random.Random(31)
    model = bytearray(rng.randbytes(200 * KIB))
    (folder / "f").write_bytes(model)
    kept: list[tuple[Path, bytes]] = []
    with open(folder / "f", "r+b", buffering=0) as file:
        for _ in range(6):
            kept.append((frozen(shared_state, folder) / "f", bytes(model)))
            for _ in range(20):
                at, piece = rng.randrange(len(model)), rng.randbytes(rng.choice((1, 700, 9000)))
                model.extend(bytes(max(0, at + len(piece) - len(model))))
                model[at : at + len(piece)] = piece
                os.pwrite(file.fileno(), piece, at)
            cut = rng.randrange(100 * KIB, len(model))
            del model[cut:]
            file.truncate(cut)
            assert (folder / "f").read_bytes() == bytes(model)
    for past, content in kept:
        assert past.read_bytes() == content
        assert os.stat(past).st_size == len(content)


def test_a_file_that_outgrows_its_row_keeps_its_small_past(
    shared_state: MountedState, folder: Path
) -> None:
    """From 100 bytes over many saves to 2 MiB and back: each snapshot has its own length."""
    kept = []
    for size in (100, 5_000, 17_000, 100_000, 2 * MIB, 70_000, 300, 0, 40_000):
        content = random.Random(size).randbytes(size)
        (folder / "f").write_bytes(content)
        kept.append((frozen(shared_state, folder) / "f", content))
    for past, content in kept:
        assert past.read_bytes() == content


def test_a_file_that_grows_by_appends_over_saves(shared_state: MountedState, folder: Path) -> None:
    """A log appended between saves is in each snapshot exactly as long as it was then."""
    kept = []
    with open(folder / "log", "ab", buffering=0) as log:
        for epoch in range(12):
            for number in range(40):
                log.write(b"epoch %03d line %05d\n" % (epoch, number) * 10)
            kept.append((frozen(shared_state, folder) / "log", os.stat(folder / "log").st_size))
    whole = (folder / "log").read_bytes()
    for past, size in kept:
        assert past.read_bytes() == whole[:size]


@pytest.mark.parametrize("size", [1_000, 500_000])
def test_cuts_over_saves(shared_state: MountedState, folder: Path, size: int) -> None:
    """Shrinking and growing again shows zeros in current and the old bytes in snapshots."""
    content = random.Random(size).randbytes(size)
    (folder / "f").write_bytes(content)
    first = frozen(shared_state, folder) / "f"
    os.truncate(folder / "f", size // 3)
    second = frozen(shared_state, folder) / "f"
    os.truncate(folder / "f", size)
    third = frozen(shared_state, folder) / "f"
    with open(folder / "f", "r+b") as file:
        file.seek(size // 2)
        file.write(b"late")
    assert first.read_bytes() == content
    assert second.read_bytes() == content[: size // 3]
    wanted = bytearray(content[: size // 3] + bytes(size - size // 3))
    assert third.read_bytes() == wanted
    wanted[size // 2 : size // 2 + 4] = b"late"
    assert (folder / "f").read_bytes() == wanted


def store_in_every_page(view: mmap.mmap, mark: bytes) -> None:
    """Change each page of a map, so that the kernel has much to write that it was not told of."""
    for page in range(0, len(view), mmap.PAGESIZE):
        view[page : page + len(mark)] = mark


def test_dirty_pages_of_a_shared_map_are_in_the_snapshot(
    shared_state: MountedState, folder: Path
) -> None:
    """A save makes the kernel write what a program stored in a map and never synced.

    By mkdir, which is quick: the kernel has no time to write the pages by itself.
    """
    (folder / "f").write_bytes(bytes(MIB))
    with open(folder / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        for number in range(10):
            mark = b"save-%02d" % number
            store_in_every_page(view, mark)
            (shared_state.snapshots / f"map-{number}").mkdir()
        store_in_every_page(view, b"later!!")
    inside = folder.relative_to(shared_state.current)
    for number in range(10):
        content = (shared_state.snapshots / f"map-{number}" / inside / "f").read_bytes()
        wanted = (b"save-%02d" % number).ljust(mmap.PAGESIZE, b"\0") * (MIB // mmap.PAGESIZE)
        assert content == wanted


def test_a_map_of_a_closed_file_is_in_the_snapshot(
    shared_state: MountedState, folder: Path
) -> None:
    """The descriptor a map was made from may be closed long before the save."""
    (folder / "f").write_bytes(bytes(MIB))
    with open(folder / "f", "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
    with view:
        store_in_every_page(view, b"stored")
        (shared_state.snapshots / "closed").mkdir()
    past = shared_state.snapshots / "closed" / folder.relative_to(shared_state.current) / "f"
    content = past.read_bytes()
    assert content == b"stored".ljust(mmap.PAGESIZE, b"\0") * (MIB // mmap.PAGESIZE)


def test_an_unlinked_open_file_is_not_in_the_snapshot(
    shared_state: MountedState, folder: Path
) -> None:
    """It has no name to be there by; its descriptor goes on working through the save."""
    with open(folder / "gone", "w+b", buffering=0) as file:
        file.write(b"x" * 100_000)
        os.unlink(folder / "gone")
        past = frozen(shared_state, folder)
        assert os.listdir(past) == []
        file.write(b"y")
        file.seek(0)
        assert file.read() == b"x" * 100_000 + b"y"
    frozen(shared_state, folder)


def test_a_file_unlinked_after_the_save_stays_in_the_snapshot(
    shared_state: MountedState, folder: Path
) -> None:
    """Also when it was open over the save and written afterwards."""
    with open(folder / "f", "w+b", buffering=0) as file:
        file.write(b"before" * 10_000)
        past = frozen(shared_state, folder) / "f"
        os.unlink(folder / "f")
        file.seek(0)
        file.write(b"AFTER!")
        file.truncate(6)
    assert past.read_bytes() == b"before" * 10_000


def test_a_file_open_over_a_save_goes_on(shared_state: MountedState, folder: Path) -> None:
    """Descriptors, positions and locks are not disturbed; the snapshot has what was written."""
    with open(folder / "f", "wb", buffering=0) as file:
        file.write(b"one ")
        first = frozen(shared_state, folder) / "f"
        file.write(b"two ")
        second = frozen(shared_state, folder) / "f"
        file.write(b"three")
    assert first.read_bytes() == b"one "
    assert second.read_bytes() == b"one two "
    assert (folder / "f").read_bytes() == b"one two three"


def test_runtime_is_left_out(shared_state: MountedState) -> None:
    """What belongs to the running services, not to the user, is in no snapshot."""
    (shared_state.current / "runtime/ports.json").write_text("{}")
    name = shared_state.save()
    kept = set(os.listdir(shared_state.snapshots / name))
    assert kept == (set(os.listdir(shared_state.current)) - {"runtime"}) | {"metadata.json"}


def test_many_epochs_of_one_tree(shared_state: MountedState, folder: Path) -> None:
    """Thirty saves with small changes between them each show their own tree."""
    rng = random.Random(7)
    kept = []
    for epoch in range(30):
        name = f"f{rng.randrange(8)}"
        choice = rng.randrange(4)
        if choice == 0 or not (folder / name).exists():
            (folder / name).write_bytes(rng.randbytes(rng.choice((10, 30_000))))
        elif choice == 1:
            (folder / name).unlink()
        elif choice == 2:
            os.rename(folder / name, folder / f"f{rng.randrange(8)}")
        else:
            with open(folder / name, "ab") as file:
                file.write(b"%d" % epoch)
        kept.append((capture(folder), frozen(shared_state, folder)))
    for number, (wanted, past) in enumerate(kept):
        assert differences(wanted, capture(past)) == [], number
