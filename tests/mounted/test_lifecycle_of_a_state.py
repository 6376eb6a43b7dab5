from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from statefs.layout import StoreLayout
from tests.harness.mounted_state import MountedState, eventually, mounted
from tests.harness.sample_tree import change_everything, make_sample_tree
from tests.harness.system_calls import errno_of
from tests.harness.trees import DOCUMENT, Tree, capture, differences

MIB = 1024 * 1024


def folder_size(path: Path) -> int:
    """Return the bytes that a folder takes on the disk."""
    done = subprocess.run(["du", "-s", "-B1", str(path)], capture_output=True, check=True)
    return int(done.stdout.split()[0])


def object_files(state: MountedState) -> int:
    """Return how many object files a store has."""
    objects = StoreLayout(state.store).objects
    return sum(len(files) for _, _, files in os.walk(objects))


def frozen_trees(state: MountedState) -> dict[str, Tree]:
    """Return the tree of every snapshot by its name, without metadata.json."""
    return {
        listed["name"]: capture(state.snapshots / listed["name"], leave_out=DOCUMENT)
        for listed in state.listing()
    }


def test_a_remount_keeps_everything(own_state: MountedState) -> None:
    """Current and all snapshots are the same before and after, and so are the inode numbers."""
    make_sample_tree(own_state.files)
    own_state.save("one", name="first")
    change_everything(own_state.files)
    own_state.save("two")
    (own_state.files / "later").write_bytes(b"unsaved")
    before = capture(own_state.current), frozen_trees(own_state)
    inodes = {path: os.lstat(path).st_ino for path in own_state.state.rglob("*")}
    index = (own_state.state / "index.json").read_bytes()
    for _ in range(2):
        own_state.remount()
        assert differences(before[0], capture(own_state.current)) == []
        assert frozen_trees(own_state) == before[1]
        assert {path: os.lstat(path).st_ino for path in own_state.state.rglob("*")} == inodes
        assert (own_state.state / "index.json").read_bytes() == index


def test_a_killed_daemon_loses_nothing(own_state: MountedState) -> None:
    """After SIGKILL and a new mount the trees are those of before, and work goes on."""
    make_sample_tree(own_state.files)
    own_state.save("one")
    change_everything(own_state.files)
    before = capture(own_state.current), frozen_trees(own_state)
    own_state.kill()
    own_state.mount()
    assert differences(before[0], capture(own_state.current)) == []
    assert frozen_trees(own_state) == before[1]
    own_state.save("after the crash")
    assert len(own_state.listing()) == 2


def test_save_without_a_daemon(own_state: MountedState) -> None:
    """`save`, `list` and `delete` on an unmounted state do what they do on a mounted one."""
    make_sample_tree(own_state.files)
    before = capture(own_state.files)
    first = own_state.save("mounted")
    own_state.umount()
    second = own_state.save("unmounted", name="offline")
    assert [snapshot["name"] for snapshot in own_state.listing()] == [first, second]
    third = own_state.save("to be deleted")
    own_state.delete(third)
    assert own_state.status()["mounted"] is False
    own_state.mount()
    assert [snapshot["name"] for snapshot in own_state.listing()] == [first, second]
    for name in (first, second, "offline"):
        assert differences(before, capture(own_state.snapshots / name / "files")) == []


def test_deleting_one_snapshot_leaves_the_others(own_state: MountedState) -> None:
    """In any order, each deletion changes neither current nor any other snapshot."""
    make_sample_tree(own_state.files)
    for number in range(6):
        with open(own_state.files / "large", "r+b") as file:
            file.seek(number * 100_000)
            file.write(b"%d" % number * 50_000)
        (own_state.files / f"new-{number}").write_bytes(os.urandom(30_000))
        if number >= 2:
            (own_state.files / f"new-{number - 2}").unlink()
        own_state.save(str(number))
    kept = frozen_trees(own_state)
    now = capture(own_state.current)
    names = list(kept)
    for name in (names[2], names[0], names[5], names[3], names[1]):
        own_state.delete(name)
        del kept[name]
        assert frozen_trees(own_state) == kept
        assert differences(now, capture(own_state.current)) == []
        own_state.verify()


def test_space_comes_back(wide_folder: Path) -> None:
    """With all snapshots and files deleted the store is about as small as a new one."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    with mounted(folder) as state:
        state.remount()
        empty = folder_size(state.store)
        for number in range(4):
            (state.files / "big").write_bytes(os.urandom(8 * MIB))
            for small in range(100):
                (state.files / f"s{small}").write_bytes(os.urandom(3_000))
            state.save(str(number))
        assert folder_size(state.store) > 32 * MIB
        for listed in state.listing():
            state.delete(listed["name"])
        for path in state.files.iterdir():
            path.unlink()
        assert os.listdir(state.files) == []
        eventually(lambda: object_files(state) == 0, "every object file is removed")
        state.remount()
        assert folder_size(state.store) < empty + 4 * MIB


def test_an_overwritten_file_gives_its_space_back(own_state: MountedState) -> None:
    """Without a snapshot that needs them, old bytes take no room."""
    for _ in range(5):
        (own_state.files / "f").write_bytes(os.urandom(10 * MIB))
    objects = StoreLayout(own_state.store).objects
    eventually(lambda: folder_size(objects) < 14 * MIB, "old bytes are given back")


def test_a_snapshot_shares_what_did_not_change(own_state: MountedState) -> None:
    """Ten snapshots of 10 MiB with 4 KiB of change each take little more than 10 MiB."""
    (own_state.files / "f").write_bytes(os.urandom(10 * MIB))
    for number in range(10):
        own_state.save()
        with open(own_state.files / "f", "r+b") as file:
            file.seek(number * MIB)
            file.write(os.urandom(4096))
    eventually(lambda: folder_size(own_state.store) < 24 * MIB, "unchanged bytes are there once")


def test_an_unlinked_open_file_frees_its_space(own_state: MountedState) -> None:
    """At its last close, or at the next mount when the daemon died before."""
    for killed in (False, True):
        descriptor = os.open(own_state.files / "f", os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(descriptor, os.urandom(10 * MIB))
        os.unlink(own_state.files / "f")
        assert object_files(own_state) == 1
        if killed:
            own_state.kill()
        # Where the connection is gone, close(2) may say so; it closes all the same.
        errno_of(partial(os.close, descriptor))
        if killed:
            own_state.mount()
        eventually(lambda: object_files(own_state) == 0, "the unlinked file's bytes are freed")


def test_a_store_can_be_copied_while_it_is_unmounted(own_state: MountedState) -> None:
    """A copy of the store's folder is a store with the same trees."""
    make_sample_tree(own_state.files)
    name = own_state.save()
    before = capture(own_state.snapshots / name, leave_out=DOCUMENT)
    own_state.umount()
    copy = own_state.store.with_name("copy")
    (copy / "store").parent.mkdir()
    shutil.copytree(own_state.store, copy / "store", symlinks=True)
    with mounted(copy, store=copy / "store") as copied:
        assert differences(before, capture(copied.snapshots / name, leave_out=DOCUMENT)) == []
        assert (copied.files / "small").exists()
    own_state.mount()
