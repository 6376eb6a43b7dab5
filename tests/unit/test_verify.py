"""Every rule of docs/on-disk-format.md: a store that breaks it is reported, under that rule."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from statefs.errors import PosixError
from statefs.ids import FIRST_FREE_INO, LIVING, TREE_ROOT, ObjectId
from statefs.layout import StoreLayout
from statefs.maintenance import saving, steps
from statefs.maintenance import verify as verify_package
from statefs.maintenance.verify import CHECKS, SHOWN_MAX, verify
from statefs.snapshots.documents import VolumeManifest
from statefs.volume import acl
from tests.unit.engine_store import ME, EngineStore, mirror

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "on-disk-format.md"
ACL: Final = acl.encode(
    [
        acl.AclEntry(acl.USER_OBJ, 6),
        acl.AclEntry(acl.USER, 4, 1000),
        acl.AclEntry(acl.GROUP_OBJ, 4),
        acl.AclEntry(acl.MASK, 4),
        acl.AclEntry(acl.OTHER, 4),
    ]
)
BIG: Final = 20_000


def fill(engine: EngineStore) -> None:
    """Make a tree with one of everything; snapshots of epochs 1 and 3, the current epoch is 4."""
    outer = engine.folder("outer")
    engine.folder("inner", outer)
    engine.folder("empty")
    engine.names.create(TREE_ROOT, b"fifo", stat.S_IFIFO | 0o644, ME)
    engine.names.create(TREE_ROOT, b"link", stat.S_IFLNK | 0o777, ME, target=b"big")
    small = engine.file("small", b"small")
    engine.names.link(small, outer, b"hard")
    engine.attributes.set_xattr(small, b"user.colour", b"red")
    engine.attributes.set_xattr(small, acl.ACCESS, ACL)
    engine.attributes.set_xattr(outer, acl.DEFAULT, ACL)
    big = engine.file("big", b"a" * BIG)
    sparse = engine.file("sparse", b"s" * BIG)
    engine.data.truncate(sparse, BIG // 2)
    engine.data.truncate(sparse, BIG)
    engine.file("env.json", b"{}", engine.names.lookup(TREE_ROOT, b"runtime").ino)
    engine.save()
    middle = engine.save()
    engine.attributes.set_xattr(small, b"user.colour", b"blue")
    engine.data.write(big, 100, b"new")
    engine.data.truncate(sparse, 2 * BIG)
    engine.save(name="clean", purpose="import")
    engine.delete(middle)
    steps.run(engine.store.sealer.seal_all())
    engine.file("young", b"y" * BIG)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A closed, sound store; not to be changed."""
    root = tmp_path_factory.mktemp("sound") / "store"
    with EngineStore(root) as engine:
        fill(engine)
    yield root
    shutil.rmtree(root.parent)


class Damage:
    """A copy of the sound store, to be damaged."""

    def __init__(self, root: Path) -> None:
        self.layout = StoreLayout(root)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement in which $NAME stands for the inode number of a name.

        $nobody is a number that was handed out, but not for an inode.
        """
        connection = apsw.Connection(str(self.layout.meta_db))
        try:
            query = "SELECT ino FROM entries WHERE name = CAST(? AS BLOB)"
            for name in set(re.findall(r"\$(\w+)", statement)):
                (ino,) = next(connection.execute(query, (name,)), (FIRST_FREE_INO + 1,))
                statement = statement.replace(f"${name}", str(ino))
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def object_of(self, name: str) -> Path:
        """Return the newest object file of a file."""
        ((number,),) = self.sql(f"SELECT max(id) FROM objects WHERE ino = ${name}")
        return self.layout.object_path(ObjectId(number))


@pytest.fixture
def damage(sound: Path, monkeypatch: pytest.MonkeyPatch) -> Damage:
    """A copy of the sound store; nobody works on it, so the second look need not wait."""
    monkeypatch.setattr(verify_package, "STEP_SECONDS", 0)
    mirror(sound, sound.with_name("damaged"))
    return Damage(sound.with_name("damaged"))


def zero_a_page(damage: Damage) -> None:
    """Overwrite the index of objects by inode, which no rule reads."""
    ((page,),) = damage.sql("SELECT rootpage FROM sqlite_master WHERE name = 'objects_ino'")
    with damage.layout.meta_db.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))


def close_a_loop(damage: Damage) -> None:
    """Move the folder `outer` into its own subfolder, with all counts right."""
    damage.sql("UPDATE entries SET parent = $inner WHERE ino = $outer")
    damage.sql("UPDATE inodes SET parent = $inner WHERE ino = $outer")
    damage.sql("UPDATE inodes SET nlink = nlink + 1 WHERE ino = $inner")
    damage.sql(f"UPDATE inodes SET nlink = nlink - 1 WHERE ino = {TREE_ROOT}")


def entry_in_no_folder(damage: Damage) -> None:
    """Give the fifo a second name in a folder that does not exist."""
    damage.sql(f"INSERT INTO entries VALUES ($nobody, x'61', {LIVING}, 1, $fifo, 1031)")
    damage.sql("UPDATE inodes SET nlink = 2 WHERE ino = $fifo")


def nameless_fifo(damage: Damage) -> None:
    """Take the fifo's name away without making it an orphan."""
    damage.sql("UPDATE inodes SET nlink = 0 WHERE ino = $fifo")
    damage.sql("DELETE FROM entries WHERE ino = $fifo")


def wrong_volume(damage: Damage) -> None:
    """Tell another digest of a volume, in the database and in all documents."""
    with EngineStore(damage.layout.root) as engine:
        volume = VolumeManifest(name="outer", digest=f"sha256:{'0' * 64}", path="outer")
        newest = engine.store.catalog.snapshots[-1]
        steps.run(saving.amend(engine.store, newest, volumes=[volume]))


def index_without_snapshots(damage: Damage) -> None:
    """Have index.json tell of no snapshot."""
    index = json.loads(damage.layout.index_json.read_text())
    damage.layout.index_json.write_text(json.dumps({**index, "snapshots": []}))


def index_in_another_order(damage: Damage) -> None:
    """Have index.json tell of the newest snapshot first."""
    index = json.loads(damage.layout.index_json.read_text())
    index["snapshots"].reverse()
    damage.layout.index_json.write_text(json.dumps(index))


def first_document(damage: Damage) -> Path:
    """Return the metadata.json of the first snapshot."""
    return sorted(damage.layout.snapshots.iterdir())[0]


def sql(statement: str) -> Callable[[Damage], object]:
    """Return a damage that is one statement."""
    return lambda damage: damage.sql(statement)


DAMAGES: Final[list[tuple[str, str, Callable[[Damage], object]]]] = [
    ("R01", "identity", sql("PRAGMA application_id = 7")),
    ("R01", "format", sql("PRAGMA user_version = 0")),
    ("R01", "page", zero_a_page),
    ("R02", "missing key", sql("DELETE FROM store WHERE key = 'lineage'")),
    ("R02", "no UUID", sql("UPDATE store SET value = 'x' WHERE key = 'lineage'")),
    ("R02", "current_as", sql("INSERT OR REPLACE INTO store VALUES ('current_as', 'sha256:x')")),
    ("R02", "no number", sql("UPDATE store SET value = 'x' WHERE key = 'last_slot'")),
    ("R02", "half clean", sql("UPDATE store SET value = 2 WHERE key = 'clean'")),
    ("R03", "born before the first epoch",
     sql("UPDATE inodes SET valid_from = 0 WHERE ino = $fifo")),
    ("R04", "overlap", sql(
        f"UPDATE xattrs SET valid_from = 2 WHERE ino = $small AND valid_to = {LIVING}"
        " AND value = CAST('blue' AS BLOB)")),
    ("R04", "twice inline", sql(
        "INSERT INTO inline (ino, valid_to, valid_from, data)"
        " SELECT ino, valid_to, valid_from, data FROM inline WHERE ino = $small")),
    ("R05", "leak", sql("INSERT INTO xattrs VALUES ($small, x'61', 3, 2, x'61')")),
    ("R05", "a clone's past", sql(
        "INSERT INTO digests VALUES (17, 2, 1, NULL, zeroblob(32), NULL)")),
    ("R06", "cookie", sql("UPDATE entries SET cookie = 1 << 30 WHERE ino = $fifo")),
    ("R06", "garbage", sql("INSERT INTO garbage VALUES (7)")),
    ("R07", "parent", sql(f"UPDATE inodes SET parent = $outer WHERE ino = {TREE_ROOT}")),
    ("R07", "clones", sql("UPDATE inodes SET parent = 16 WHERE ino = 17")),
    ("R08", "no inode", sql("DELETE FROM inodes WHERE ino = $fifo")),
    ("R08", "no inode in a snapshot",
     sql("UPDATE inodes SET valid_from = 2 WHERE ino = $fifo")),
    ("R08", "no folder", entry_in_no_folder),
    ("R09", "slash", sql("UPDATE entries SET name = x'612f' WHERE ino = $fifo")),
    ("R09", "dots", sql("UPDATE entries SET name = x'2e2e' WHERE ino = $fifo")),
    ("R09", "empty", sql("UPDATE entries SET name = x'' WHERE ino = $fifo")),
    ("R09", "cookies", sql(
        "UPDATE entries SET cookie = (SELECT cookie FROM entries WHERE ino = $link)"
        " WHERE ino = $fifo")),
    ("R10", "nlink", sql("UPDATE inodes SET nlink = 5 WHERE ino = $fifo")),
    ("R10", "nlink of the past",
     sql("UPDATE inodes SET nlink = 5 WHERE ino = $small AND valid_to < 9")),
    ("R10", "parent", sql("UPDATE inodes SET parent = $empty WHERE ino = $fifo")),
    ("R11", "nlink", sql("UPDATE inodes SET nlink = 3 WHERE ino = $empty")),
    ("R11", "parent", sql("UPDATE inodes SET parent = $empty WHERE ino = $inner")),
    ("R12", "loop", close_a_loop),
    ("R13", "type", sql(f"UPDATE inodes SET mode = {0o110644} WHERE ino = $fifo")),
    ("R13", "size", sql("UPDATE inodes SET size = 5 WHERE ino = $fifo")),
    ("R14", "flag missing", sql("UPDATE inodes SET flags = 0 WHERE ino = $small")),
    ("R14", "attribute missing", sql("DELETE FROM xattrs WHERE ino = $outer")),
    ("R14", "attribute of nobody",
     sql(f"INSERT INTO xattrs VALUES ($nobody, x'61', {LIVING}, 1, x'61')")),
    ("R15", "unreadable ACL", sql("UPDATE xattrs SET value = x'61' WHERE ino = $outer")),
    ("R15", "mode", sql("UPDATE inodes SET mode = mode | 7 WHERE ino = $small")),
    ("R15", "name", sql("UPDATE xattrs SET name = x'' WHERE name = CAST('user.colour' AS BLOB)")),
    ("R16", "too long", sql("UPDATE inline SET data = data || x'61' WHERE ino = $small")),
    ("R16", "missing", sql("DELETE FROM inline WHERE ino = $link")),
    ("R16", "of nobody", sql(
        "INSERT INTO inline (ino, valid_to, valid_from, data)"
        f" VALUES ($nobody, {LIVING}, 1, x'61')")),
    ("R17", "overlap", sql('UPDATE extents SET "end" = 101 WHERE ino = $big AND "end" = 100')),
    ("R17", "beyond the file", sql(
        "UPDATE extents SET start = 1000000, valid_from = 4 WHERE ino = $young")),
    ("R17", "empty", sql('UPDATE extents SET "end" = 0 WHERE ino = $young')),
    ("R18", "another file's", sql("UPDATE objects SET ino = $big WHERE ino = $young")),
    ("R18", "no row", sql(
        "INSERT INTO garbage SELECT id FROM objects WHERE ino = $sparse;"
        "DELETE FROM objects WHERE ino = $sparse")),
    ("R18", "too late", sql("UPDATE objects SET epoch = 4 WHERE ino = $sparse")),
    ("R19", "missing", lambda damage: damage.object_of("sparse").unlink()),
    ("R19", "short", lambda damage: os.truncate(damage.object_of("big"), 10)),
    ("R20", "unreferenced row", sql("INSERT INTO objects VALUES ($nobody, $big, 4)")),
    ("R20", "surplus file",
     lambda damage: damage.layout.object_path(ObjectId(1030)).write_text("?")),
    ("R20", "strange file", lambda damage: (damage.layout.objects / "00" / "0x").write_text("?")),
    ("R20", "strange folder", lambda damage: (damage.layout.objects / "xx").mkdir()),
    ("R20", "missing folder", lambda damage: next(
        folder for folder in damage.layout.objects.iterdir() if not any(folder.iterdir())
    ).rmdir()),
    ("R21", "number", sql("UPDATE snapshots SET id = 0 WHERE epoch = 1")),
    ("R21", "label", sql("UPDATE snapshots SET label = NULL")),
    ("R22", "size of a past file",
     sql("UPDATE inodes SET size = size + 1 WHERE ino = $sparse AND valid_to < 9")),
    ("R23", "files", sql("UPDATE store SET value = value + 1 WHERE key = 'files'")),
    ("R23", "bytes", sql("UPDATE store SET value = value - 1 WHERE key = 'bytes'")),
    ("R24", "dirty", sql("INSERT INTO dirty VALUES ($nobody)")),
    ("R24", "orphan with a name", sql("INSERT INTO orphans VALUES ($fifo, 4)")),
    ("R24", "no name", nameless_fifo),
    ("R25", "no index", lambda damage: damage.layout.index_json.unlink()),
    ("R25", "empty index", index_without_snapshots),
    ("R25", "order of the index", index_in_another_order),
    ("R25", "no document", lambda damage: first_document(damage).unlink()),
    ("R25", "no JSON", lambda damage: first_document(damage).write_text("{")),
    ("R25", "surplus document",
     lambda damage: (damage.layout.snapshots / "x.json").write_text("{}")),
    ("R25", "what was changed",
     lambda damage: first_document(damage).with_suffix(".changed").write_text("{")),
    ("R25", "surplus changes",
     lambda damage: (damage.layout.snapshots / "x.changed").write_text("{}")),
    ("R25", "other message", sql("UPDATE snapshots SET message = 'other' WHERE epoch = 1")),
    ("R26", "fifo", sql("INSERT INTO digests VALUES ($fifo, 3, 1, NULL, zeroblob(32), NULL)")),
    ("R26", "length", sql("UPDATE digests SET sha256 = x'61' WHERE ino = $small")),
    ("R26", "content", sql("UPDATE digests SET content = x'61' WHERE ino = $big")),
    ("R26", "blocks", sql("UPDATE digests SET blocks = zeroblob(64) WHERE ino = $big")),
    ("R27", "root", sql(f"UPDATE digests SET sha256 = zeroblob(32) WHERE ino = {TREE_ROOT}")),
    ("R27", "volume", wrong_volume),
    ("R28", "file", sql("DELETE FROM digests WHERE ino = $sparse")),
    ("R28", "folder", sql("DELETE FROM digests WHERE ino = $inner")),
    ("R30", "can be put back", sql("INSERT INTO displaced VALUES ($nobody, 1, 0, 1, 0)")),
    ("R30", "can be put back", sql("INSERT INTO displaced VALUES ($small, 1, 0, 1, 1)")),
    ("R30", "after a clean close", sql("INSERT INTO displaced VALUES ($small, 1, 0, 1, 0)")),
    ("R29", "no clone", sql("INSERT INTO shared VALUES ($nobody, $small, 1)")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "breaks"),
    [pytest.param(rule, breaks, id=f"{rule}-{name}") for rule, name, breaks in DAMAGES],
)
def test_a_damage_is_reported_under_its_rule(
    damage: Damage, rule: str, breaks: Callable[[Damage], object]
) -> None:
    """The store is sound before; afterwards exactly that rule is broken, in one line each."""
    assert verify(damage.layout) == []
    breaks(damage)
    problems = verify(damage.layout)
    assert {problem.rule for problem in problems} == {rule}, problems
    assert all("\n" not in problem.message and problem.message for problem in problems)


def test_every_rule_has_a_damage_and_a_place_in_the_document() -> None:
    """No rule without a test; and docs/on-disk-format.md lists the rules that are checked."""
    rules = list(CHECKS)
    assert sorted({rule for rule, _, _ in DAMAGES}) == rules
    assert re.findall(r"^\| (R\d\d) \|", DOCUMENT.read_text(), re.MULTILINE) == rules
    for rule, check in CHECKS.items():
        assert (check.__doc__ or "").startswith(f"{rule}: ")


def test_a_store_without_a_database_is_a_problem_and_no_crash(damage: Damage) -> None:
    """R01 tells of a meta.db that is missing, or is no database."""
    damage.layout.meta_db.write_bytes(b"no database" * 1000)
    assert [problem.rule for problem in verify(damage.layout)] == ["R01"]
    damage.layout.meta_db.unlink()
    assert [problem.rule for problem in verify(damage.layout)] == ["R01"]


def test_a_thousand_problems_are_told_in_a_hundred_lines(damage: Damage) -> None:
    """The last line says that there are more."""
    damage.sql(
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
        " INSERT INTO dirty SELECT 2000 + i FROM n"
    )
    problems = verify(damage.layout)
    assert len(problems) == SHOWN_MAX + 1
    assert "more" in problems[-1].message


def test_a_problem_names_the_file(damage: Damage) -> None:
    """Who repairs a store needs the path, the inode and the object."""
    path = damage.object_of("young")
    os.truncate(path, 5)
    (problem,) = verify(damage.layout)
    assert "current/young" in problem.message
    assert path.name in problem.message


def do_something(engine: EngineStore, chance: random.Random, folders: list[int]) -> None:
    """Do one random thing to a store: names, content, attributes, snapshots."""
    parent, name = chance.choice(folders), b"n%d" % chance.randrange(12)
    taken = {entry: node for _, entry, node in engine.names.listing(parent, 0, 100)}
    node = taken.get(name)
    what = chance.randrange(12)
    if node is None:
        mode = chance.choice((stat.S_IFREG | 0o644, stat.S_IFREG | 0o600, stat.S_IFDIR | 0o755))
        made = engine.names.create(parent, name, mode, ME)
        if made.is_dir:
            folders.append(made.ino)
    elif what == 0 and node.is_file:
        engine.names.unlink(parent, name)
    elif what <= 5 and node.is_file:
        where = chance.randrange(40_000)
        engine.data.write(node.ino, where, bytes([where % 255]) * chance.randrange(1, 20_000))
    elif what <= 7 and node.is_file:
        engine.data.truncate(node.ino, chance.randrange(30_000))
    elif what == 8:
        engine.attributes.set_xattr(node.ino, b"user.x", b"%d" % chance.randrange(99))
    elif what == 9 and node.is_file:
        engine.names.rename(parent, name, chance.choice(folders), b"n%d" % chance.randrange(12))
    elif what == 10:
        engine.save()
    elif engine.store.catalog.snapshots:
        engine.delete(chance.choice(engine.store.catalog.snapshots).epoch)


def try_something(engine: EngineStore, chance: random.Random, folders: list[int]) -> None:
    """Do one random thing; one that POSIX forbids is done by leaving it."""
    try:
        do_something(engine, chance, folders)
    except PosixError:
        pass


@pytest.mark.parametrize("seed", range(4))
def test_a_long_random_life_leaves_a_sound_store_and_then_nothing(
    engine: EngineStore, seed: int
) -> None:
    """Sound all the while; with all snapshots and files deleted it is as empty as a new one."""
    chance = random.Random(seed)
    empty = {
        table: engine.rows(table)
        for table in ("inodes", "entries", "xattrs", "extents", "inline", "objects")
    }
    folders = [engine.names.lookup(TREE_ROOT, b"files").ino]
    for step in range(600):
        try_something(engine, chance, folders)
        if step % 150 == 0:
            assert engine.problems() == []
    assert engine.problems() == []
    for snapshot in list(engine.store.catalog.snapshots):
        engine.delete(snapshot.epoch)
    for folder in reversed(folders):
        for _, name, node in engine.names.listing(folder, 0, 100):
            (engine.names.rmdir if node.is_dir else engine.names.unlink)(folder, name)
    engine.store.collect()
    assert {table: engine.rows(table) for table in empty} == empty
    assert (engine.objects(), engine.rows("garbage"), engine.rows("dirty")) == (set(), 0, 0)
    assert (engine.table.files, engine.table.bytes) == (0, 0)


def test_a_store_in_use_is_sound(engine: EngineStore) -> None:
    """In a thread, while files grow, are cut and deleted, and snapshots come and go."""
    found: list[object] = []
    folders = [engine.names.lookup(TREE_ROOT, b"files").ino]
    chance = random.Random(5)

    def look() -> None:
        for _ in range(4):
            found.extend(verify(engine.store.layout))

    thread = threading.Thread(target=look)
    thread.start()
    while thread.is_alive():
        try_something(engine, chance, folders)
    thread.join()
    assert found == []


def test_sizes_that_only_memory_knows_are_no_damage(engine: EngineStore) -> None:
    """An appended file's row is behind its object; the dirty mark says so."""
    ino = engine.file("f", b"a" * BIG)
    engine.data.write(ino, BIG, b"b" * BIG)
    assert engine.database.rows("SELECT size FROM inodes WHERE ino = ?", (ino,)) != [(2 * BIG,)]
    assert verify(engine.store.layout) == []


def test_an_open_file_without_a_name_is_no_damage(engine: EngineStore) -> None:
    """It is an orphan until it is closed, in a snapshot's epoch, too."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    engine.table.opened(ino)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.save()
    engine.data.write(ino, BIG, b"b")
    assert engine.problems() == []
    engine.table.closed(ino)
    assert engine.problems() == []


def test_a_lost_object_is_told_with_who_sees_it(engine: EngineStore) -> None:
    """The file, the snapshots and current/; of a cut one those that see what is gone."""
    ino = engine.file("f", bytes(range(256)) * 100)
    engine.save()
    engine.data.write(ino, 25_600, b"more" * 5000)
    engine.save()
    engine.data.write(ino, 0, b"other")
    first, second = (each.name for each in engine.store.catalog.snapshots)
    numbers = [row[0] for row in engine.database.rows("SELECT id FROM objects ORDER BY id")]
    paths = [engine.store.layout.object_path(ObjectId(number)) for number in numbers]
    kept = [path.read_bytes() for path in paths]
    said = f"object {numbers[0]:x} of inode {ino} (current/f) is missing: damaged in"
    paths[0].unlink()
    engine.store.settle()
    assert said_of(engine) == [f"{said} {first}, {second}, current"]
    paths[0].write_bytes(kept[0])
    os.truncate(paths[1], 25_610)
    (told,) = said_of(engine)
    assert told.endswith(f"needed: damaged in {second}, current")
    paths[1].write_bytes(kept[1])


def said_of(engine: EngineStore) -> list[str]:
    """Return what R19 finds."""
    found = engine.store.verify_files((engine.table.files, engine.table.bytes))
    return [each.message for each in found if each.rule == "R19"]
