"""Snapshots: what taking, choosing and deleting one does to the epoch and to what is in memory."""

from __future__ import annotations

import json
import stat
import threading

import pytest

from statefs.errors import NoSuchSnapshot, PosixError, SnapshotExists, UsageError
from statefs.ids import TREE_ROOT
from statefs.layout import RUNTIME
from statefs.metadata.schema import DELETING, PENDING
from statefs.snapshots.catalog import MESSAGE_CHARACTERS_MAX, SLOTS, Catalog, document_of
from statefs.snapshots.views import PastTree
from tests.unit.engine_store import FOLDER, ME, EngineStore, tree_of

BIG = 20_000


@pytest.fixture
def catalog(engine: EngineStore) -> Catalog:
    """The catalog of a new store."""
    return engine.store.catalog


def test_a_save_ends_the_epoch_and_is_shown_when_complete(
    engine: EngineStore, catalog: Catalog
) -> None:
    """In between it exists, and nobody sees it."""
    pending = catalog.begin("manual", "why", {"name": "clean", "job": "7"})
    assert (pending.epoch, engine.table.epoch, engine.table.temporal.pinned) == (1, 2, 1)
    assert (pending.state, catalog.snapshots, catalog.by_folder("clean")) == (PENDING, [], None)
    engine.store.write_document(pending)
    shown = catalog.complete(pending)
    engine.store.write_all_documents()
    assert catalog.snapshots == [shown]
    assert catalog.by_folder("clean") == (shown, shown.label_view)
    assert catalog.by_folder(shown.name) == (shown, shown.view)
    assert (shown.message, shown.reason, shown.labels["job"]) == ("why", "manual", "7")


def test_a_save_costs_no_row_of_the_tree(engine: EngineStore) -> None:
    """However many files there are: one row, and the counter."""
    for number in range(50):
        engine.file(f"f{number}", b"x")
    tables = ("inodes", "entries", "xattrs", "extents", "inline", "objects")
    before = [engine.rows(table) for table in tables]
    engine.save()
    assert [engine.rows(table) for table in tables] == before
    assert engine.rows("snapshots") == 1


def test_what_was_newer_in_memory_is_in_the_snapshot(engine: EngineStore) -> None:
    """An append that no row tells of yet; later ones are not in it."""
    ino = engine.file("f", b"a" * BIG)
    engine.data.write(ino, BIG, b"b")
    epoch = engine.save()
    engine.data.write(ino, BIG + 1, b"c")
    assert engine.past_content(epoch, ino) == b"a" * BIG + b"b"
    assert engine.content(ino) == b"a" * BIG + b"bc"
    engine.forget_memory()
    assert engine.content(ino) == b"a" * BIG + b"bc"


def test_an_open_file_goes_on_in_a_new_object_after_a_save(engine: EngineStore) -> None:
    """The handle stays, the object of the ended epoch is not written any more."""
    ino = engine.file("f", b"a" * BIG)
    engine.table.opened(ino)
    (frozen,) = engine.objects()
    before = engine.store.objects.read([(0, BIG, frozen)])
    engine.save()
    assert engine.node(ino).object == 0
    engine.data.write(ino, 5, b"new")
    engine.data.write(ino, BIG, b"more")
    assert engine.store.objects.read([(0, BIG, frozen)]) == before
    assert engine.store.objects.stat(frozen).st_size == BIG
    assert len(engine.objects()) == 2
    engine.table.closed(ino)


def test_every_snapshot_keeps_its_whole_tree(engine: EngineStore) -> None:
    """Names, attributes, times, links and bytes, through everything that follows."""
    folder = engine.folder("d")
    big, small = engine.file("big", b"a" * BIG, folder), engine.file("small", b"s")
    engine.names.link(small, folder, b"hard")
    seen = {}
    for turn in range(4):
        current = tree_of(engine)
        epoch = engine.save()
        seen[epoch] = {
            path: shown for path, shown in current.items() if not path.startswith("runtime")
        }
        seen[epoch]["."]["nlink"] -= 1
        engine.data.write(big, turn * 100, b"%d" % turn * 50)
        engine.data.truncate(small, turn)
        engine.attributes.set_xattr(folder, b"user.turn", b"%d" % turn)
        engine.names.rename(folder, b"hard", TREE_ROOT, b"hard")
        engine.names.rename(TREE_ROOT, b"hard", folder, b"hard")
        engine.file(f"new{turn}")
    engine.names.unlink(folder, b"big")
    engine.delete(2)
    del seen[2]
    for epoch, expected in seen.items():
        assert tree_of(engine, epoch) == expected


def test_counts_leave_out_what_was_just_written_in_runtime(engine: EngineStore) -> None:
    """Also bytes whose number no row tells yet."""
    number = engine.file("log", b"x" * 20_000, engine.names.lookup(TREE_ROOT, b"runtime").ino)
    engine.save()
    engine.data.write(number, 20_000, b"more")
    engine.save()
    engine.data.write(number, 20_004, b"and more")
    engine.save()
    assert engine.store.catalog.snapshots[-1].bytes == 0


def test_counts_leave_runtime_out(engine: EngineStore) -> None:
    """They are of what the snapshot shows."""
    engine.file("f", b"12345")
    engine.file("env.json", b"{}", engine.names.lookup(TREE_ROOT, RUNTIME).ino)
    engine.save()
    (snapshot,) = engine.store.catalog.snapshots
    assert (snapshot.files, snapshot.bytes) == (1, 5)


def test_counts_know_how_large_a_file_in_runtime_has_become(engine: EngineStore) -> None:
    """Also while that is known in memory alone."""
    ino = engine.file("log", b"x" * BIG, engine.names.lookup(TREE_ROOT, RUNTIME).ino)
    engine.save()
    engine.data.write(ino, BIG, b"more")
    engine.data.write(ino, BIG + 4, b"more")
    engine.save()
    assert [snapshot.bytes for snapshot in engine.store.catalog.snapshots] == [0, 0]


def test_volumes_are_named(engine: EngineStore) -> None:
    """Each folder of volumes/, and no file there."""
    volumes = engine.names.lookup(TREE_ROOT, b"volumes").ino
    engine.folder("db", volumes)
    engine.file("note", b"", volumes)
    engine.save()
    document = document_of(engine.store.catalog.choose("latest"))
    assert [volume["name"] for volume in document["volumeManifests"]] == ["db"]


def test_a_snapshot_knows_the_one_before(engine: EngineStore) -> None:
    """Its parent is the newest that was there; the first has none."""
    engine.save()
    engine.save()
    first, second = [document_of(each) for each in engine.store.catalog.snapshots]
    assert first["parentSnapshotId"] is None
    assert second["parentSnapshotId"] == first["snapshotId"]


@pytest.mark.parametrize(
    ("reason", "message", "labels"),
    [
        ("because", "", {}),
        ("manual", "x" * (MESSAGE_CHARACTERS_MAX + 1), {}),
        ("manual", "", {"name": "latest"}),
        ("manual", "", {"name": "\udcff"}),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything(
    engine: EngineStore, reason: str, message: str, labels: dict[str, str]
) -> None:
    """The epoch goes on."""
    with pytest.raises(UsageError):
        engine.store.save(message, reason, labels)
    assert (engine.table.epoch, engine.rows("snapshots")) == (1, 0)


def test_a_taken_name_or_label_is_refused_until_it_is_free(engine: EngineStore) -> None:
    """A deleted snapshot's label can be given again at once; no label looks like a name."""
    first = engine.save(name="clean")
    (snapshot,) = engine.store.catalog.snapshots
    with pytest.raises(SnapshotExists):
        engine.save(name="clean")
    with pytest.raises(UsageError, match="means something else"):
        engine.save(name=snapshot.name)
    engine.hide(first)
    engine.save(name="clean")


def test_numbers_of_views_are_taken_in_turn(engine: EngineStore) -> None:
    """A kernel that still knows a deleted snapshot's nodes must not meet another one there."""
    for _ in range(3):
        engine.delete(engine.save())
    engine.database.execute("UPDATE store SET value = ? WHERE key = 'last_slot'", (SLOTS - 1,))
    for _ in range(3):
        engine.save()
    assert [snapshot.id for snapshot in engine.store.catalog.snapshots] == [SLOTS, 1, 2]


def test_a_deletion_hides_at_once_and_frees_later(engine: EngineStore, catalog: Catalog) -> None:
    """What came after the last kept snapshot may change in place again."""
    first = engine.save()
    engine.save(name="x")
    engine.hide(2)
    assert [snapshot.epoch for snapshot in catalog.snapshots] == [first]
    assert catalog.by_folder("x") is None
    assert (engine.table.temporal.pinned, catalog.deleting()) == (first, [2])
    with pytest.raises(NoSuchSnapshot):
        catalog.choose("x")
    engine.store.collect()
    assert catalog.deleting() == []


def test_the_index_tells_of_all_newest_last(engine: EngineStore) -> None:
    """The plain file and the one in the mount are the same bytes; deletions change both."""
    engine.save(name="a")
    engine.save(name="b")
    index = json.loads(engine.store.layout.index_json.read_text())
    assert [entry["labels"]["name"] for entry in index["snapshots"]] == ["a", "b"]
    assert engine.store.layout.index_json.read_bytes() == engine.store.namespace.index_bytes()
    engine.delete(1)
    changed = json.loads(engine.store.layout.index_json.read_text())
    assert [entry["labels"]["name"] for entry in changed["snapshots"]] == ["b"]
    assert changed["lastModified"] > index["lastModified"]
    assert [path.stem for path in engine.store.layout.snapshots.iterdir()] == [
        engine.store.catalog.snapshots[0].name
    ]


def test_a_failed_save_leaves_no_snapshot(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither shown nor on the way; the next one works and has what was written meanwhile."""
    ino = engine.file("f", b"a" * BIG)

    def broken(_: int) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "_sync_object", broken)
        with pytest.raises(OSError, match="broken"):
            engine.save()
    assert engine.store.catalog.snapshots == []
    assert engine.database.rows("SELECT state FROM snapshots") == [(DELETING,)]
    engine.data.write(ino, 0, b"b")
    epoch = engine.save()
    assert engine.past_content(epoch, ino) == b"b" + b"a" * (BIG - 1)


def test_a_past_listing_has_every_entry_wherever_runtime_comes(engine: EngineStore) -> None:
    """A batch that is one short because runtime/ is left out would be taken for the end."""
    engine.names.rmdir(TREE_ROOT, RUNTIME)
    for number in range(20):
        engine.file(f"f{number}")
    engine.names.create(TREE_ROOT, RUNTIME, FOLDER, ME)
    for number in range(20, 40):
        engine.file(f"f{number}")
    tree = engine.past(engine.save())
    for size in (1, 5, 7, 64):
        found: list[bytes] = []
        after = 0
        while batch := tree.listing(TREE_ROOT, after, size):
            found += [name for _, name, _ in batch]
            after = batch[-1][0]
            if len(batch) < size:
                break
        assert len(found) == len(set(found)) == 42
        assert RUNTIME not in found


def test_the_past_has_no_runtime(engine: EngineStore) -> None:
    """It is not found by name either, and not counted by its folder."""
    tree: PastTree = engine.past(engine.save())
    with pytest.raises(PosixError):
        tree.lookup(TREE_ROOT, RUNTIME)
    assert tree.inode(TREE_ROOT).nlink == engine.node(TREE_ROOT).nlink - 1


def test_a_sync_in_a_thread_may_go_on_beside_changes(engine: EngineStore) -> None:
    """What a save waits for in a thread does not disturb the tree, nor the other way round."""
    done = threading.Event()
    errors: list[BaseException] = []

    def sync() -> None:
        try:
            while not done.is_set():
                engine.store.sync()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        for number in range(40):
            ino = engine.file(f"f{number}", b"a" * BIG)
            engine.data.write(ino, BIG, b"b")
            if number % 3 == 0:
                engine.names.unlink(TREE_ROOT, f"f{number}".encode())
            if number % 10 == 0:
                engine.save()
    finally:
        done.set()
        thread.join()
    assert errors == []


@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_the_past_root_has_the_links_of_what_it_shows(engine: EngineStore, kind: str) -> None:
    """Two, and one for each folder: runtime is not shown, and it may be no folder."""
    runtime = engine.names.lookup(TREE_ROOT, RUNTIME).ino
    for _, name, _ in engine.names.listing(runtime, 0, 100):
        engine.names.unlink(runtime, name)
    if kind != "folder":
        engine.names.rmdir(TREE_ROOT, RUNTIME)
    if kind == "file":
        engine.file("runtime", b"x")
    elif kind == "link":
        engine.names.create(TREE_ROOT, RUNTIME, stat.S_IFLNK | 0o777, ME, target=b"files")
    root = engine.past(engine.save()).inode(TREE_ROOT)
    shown = engine.past(engine.save()).listing(TREE_ROOT, 0, 100)
    assert root.nlink == 2 + sum(inode.is_dir for _, _, inode in shown)
