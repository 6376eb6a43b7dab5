"""Sealing gives each snapshot its digests, reads nothing twice, and leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from statefs.content import objects
from statefs.content.blocks import BLOCK_BYTES, BLOCKS_MAX, block_bytes, block_count
from statefs.errors import CorruptStore, PosixError, StatefsError, refusal
from statefs.ids import TREE_ROOT, ObjectId
from statefs.maintenance import hashing, steps
from statefs.maintenance.commands import Commands
from statefs.maintenance.sealing import PASSED_OVER, Sealer
from statefs.maintenance.store import init_store
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.digest import (
    LEFT_OUT,
    Entry,
    device_number,
    folder_digest,
    netstring,
    state_digest,
)
from statefs.snapshots.documents import VolumeManifest
from statefs.volume import acl
from tests.crash.disk import Change, WatchedDisk
from tests.unit.engine_store import ME, EngineStore, not_permitted

BIG = 3 * BLOCK_BYTES + 5
NULL = (1 << 8) | 3


def seal(engine: EngineStore) -> None:
    """Seal everything, as a command without a daemon does."""
    steps.run(engine.store.sealer.seal_all())


def sealed(engine: EngineStore, epoch: int) -> str | None:
    """Return the state digest of the snapshot of an epoch."""
    snapshot = engine.store.catalog.by_epoch(epoch)
    assert snapshot is not None
    return snapshot.state_digest


def test_volumes_get_digests_of_their_own(engine: EngineStore) -> None:
    """Of their folders, in the row and in the document; one without a folder has none."""
    volumes = engine.names.lookup(TREE_ROOT, b"volumes").ino
    for name in ("a", "b"):
        engine.file("f", name.encode(), engine.folder(name, volumes))
    missing = VolumeManifest(name="later", path="volumes/later")
    engine.store.catalog.complete(engine.store.catalog.begin("manual", "", {}, prepared=[missing]))
    engine.store.write_document(engine.store.catalog.snapshots[0])
    seal(engine)
    engine.file("g", b"", engine.names.lookup(volumes, b"b").ino)
    engine.save()
    seal(engine)
    first, second = (
        {each.name: each.digest for each in snapshot.volumes}
        for snapshot in engine.store.catalog.snapshots
    )
    folders = {
        name: state_digest(_folder(engine, engine.store.catalog.snapshots[0].epoch, ino))
        for name in ("a", "b")
        if (ino := engine.names.lookup(volumes, name.encode()).ino)
    }
    assert first == {**folders, "later": None}
    assert second["a"] == first["a"] and second["b"] not in (None, first["b"])
    document = engine.store.document_path(engine.store.catalog.snapshots[0]).read_text()
    assert folders["a"] in document
    assert engine.problems() == []


def computed(engine: EngineStore, epoch: int) -> str:
    """Return the state digest of a snapshot, by reading all of it."""
    return state_digest(_folder(engine, epoch, TREE_ROOT))


def _folder(engine: EngineStore, epoch: int, folder: int) -> bytes:
    tree = engine.past(epoch)
    entries = []
    for _, name, inode in tree.listing(folder, 0, 1 << 30):
        if folder == TREE_ROOT and name in LEFT_OUT:
            continue
        content = b""
        if inode.is_file:
            content = hashlib.sha256(engine.past_content(epoch, inode.ino)).digest()
        elif inode.is_dir:
            content = _folder(engine, epoch, inode.ino)
        elif inode.is_symlink:
            content = tree.target(inode.ino)
        elif inode.rdev:
            content = device_number(inode.rdev)
        found = {each: tree.xattr(inode.ino, each) for each in tree.xattr_names(inode.ino)}
        entries.append(Entry(name, inode.mode, inode.uid, inode.gid, inode.size, content, found))
    return folder_digest(entries)


def fill(engine: EngineStore) -> int:
    """Make a tree with one of everything; return a large file in it."""
    files = engine.names.lookup(TREE_ROOT, b"files").ino
    deep = engine.folder("deeper", engine.folder("deep", files))
    small = engine.file("small", b"small", files)
    engine.names.link(small, deep, b"hard")
    engine.names.create(files, b"link", stat.S_IFLNK | 0o777, ME, target=b"deep/deeper/hard")
    engine.names.create(files, b"fifo", stat.S_IFIFO | 0o640, ME)
    engine.names.create(files, b"null", stat.S_IFCHR | 0o666, ME, rdev=NULL)
    engine.names.create(files, b"\xff no text", stat.S_IFREG | 0o600, ME)
    engine.attributes.set_xattr(small, b"user.b", b"2")
    engine.attributes.set_xattr(small, b"user.a", b"1")
    minimal = [acl.AclEntry(acl.USER_OBJ, 6), acl.AclEntry(acl.USER, 4, 1000)]
    rest = [acl.AclEntry(tag, 4) for tag in (acl.GROUP_OBJ, acl.MASK, acl.OTHER)]
    engine.attributes.set_xattr(deep, acl.DEFAULT, acl.encode(minimal + rest))
    sparse = engine.file("sparse", b"", deep)
    engine.data.write(sparse, BIG, b"behind a hole")
    engine.file("env.json", b"{}", engine.names.lookup(TREE_ROOT, b"runtime").ino)
    return engine.file("big", bytes(range(251)) * (BIG // 251), files)


def restore(engine: EngineStore, snapshot: str) -> None:
    """Make a snapshot current again."""
    arguments = {"snapshot": snapshot, "paths": [], "force": False, "dry_run": False}
    steps.run(Commands(engine.store).start("restore", arguments, Listener()))


class Listener:
    """Somebody who waits and does not want to know how far it is."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Do nothing with it."""


@pytest.fixture
def read_bytes(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of everything that is read from object files."""
    sizes: list[int] = []
    read = engine.store.objects.read

    def counting(pieces: Any) -> bytes:
        data = read(pieces)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(engine.store.objects, "read", counting)
    return sizes


def test_numbers_of_blocks() -> None:
    """Of 1 MiB, none for a file of one block; longer ones where there would be too many."""
    assert [block_count(size) for size in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)] == [0, 0, 0, 2]
    assert block_bytes(BLOCK_BYTES * BLOCKS_MAX) == BLOCK_BYTES
    assert block_bytes(BLOCK_BYTES * BLOCKS_MAX + 1) == 2 * BLOCK_BYTES
    assert block_count(1 << 44) == BLOCKS_MAX


def test_an_entry_is_as_the_document_says() -> None:
    """Worked out by hand from docs/state-digest.md."""
    entry = Entry(b"f", stat.S_IFREG | 0o644, 0, 10, 5, b"x" * 32, {b"user.b": b"", b"os2.x": b""})
    fields = (b"f", b"f", b"420", b"0", b"10", b"5", b"x" * 32, b"6:user.b,0:,")
    expected = netstring(b"".join(map(netstring, fields)))
    assert folder_digest([entry]) == hashlib.sha256(expected).digest()
    assert netstring(b"hello") == b"5:hello,"


def test_a_sealed_snapshot_has_the_digest_of_its_tree(engine: EngineStore) -> None:
    """The same as by reading all of it; documents say it, and all rules hold."""
    fill(engine)
    epoch = engine.save()
    seal(engine)
    assert sealed(engine, epoch) == computed(engine, epoch)
    index = engine.store.catalog.index()
    assert index.current_state_digest == sealed(engine, epoch)
    assert index.snapshots[0].sealed
    assert engine.problems() == []


def test_a_file_of_several_blocks_has_a_digest_of_each(engine: EngineStore) -> None:
    """BLAKE3 of each MiB, 32 bytes one after the other; the last is shorter."""
    ino = fill(engine)
    epoch = engine.save()
    seal(engine)
    content = engine.past_content(epoch, ino)
    parts = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
    row = engine.database.rows("SELECT sha256, blocks FROM digests WHERE ino = ?", (ino,))
    assert row == [
        (hashlib.sha256(content).digest(), b"".join(blake3(part).digest() for part in parts))
    ]


def test_what_did_not_change_is_not_read_again(engine: EngineStore, read_bytes: list[int]) -> None:
    """Not with a new snapshot, a chmod, a rename, nor when a file of one block changes."""
    ino = fill(engine)
    engine.save()
    seal(engine)
    assert sum(read_bytes) >= engine.node(ino).size
    files = engine.names.lookup(TREE_ROOT, b"files").ino
    other = engine.file("other", b"o" * 20_000, files)
    read_bytes.clear()
    engine.names.rename(files, b"big", TREE_ROOT, b"moved")
    engine.attributes.set_xattr(ino, b"user.a", b"1")
    epoch = engine.save()
    seal(engine)
    assert read_bytes == [20_000], "only the new file"
    assert sealed(engine, epoch) == computed(engine, epoch)
    assert other != ino


def test_content_that_comes_back_is_not_read_again(
    engine: EngineStore, read_bytes: list[int]
) -> None:
    """A restore makes old extents living again: their digest is known from the older row."""
    ino = engine.file("f", b"a" * BIG)
    first = engine.save(name="first")
    engine.data.write(ino, 5, b"changed")
    engine.save()
    seal(engine)
    read_bytes.clear()
    restore(engine, "first")
    last = engine.save()
    seal(engine)
    assert read_bytes == []
    assert sealed(engine, last) == computed(engine, last) == sealed(engine, first)


def test_nothing_is_read_again_without_an_earlier_sealed_snapshot(
    engine: EngineStore, read_bytes: list[int]
) -> None:
    """The sealed one goes before the next is sealed; what is known of files is kept."""
    fill(engine)
    first = engine.save()
    seal(engine)
    second = engine.save()
    engine.delete(first)
    read_bytes.clear()
    seal(engine)
    assert read_bytes == []
    assert sealed(engine, second) == computed(engine, second)


def test_random_histories(engine: EngineStore) -> None:
    """Snapshots sealed in any rhythm, some deleted: each digest is that of its tree."""
    for seed in range(4):
        _random_history(engine, random.Random(seed))
    for snapshot in list(engine.store.catalog.snapshots):
        engine.delete(snapshot.epoch)
    assert engine.rows("digests") == 0


def _random_history(engine: EngineStore, source: random.Random) -> None:
    root = engine.folder(f"run{source.random()}")
    folders = [root, *(engine.folder(f"d{number}", root) for number in range(4))]
    runtime = engine.names.lookup(TREE_ROOT, b"runtime").ino
    names: list[tuple[int, bytes]] = []
    first = engine.save()
    for step in range(60):
        what = source.randrange(10)
        place = source.randrange(len(names)) if names else 0
        if what < 2 or not names:
            name = f"n{step}"
            engine.file(name, b"x" * source.choice((0, 10, 20_000)), source.choice(folders))
            names = _names(engine, folders)
        elif what == 2:
            ino = engine.names.lookup(*names[place]).ino
            engine.data.write(ino, source.randrange(30_000), b"changed")
        elif what == 3:
            engine.names.unlink(*names.pop(place))
        elif what == 4:
            folder = source.choice([*folders, runtime])
            engine.names.rename(*names.pop(place), folder, f"m{source.random()}".encode())
            names = _names(engine, [*folders, runtime])
        elif what == 5:
            ino = engine.names.lookup(*names[place]).ino
            engine.names.link(ino, source.choice(folders), f"l{step}".encode())
            names = _names(engine, folders)
        elif what == 6:
            engine.save()
        elif what == 7:
            seal(engine)
            _check(engine)
        elif what == 9:
            own = [each.name for each in engine.store.catalog.snapshots if each.epoch >= first]
            if own:
                restore(engine, source.choice(own))
                names = _names(engine, folders)
        elif engine.store.catalog.snapshots:
            engine.delete(source.choice(engine.store.catalog.snapshots).epoch)
    seal(engine)
    _check(engine)


def _names(engine: EngineStore, folders: list[int]) -> list[tuple[int, bytes]]:
    return [
        (folder, name)
        for folder in folders
        for _, name, node in engine.names.listing(folder, 0, 1000)
        if node.is_file
    ]


def _check(engine: EngineStore) -> None:
    for snapshot in engine.store.catalog.snapshots:
        assert snapshot.state_digest == computed(engine, snapshot.epoch)
    assert engine.problems() == []


def test_a_folder_that_comes_out_of_runtime(engine: EngineStore) -> None:
    """It did not change, but has no digest yet: everything is looked at."""
    runtime = engine.names.lookup(TREE_ROOT, b"runtime").ino
    inner = engine.folder("inner", engine.folder("outer", runtime))
    engine.file("f", b"x" * BIG, inner)
    engine.save()
    seal(engine)
    engine.names.rename(runtime, b"outer", TREE_ROOT, b"outer")
    epoch = engine.save()
    seal(engine)
    assert sealed(engine, epoch) == computed(engine, epoch)
    engine.names.rename(TREE_ROOT, b"outer", runtime, b"outer")
    epoch = engine.save()
    seal(engine)
    assert sealed(engine, epoch) == computed(engine, epoch)


@pytest.mark.parametrize("after", range(0, 40, 3))
def test_an_interrupted_sealing_begins_again(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """After any number of steps; what is there by then is kept or replaced."""
    monkeypatch.setattr(hashing, "ROWS_PER_STEP", 2)
    monkeypatch.setattr(hashing, "ENTRIES_PER_STEP", 2)
    monkeypatch.setattr(hashing, "READ_BYTES_PER_STEP", 1)
    ino = fill(engine)
    engine.save()
    seal(engine)
    engine.data.write(ino, 3, b"changed")
    for number in range(10):
        engine.file(f"new{number}", b"x" * 10_000)
    second = engine.save()
    _some_steps(engine, after)
    killed = engine.killed()
    with killed:
        killed.names.unlink(TREE_ROOT, b"new3")
        killed.save()
        if after % 2:
            killed.delete(second)
        seal(killed)
        _check(killed)
        for snapshot in list(killed.store.catalog.snapshots):
            killed.delete(snapshot.epoch)
        assert killed.rows("digests") == 0
    remove(killed.root)


def _some_steps(engine: EngineStore, number: int) -> None:
    """Begin to seal, and stop after some steps."""
    snapshot = engine.store.sealer.next()
    assert snapshot is not None
    work = engine.store.sealer.hash(snapshot)
    try:
        step = next(work)
        for _ in range(number):
            step = work.send(step())
    except StopIteration:
        return
    work.close()


def remove(root: Path) -> None:
    """Remove the copy of a store."""
    shutil.rmtree(root)


def test_a_snapshot_deleted_while_it_is_sealed(engine: EngineStore) -> None:
    """Nothing of it is written any more, and the next one is sealed."""
    fill(engine)
    first = engine.save()
    snapshot = engine.store.sealer.next()
    assert snapshot is not None
    work = engine.store.sealer.hash(snapshot)
    step = next(work)
    engine.file("later", b"x")
    second = engine.save()
    engine.delete(first)
    assert step is not None
    assert steps.run(_go_on(work, step)) is None
    seal(engine)
    assert sealed(engine, second) == computed(engine, second)


def _go_on(work: steps.Steps[Any], step: steps.Step) -> steps.Steps[Any]:
    """Run an operation whose first step has been handed out already."""
    while True:
        value = yield step
        try:
            step = work.send(value)
        except StopIteration as end:
            return end.value


def test_nothing_of_removed_files_is_left(engine: EngineStore) -> None:
    """A file that only a deleted snapshot knew leaves no digest, whatever goes first."""
    engine.save()
    seal(engine)
    ino = engine.file("f", b"x" * BIG)
    newest = engine.save()
    seal(engine)
    engine.delete(newest)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.save()
    seal(engine)
    assert engine.database.rows("SELECT * FROM digests WHERE ino = ?", (ino,)) == []


def test_a_missing_object_leaves_its_snapshots_unsealed(
    engine: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is told; when the file is gone from the tree, later ones are sealed again."""
    ino = engine.file("f", b"x" * BIG)
    broken = engine.save()
    number = engine.database.value("SELECT id FROM objects WHERE ino = ?", (ino,))
    engine.store.objects.remove(number)
    seal(engine)
    assert sealed(engine, broken) is None
    assert not_sealed(engine) == {broken: f"f cannot be read: {lost(engine, number)}"}
    assert "cannot be sealed: f cannot be read" in caplog.text
    seal(engine)
    assert caplog.text.count("cannot be sealed") == 1, "it is not tried again and again"
    engine.names.unlink(TREE_ROOT, b"f")
    later = engine.save()
    seal(engine)
    assert sealed(engine, later) == computed(engine, later)
    assert not_sealed(engine).keys() == {broken}
    fresh = Sealer(engine.store).why_not(engine.store.catalog.snapshots[0])
    assert fresh == PASSED_OVER, "no other process has to try it"
    engine.delete(broken)


def lost(engine: EngineStore, number: int) -> StatefsError:
    """Return what is told of an object file that is not there."""
    path = engine.store.layout.object_path(ObjectId(number))
    return refusal(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)))


def test_a_right_that_is_missing_is_no_damage_of_a_snapshot(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for its digest is told what to do; it is sealed when the right is there."""
    engine.file("f", os.urandom(BIG))
    engine.save()
    engine.store.objects.close()
    commands = Commands(engine.store)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "open_plain", not_permitted)
        with pytest.raises(StatefsError, match="Permission denied; run this as") as caught:
            steps.run(commands.start("seal", {"snapshot": "latest"}, Nobody()))
        assert not isinstance(caught.value, CorruptStore)
    steps.run(engine.store.sealer.try_again())
    assert steps.run(commands.start("seal", {"snapshot": "latest"}, Nobody()))["sealed"]


def not_sealed(engine: EngineStore) -> dict[int, str]:
    """Return epoch -> why, of the snapshots that cannot be sealed."""
    told = {each.epoch: engine.store.sealer.why_not(each) for each in snapshots(engine)}
    return {epoch: why for epoch, why in told.items() if why is not None}


def snapshots(engine: EngineStore) -> list[Snapshot]:
    """Return the snapshots there are."""
    return list(engine.store.catalog.snapshots)


@pytest.mark.parametrize("is_cut", [False, True])
def test_snapshots_are_sealed_when_the_damage_is_gone(
    engine: EngineStore, caplog: pytest.LogCaptureFixture, is_cut: bool
) -> None:
    """All that could not be, the oldest first; what is told of them changes with it."""
    ino = engine.file("f", os.urandom(BIG))
    engine.save()
    number = engine.database.value("SELECT id FROM objects WHERE ino = ?", (ino,))
    path = engine.store.layout.object_path(number)
    kept = path.read_bytes()
    engine.store.objects.close()  # an open descriptor would still reach what is taken away
    path.write_bytes(kept[: BIG // 2]) if is_cut else path.unlink()
    engine.file("g", b"g")
    engine.save()
    seal(engine)
    assert "f cannot be read" in caplog.text
    assert len(not_sealed(engine)) == engine.store.status()["unsealable"] == 2
    shown = steps.run(Commands(engine.store).start("show", {"snapshot": "latest"}, Nobody()))
    assert "f cannot be read" in shown["unsealable"] and not shown["sealed"]
    steps.run(engine.store.sealer.try_again())
    seal(engine)
    assert len(not_sealed(engine)) == 2, "it is still damaged"
    path.write_bytes(kept)
    steps.run(engine.store.sealer.try_again())
    seal(engine)
    assert not_sealed(engine) == {} and engine.store.status()["unsealable"] == 0
    _check(engine)


class Nobody:
    """A caller that waits and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Do nothing."""


def test_a_disk_that_is_full_while_a_snapshot_is_sealed(
    tmp_path_factory: pytest.TempPathFactory, no_waiting_for_disks: None
) -> None:
    """At each change of the disk in turn: it is refused, the store is sound, and then it goes on.

    What was sealed before stays as it is.
    """
    root = tmp_path_factory.mktemp("full") / "store"
    init_store(root, runtime={})
    disk = WatchedDisk(root)
    refused = 0
    with disk.watching(), EngineStore(root) as engine:
        fill(engine)
        first = engine.save()
        seal(engine)
        digest = sealed(engine, first)
        is_over = False
        while not is_over:
            engine.file(f"new{refused}", os.urandom(BIG))
            epoch = engine.save()
            disk.on_change = _refusal_after(refused)
            is_over = errno_of(partial(seal, engine)) == 0
            refused += not is_over
            disk.on_change = lambda _: None
            seal(engine)
            engine.store.pay_documents()
            assert engine.problems() == []
            assert sealed(engine, first) == digest
            assert sealed(engine, epoch) == computed(engine, epoch)
    assert refused > 3
    remove(root)


def errno_of(action: Callable[[], None]) -> int:
    """Return with what an action is refused, 0 for one that is done; nothing but a full disk."""
    try:
        action()
    except (OSError, PosixError) as error:
        code = error.errno or -1
    else:
        code = 0
    assert code in (0, errno.ENOSPC)
    return code


def _refusal_after(count: int) -> Callable[[Change], None]:
    """Return what answers, after so many changes, that the disk is full."""
    left = iter(range(count))

    def refuse(change: Change) -> None:
        if "sync" not in change.kind and next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return refuse


def test_a_file_that_lost_a_name_to_a_rename_is_hashed_where_it_lies(engine: EngineStore) -> None:
    """What it is afterwards counts in the folder of the name that is left, not of the other one."""
    left, taken = engine.folder("left"), engine.folder("taken")
    file = engine.file("f", b"one", left)
    engine.names.link(file, taken, b"g")
    engine.file("new", b"", taken)
    engine.names.rename(taken, b"new", taken, b"g")
    assert engine.node(file).parent == 0
    engine.save()
    steps.run(engine.store.sealer.seal_all())
    engine.data.write(file, 0, b"two")
    epoch = engine.save()
    steps.run(engine.store.sealer.seal_all())
    assert sealed(engine, epoch) == computed(engine, epoch)
