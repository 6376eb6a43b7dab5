"""Names in folders: what POSIX says of making, linking, moving and removing them."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import pytest

from statefs.errors import PosixError
from statefs.ids import TREE_ROOT
from statefs.metadata.inodes import InodeFlag
from statefs.volume import acl
from statefs.volume import table as table_module
from statefs.volume.names import LINK_MAX, RENAME_EXCHANGE, RENAME_NOREPLACE, Creator
from tests.unit.engine_store import FILE, FOLDER, ME, EngineStore, tree_of

BIG = 20_000


def fails(expected: int, action: Callable[[], object]) -> None:
    """Do something that must fail with an errno."""
    with pytest.raises(PosixError) as failure:
        action()
    assert errno.errorcode[failure.value.errno] == errno.errorcode[expected]


def names_in(engine: EngineStore, folder: int = TREE_ROOT) -> list[str]:
    """Return the names of a folder in the order of a listing."""
    return [name.decode() for _, name, _ in engine.names.listing(folder, 0, 1000)]


def test_a_new_file_has_the_times_and_owner_of_its_making(engine: EngineStore) -> None:
    """One link, no content; its folder's times change, too."""
    folder = engine.folder("d")
    before = engine.node(folder).mtime_ns
    node = engine.names.create(folder, b"f", FILE, Creator(5, 6, 0o077))
    assert (node.uid, node.gid, node.mode, node.nlink) == (5, 6, stat.S_IFREG | 0o600, 1)
    assert node.atime_ns == node.mtime_ns == node.ctime_ns == node.btime_ns > before
    assert engine.node(folder).mtime_ns == engine.node(folder).ctime_ns == node.mtime_ns


def test_a_setgid_folder_hands_its_group_down(engine: EngineStore) -> None:
    """Files take the group, folders the bit as well."""
    folder = engine.names.create(TREE_ROOT, b"d", FOLDER | stat.S_ISGID, Creator(0, 50)).ino
    file = engine.names.create(folder, b"f", FILE, Creator(5, 6))
    inner = engine.names.create(folder, b"d", FOLDER, Creator(5, 6))
    assert (file.gid, inner.gid) == (50, 50)
    assert not file.mode & stat.S_ISGID
    assert inner.mode & stat.S_ISGID


def test_a_default_acl_replaces_the_umask(engine: EngineStore) -> None:
    """Files get an access ACL, folders that and the default ACL; links neither."""
    folder = engine.folder("d")
    entries = [
        acl.AclEntry(acl.USER_OBJ, 7), acl.AclEntry(acl.USER, 7, 9), acl.AclEntry(acl.GROUP_OBJ, 0),
        acl.AclEntry(acl.MASK, 7), acl.AclEntry(acl.OTHER, 0),
    ]  # fmt: skip
    engine.attributes.set_xattr(folder, acl.DEFAULT, acl.encode(entries))
    who = Creator(0, 0, 0o077)
    file = engine.names.create(folder, b"f", FILE, who)
    assert stat.S_IMODE(file.mode) == 0o640
    assert file.flags == InodeFlag.XATTRS | InodeFlag.ACCESS_ACL
    inner = engine.names.create(folder, b"i", FOLDER, who)
    assert inner.flags == InodeFlag.XATTRS | InodeFlag.ACCESS_ACL | InodeFlag.DEFAULT_ACL
    assert engine.attributes.xattr(inner.ino, acl.DEFAULT) == acl.encode(entries)
    link = engine.names.create(folder, b"l", stat.S_IFLNK | 0o777, who, target=b"x")
    assert (link.flags, stat.S_IMODE(link.mode)) == (0, 0o777)


def test_a_taken_name_and_a_long_one_are_refused(engine: EngineStore) -> None:
    """Any 255 bytes but slash and NUL are a name."""
    name = bytes(range(1, 47)) + bytes(range(48, 256)) + b"x"
    engine.names.create(TREE_ROOT, name, FILE, ME)
    assert engine.names.lookup(TREE_ROOT, name).is_file
    fails(errno.EEXIST, lambda: engine.names.create(TREE_ROOT, name, FOLDER, ME))
    long = name + b"x"
    fails(errno.ENAMETOOLONG, lambda: engine.names.create(TREE_ROOT, long, FILE, ME))
    fails(errno.ENAMETOOLONG, lambda: engine.names.lookup(TREE_ROOT, long))


def test_nothing_is_made_in_a_file_or_in_a_removed_folder(engine: EngineStore) -> None:
    """ENOTDIR, and ENOENT for a working directory that was removed."""
    file, folder = engine.file("f"), engine.folder("d")
    engine.names.rmdir(TREE_ROOT, b"d")
    fails(errno.ENOTDIR, lambda: engine.names.create(file, b"x", FILE, ME))
    fails(errno.ENOENT, lambda: engine.names.create(folder, b"x", FILE, ME))
    fails(errno.ENOENT, lambda: engine.names.link(file, folder, b"x"))
    fails(errno.ENOENT, lambda: engine.names.rename(TREE_ROOT, b"f", folder, b"x"))


def test_links_share_everything_but_the_name(engine: EngineStore) -> None:
    """And count; the last one takes the file along."""
    ino, folder = engine.file("a", b"content"), engine.folder("d")
    engine.names.link(ino, folder, b"b")
    assert engine.names.lookup(folder, b"b").ino == ino
    assert engine.node(ino).nlink == 2
    engine.names.unlink(TREE_ROOT, b"a")
    assert engine.content(ino) == b"content"
    engine.names.unlink(folder, b"b")
    engine.forget_memory()
    fails(errno.ESTALE, lambda: engine.content(ino))
    assert engine.rows("inline") == 0


def test_what_cannot_be_linked(engine: EngineStore) -> None:
    """Folders, taken names, nameless files, and more than the limit."""
    ino, folder = engine.file("f"), engine.folder("d")
    fails(errno.EPERM, lambda: engine.names.link(folder, TREE_ROOT, b"x"))
    fails(errno.EEXIST, lambda: engine.names.link(ino, TREE_ROOT, b"d"))
    engine.node(ino).nlink = LINK_MAX
    fails(errno.EMLINK, lambda: engine.names.link(ino, TREE_ROOT, b"x"))
    engine.node(ino).nlink = 1
    engine.table.opened(ino)
    engine.names.unlink(TREE_ROOT, b"f")
    fails(errno.ENOENT, lambda: engine.names.link(ino, TREE_ROOT, b"x"))
    engine.table.closed(ino)


def test_the_wrong_call_for_a_kind_is_refused(engine: EngineStore) -> None:
    """Files are unlinked, empty folders removed."""
    engine.file("f")
    folder = engine.folder("d")
    engine.folder("inner", folder)
    fails(errno.EISDIR, lambda: engine.names.unlink(TREE_ROOT, b"d"))
    fails(errno.ENOTDIR, lambda: engine.names.rmdir(TREE_ROOT, b"f"))
    fails(errno.ENOTEMPTY, lambda: engine.names.rmdir(TREE_ROOT, b"d"))
    fails(errno.ENOENT, lambda: engine.names.unlink(TREE_ROOT, b"x"))
    fails(errno.ENOENT, lambda: engine.names.rmdir(TREE_ROOT, b"x"))


def test_folders_count_their_subfolders(engine: EngineStore) -> None:
    """By making, moving, replacing and removing them."""
    a, b = engine.folder("a"), engine.folder("b")
    engine.folder("x", a)
    engine.folder("y", b)

    def count() -> tuple[int, int]:
        return engine.node(a).nlink, engine.node(b).nlink

    assert count() == (3, 3)
    engine.names.rename(a, b"x", b, b"x")
    assert count() == (2, 4)
    engine.names.rename(b, b"x", b, b"y")
    assert count() == (2, 3)
    engine.names.rmdir(b, b"y")
    assert count() == (2, 2)


def test_a_rename_over_a_file_replaces_it(engine: EngineStore) -> None:
    """The old one's content goes; the entry keeps its place in a listing."""
    engine.file("old", b"a" * BIG)
    engine.file("between")
    new = engine.file("new", b"new")
    node, replaced = engine.names.rename(TREE_ROOT, b"new", TREE_ROOT, b"old")
    assert node.ino == new
    assert replaced is not None
    assert replaced.nlink == 0
    assert [name for name in names_in(engine) if name in ("old", "between")] == ["old", "between"]
    engine.store.collect()
    assert engine.objects() == set()


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_what_is_replaced_can_be_opened_for_another_moment(engine: EngineStore, size: int) -> None:
    """A reader that has just found it, too; then it goes, unless it was opened."""
    table, store = engine.store.volume.table, engine.store
    inos = [engine.file("f", b"0" * size)]
    for number in (1, 2):
        inos.append(engine.file("new", b"%d" % number * size))
        engine.names.rename(TREE_ROOT, b"new", TREE_ROOT, b"f", is_served=True)
    table.opened(inos[1])
    table.forget_replaced()
    assert not table.reap_closed()
    assert [engine.content(ino)[:1] for ino in inos] == [b"0", b"1", b"2"]
    table.forget_replaced()
    assert not table.reap_closed()
    with pytest.raises(PosixError):
        engine.node(inos[0])
    assert engine.content(inos[1])[:1] == b"1"
    assert (engine.rows("orphans"), store.volume.table.files) == (1, 1)
    table.closed(inos[1])
    assert engine.rows("orphans") == 0


def test_orphans_are_destroyed_some_at_a_time(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that requests come in between."""
    monkeypatch.setattr(table_module, "REAPED_PER_STEP", 2)
    table = engine.store.volume.table
    for _ in range(6):
        engine.file("new", b"x")
        engine.names.rename(TREE_ROOT, b"new", TREE_ROOT, b"f", is_served=True)
    for _ in range(2):
        table.forget_replaced()
    assert [table.reap_closed() for _ in range(4)] == [True, True, False, False]
    assert engine.rows("orphans") == 0


def test_what_a_rename_may_not_replace(engine: EngineStore) -> None:
    """A folder with entries, a file by a folder, a folder by a file, anything with NOREPLACE."""
    engine.file("f")
    engine.folder("d")
    engine.folder("x", engine.folder("full"))
    rename = engine.names.rename
    fails(errno.ENOTEMPTY, lambda: rename(TREE_ROOT, b"d", TREE_ROOT, b"full"))
    fails(errno.ENOTDIR, lambda: rename(TREE_ROOT, b"d", TREE_ROOT, b"f"))
    fails(errno.EISDIR, lambda: rename(TREE_ROOT, b"f", TREE_ROOT, b"d"))
    fails(errno.EEXIST, lambda: rename(TREE_ROOT, b"f", TREE_ROOT, b"d", RENAME_NOREPLACE))
    fails(errno.ENOENT, lambda: rename(TREE_ROOT, b"none", TREE_ROOT, b"d"))
    fails(errno.EINVAL, lambda: rename(TREE_ROOT, b"f", TREE_ROOT, b"g", 4))


def test_a_rename_onto_another_name_of_the_file_does_nothing(engine: EngineStore) -> None:
    """POSIX rename(2): both names stay."""
    ino = engine.file("a")
    engine.names.link(ino, TREE_ROOT, b"b")
    assert engine.names.rename(TREE_ROOT, b"a", TREE_ROOT, b"b") == (engine.node(ino), None)
    assert {"a", "b"} <= set(names_in(engine))


def test_an_exchange_swaps_a_file_and_a_folder(engine: EngineStore) -> None:
    """Across folders, with the counts of subfolders."""
    a, b = engine.folder("a"), engine.folder("b")
    file, folder = engine.file("f", b"1", a), engine.folder("d", b)
    engine.names.rename(a, b"f", b, b"d", RENAME_EXCHANGE)
    assert engine.names.lookup(a, b"f").ino == folder
    assert engine.names.lookup(b, b"d").ino == file
    assert (engine.node(a).nlink, engine.node(b).nlink) == (3, 2)
    assert engine.node(folder).parent == a
    fails(errno.ENOENT, lambda: engine.names.rename(a, b"f", b, b"none", RENAME_EXCHANGE))


def test_a_listing_goes_on_where_it_stopped(engine: EngineStore) -> None:
    """Whatever is made, removed and replaced meanwhile: old entries come once each."""
    folder = engine.folder("d")
    for number in range(10):
        engine.file(f"f{number}", b"", folder)
    seen: list[bytes] = []
    after = 0
    for turn in range(10):
        batch = engine.names.listing(folder, after, 2)
        if not batch:
            break
        seen += [name for _, name, _ in batch]
        after = batch[-1][0]
        engine.file(f"new{turn}", b"", folder)
        engine.file("rewritten", b"x", folder)
        engine.names.rename(folder, b"rewritten", folder, b"f9")
        if turn == 0:
            engine.names.unlink(folder, b"f5")
    old = [name for name in seen if name.startswith(b"f")]
    assert old == [b"f%d" % number for number in range(10) if number != 5]


def test_an_open_file_without_a_name_lives_until_it_is_closed(engine: EngineStore) -> None:
    """Readable and writable, with no link; then nothing of it is left."""
    ino = engine.file("f", b"a" * BIG)
    engine.table.opened(ino)
    engine.table.opened(ino)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.data.write(ino, 0, b"b")
    assert (engine.node(ino).nlink, engine.content(ino)[:2]) == (0, b"ba")
    assert (engine.table.files, engine.table.bytes) == (0, 0)
    engine.table.closed(ino)
    assert engine.rows("orphans") == 1
    engine.table.closed(ino)
    engine.store.collect()
    assert (engine.rows("orphans"), engine.rows("extents"), engine.objects()) == (0, 0, set())


def test_a_clean_close_ends_files_without_names(engine: EngineStore) -> None:
    """A program that still had them open cannot come back."""
    ino = engine.file("f", b"a" * BIG)
    engine.table.opened(ino)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.store.close()
    engine.__init__(engine.root)  # type: ignore[misc]  # the same store, opened again
    assert engine.rows("orphans") == 0
    assert engine.store.was_clean


def test_a_full_disk_leaves_no_half_of_a_change(engine: EngineStore) -> None:
    """Rows, nodes and totals are as before; afterwards the same call works."""
    folder = engine.folder("d")
    engine.file("f", b"small")
    before, totals = tree_of(engine), (engine.table.files, engine.table.bytes)
    pages = engine.database.value("PRAGMA page_count")
    engine.database.execute(f"PRAGMA max_page_count = {pages}")
    made: list[int] = []

    def fill() -> None:
        while True:
            name = b"%d" % len(made) + b"x" * 200
            made.append(engine.names.create(folder, name, FILE, ME).ino)

    fails(errno.ENOSPC, fill)
    assert engine.table.files == totals[0] + len(made)
    assert engine.node(folder).mtime_ns == (
        engine.database.value("SELECT mtime_ns FROM inodes WHERE ino = ?", (folder,))
    )
    engine.database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    engine.names.create(folder, b"again", FILE, ME)
    for name in names_in(engine, folder):
        engine.names.unlink(folder, name.encode())
    after = tree_of(engine)
    assert after.keys() == before.keys()
    assert engine.problems() == []


def test_failing_changes_leave_every_node_as_it_was(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is refused for each kind of change; nothing of it shows, in memory or in rows."""
    small, big, folder = (
        engine.file("s", b"small"),
        engine.file("b", b"a" * BIG),
        engine.folder("d"),
    )
    engine.save()
    names, data, attributes = engine.names, engine.data, engine.attributes
    changes: list[Callable[[], object]] = [
        lambda: names.create(folder, b"x", FILE, ME),
        lambda: names.link(small, folder, b"x"),
        lambda: names.unlink(TREE_ROOT, b"s"),
        lambda: names.rmdir(TREE_ROOT, b"d"),
        lambda: names.rename(TREE_ROOT, b"s", TREE_ROOT, b"b"),
        lambda: names.rename(TREE_ROOT, b"s", folder, b"b"),
        lambda: names.rename(TREE_ROOT, b"s", TREE_ROOT, b"d", RENAME_EXCHANGE),
        lambda: data.write(small, 2, b"xyz"),
        lambda: data.write(small, BIG, b"xyz"),
        lambda: data.write(big, 5, b"xyz"),
        lambda: data.write(big, BIG, b"xyz"),
        lambda: data.truncate(small, 2),
        lambda: data.truncate(big, 5),
        lambda: data.truncate(big, 0),
        lambda: data.truncate(big, 2 * BIG),
        lambda: attributes.set_xattr(small, b"user.x", b"1"),
        lambda: engine.store.catalog.begin("manual", "", {}),
    ]
    before = tree_of(engine)
    totals, objects = (engine.table.files, engine.table.bytes), engine.objects()

    def refused() -> None:
        raise PosixError(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(engine.database, "commit", refused)
        for change in changes:
            fails(errno.ENOSPC, change)
            assert tree_of(engine) == before
            assert (engine.table.files, engine.table.bytes) == totals
            assert engine.objects() == objects
    engine.table.nodes.clear()
    assert tree_of(engine) == before
    for change in (changes[7], changes[9], changes[5]):
        change()
    assert engine.problems() == []
