"""Undo puts back what the last operation changed, and touches nothing else."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from statefs.durable import write_file
from statefs.errors import NoSuchSnapshot, PosixError, UsageError
from statefs.ids import TREE_ROOT
from statefs.maintenance import steps, store
from statefs.maintenance.commands import Commands
from statefs.maintenance.restoring import restore_message
from statefs.snapshots import undoing
from statefs.snapshots.restore_plan import parsed_paths, quoted, unquoted
from statefs.volume.attributes import AttributeChange
from tests.unit.engine_store import FILE, ME, EngineStore


class Nobody:
    """A caller that waits and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Do nothing."""


def ask(engine: EngineStore, op: str, **arguments: Any) -> dict[str, Any]:
    """Run an operation as the command line has it run."""
    told: dict[str, Any] = steps.run(Commands(engine.store).start(op, arguments, Nobody()))
    return told


def save(engine: EngineStore, **operation: str) -> dict[str, Any]:
    """Take a snapshot, for `statefs try` if an operation is given."""
    arguments = {"message": "", "reason": "manual", "labels": {}, "operation": operation or None}
    return ask(engine, "save", **arguments)


def restore(engine: EngineStore, snapshot: str, *paths: str) -> dict[str, Any]:
    """Restore a snapshot, or some paths of it."""
    return ask(engine, "restore", snapshot=snapshot, paths=list(paths), force=True, dry_run=False)


def names(engine: EngineStore, folder: int) -> list[bytes]:
    """Return the names in a folder, sorted."""
    return sorted(name for _, name, _ in engine.names.listing(folder, 0, 100))


def test_the_snapshot_for_safety_says_what_was_restored(engine: EngineStore) -> None:
    """And what was undone; of many or long paths it says enough to know them."""
    file = engine.file("f", b"old", engine.folder("d"))
    first = save(engine)["name"]
    messages = []
    for paths in (["d/f"], ["d", "d/f", ".", "d/./f"], ["d"] * 5, []):
        engine.data.write(file, 0, b"new")
        restore(engine, first, *paths)
        messages.append(engine.store.catalog.snapshots[-1].message)
    ask(engine, "undo", force=True)
    assert messages == [f"before restore of {first}{more}" for more in (": d/f", "", ": d", "")]
    undone, last = engine.store.catalog.snapshots[-2:]
    assert last.message == f"before undo of a restore ({undone.name})"
    long = restore_message("a", ["x" * 4096, "b", "c", "d", "e"])
    assert long.endswith("x, b, c and 2 more") and len(long) < 150


@pytest.mark.parametrize("word", ["current/d/f", "d/f/", "./d/./f", "current", "/", "d"])
def test_a_path_is_undone_however_it_was_written(engine: EngineStore, word: str) -> None:
    """The snapshot notes what a word meant, not the word."""
    file = engine.file("f", b"old", engine.folder("d"))
    name = save(engine)["name"]
    engine.data.write(file, 0, b"new")
    restore(engine, name, word)
    assert engine.content(file) == b"old"
    ask(engine, "undo", force=True)
    assert engine.content(file) == b"new"


def test_a_path_that_is_no_text_is_restored_and_undone(engine: EngineStore) -> None:
    """A name is any bytes; metadata.json is UTF-8."""
    folder = engine.folder("d")
    odd = b"\xff\\x41\xc3\xa4"
    engine.names.create(folder, odd, FILE, ME)
    name = save(engine)["name"]
    engine.names.unlink(folder, odd)
    restore(engine, name, "d/" + odd.decode("utf-8", "surrogateescape"))
    assert names(engine, folder) == [odd]
    ask(engine, "undo", force=True)
    assert names(engine, folder) == []


@pytest.mark.parametrize(
    "path", [b"a/b", b"\xff", b"\\xff", b"\\\\xff\xfe\\", "\u00e4/\\".encode()]
)
def test_a_quoted_path_is_the_same_path(path: bytes) -> None:
    """Nothing is lost, and what is written is text."""
    quoted(path).encode()
    assert parsed_paths([unquoted(quoted(path))]) == frozenset({path.rstrip(b"/")})


def test_what_came_into_a_folder_after_a_restore_stays(engine: EngineStore) -> None:
    """The folder changed by the restore, as names in it came and went; not all that it holds."""
    folder = engine.folder("d")
    name = save(engine)["name"]
    engine.file("made", b"", folder)
    restore(engine, name)
    engine.file("later", b"", folder)
    ask(engine, "undo", force=True)
    assert names(engine, folder) == [b"later", b"made"]


def test_undo_after_try_undoes_just_what_the_command_changed(engine: EngineStore) -> None:
    """Also where others have written into the same folder since; the folder's mode comes back."""
    folder = engine.folder("d")
    before = save(engine, kind="try", phase="before")
    engine.file("made", b"", folder)
    engine.attributes.set(folder, AttributeChange(mode=0o700))
    engine.attributes.set(TREE_ROOT, AttributeChange(mode=0o711))
    save(engine, kind="try", phase="after", other=before["snapshotId"])
    engine.file("later", b"", folder)
    engine.file("top", b"")
    ask(engine, "undo", force=True)
    assert names(engine, folder) == [b"later"]
    assert engine.node(folder).mode & 0o777 == engine.node(TREE_ROOT).mode & 0o777 == 0o755
    assert engine.names.lookup(TREE_ROOT, b"top").is_file


def test_a_command_is_rolled_back_by_its_own_snapshots(engine: EngineStore) -> None:
    """Not the newest operation: another command has ended since, and something was restored."""
    one, two, three = (engine.file(name, b"old") for name in ("one", "two", "three"))
    save(engine, kind="try", phase="before")  # of a command that was killed
    first = save(engine, kind="try", phase="before")
    engine.data.write(one, 0, b"ONE")
    second = save(engine, kind="try", phase="before")
    ended = save(engine, kind="try", phase="after", other=first["snapshotId"])
    engine.data.write(two, 0, b"TWO")
    engine.data.write(three, 0, b"new")
    restore(engine, first["name"], "three")
    engine.file("later", b"")
    save(engine, kind="try", phase="after", other=second["snapshotId"])
    told = ask(engine, "undo", force=True, of=ended["snapshotId"])
    assert [each["path"] for each in told["changes"]] == ["one"]
    assert [engine.content(each) for each in (one, two, three)] == [b"old", b"TWO", b"old"]
    assert engine.names.lookup(TREE_ROOT, b"later").is_file
    ask(engine, "undo", force=True)
    assert engine.content(one) == b"ONE"


@pytest.mark.parametrize("is_rollback", [False, True])
def test_a_link_that_a_command_removed_is_a_link_again(
    engine: EngineStore, is_rollback: bool
) -> None:
    """Its other name is in nothing that the command changed."""
    file = engine.file("a", b"old")
    engine.names.link(file, TREE_ROOT, b"b")
    before = save(engine, kind="try", phase="before")
    engine.names.unlink(TREE_ROOT, b"b")
    after = save(engine, kind="try", phase="after", other=before["snapshotId"])
    told = ask(engine, "undo", force=True, of=after["snapshotId"] if is_rollback else None)
    assert [each["path"] for each in told["changes"]] == [".", "b"]
    assert engine.names.lookup(TREE_ROOT, b"b").ino == file
    assert engine.node(file).nlink == 2
    ask(engine, "undo", force=True)
    assert engine.node(file).nlink == 1


def test_a_link_that_a_restore_replaced_by_a_copy_is_a_link_again(engine: EngineStore) -> None:
    """The restore could not make it one, as the file had changed outside the path; undo can."""
    file = engine.file("a", b"old")
    engine.names.link(file, TREE_ROOT, b"b")
    name = save(engine)["name"]
    engine.data.write(file, 0, b"new")
    restore(engine, name, "b")
    assert engine.node(file).nlink == 1
    assert engine.content(engine.names.lookup(TREE_ROOT, b"b").ino) == b"old"
    ask(engine, "undo", force=True)
    assert engine.names.lookup(TREE_ROOT, b"b").ino == file
    assert (engine.content(file), engine.node(file).nlink) == (b"new", 2)
    assert engine.problems() == []


def test_pruning_leaves_what_undo_needs_for_a_day(engine: EngineStore) -> None:
    """The snapshot before a command that runs, and both when it has ended; then they may go."""
    engine.store.layout.config.write_text("[retention]\nkeep_last = 1\nmax_snapshots = 1\n")
    file = engine.file("f", b"old")
    before = save(engine, kind="try", phase="before")
    save(engine)
    kept = ask(engine, "prune", dry_run=False)["snapshots"]
    assert kept[0]["reasons"] == [undoing.FOR_TRY]
    engine.data.write(file, 0, b"new")
    save(engine, kind="try", phase="after", other=before["snapshotId"])
    save(engine)
    kept = ask(engine, "prune", dry_run=False)["snapshots"]
    assert [each["reasons"][0] for each in kept if each["keep"]] == [
        undoing.FOR_UNDO, undoing.FOR_UNDO, "newest",
    ]  # fmt: skip
    ask(engine, "undo", force=True)
    assert engine.content(file) == b"old"
    engine.clock.time_ns += undoing.KEPT_NS
    assert ask(engine, "prune", dry_run=False)["removed"] == 3


def test_a_changed_folder_that_has_gone_since_is_not_made_again(engine: EngineStore) -> None:
    """Only what the command changed comes back, and the way to it."""
    folder = engine.folder("d")
    engine.file("kept", b"", folder)
    file = engine.file("f", b"old", folder)
    before = save(engine, kind="try", phase="before")
    engine.data.write(file, 0, b"new")
    engine.file("made", b"", folder)
    save(engine, kind="try", phase="after", other=before["snapshotId"])
    for name in names(engine, folder):
        engine.names.unlink(folder, name)
    engine.names.rmdir(TREE_ROOT, b"d")
    ask(engine, "undo", force=True)
    assert names(engine, engine.names.lookup(TREE_ROOT, b"d").ino) == [b"f"]
    with pytest.raises(PosixError):
        engine.names.lookup(TREE_ROOT, b"kept")


def test_a_path_below_another_one_of_the_same_restore(engine: EngineStore) -> None:
    """It comes with the upper one, not into the folder that had the place meanwhile."""
    folder = engine.folder("d")
    engine.file("f", b"old", folder)
    name = save(engine)["name"]
    engine.names.unlink(folder, b"f")
    engine.names.rmdir(TREE_ROOT, b"d")
    engine.file("other", b"", engine.folder("d"))
    restore(engine, name, "d", "d/f")
    place = engine.names.lookup(TREE_ROOT, b"d").ino
    assert names(engine, place) == [b"f"]
    assert engine.content(engine.names.lookup(place, b"f").ino) == b"old"
    assert engine.problems() == []


def changed_files(engine: EngineStore) -> list[str]:
    """Return the names of snapshots for which it is noted what was changed."""
    return sorted(path.stem for path in engine.store.layout.snapshots.glob("*.changed"))


def test_undo_needs_the_safety_snapshot_alone(engine: EngineStore) -> None:
    """The one that was restored is deleted: just what the restore changed comes back all the same.

    A second undo, and what is noted, likewise.
    """
    folder = engine.folder("d")
    one, two = engine.file("one", b"old", folder), engine.file("two", b"old", folder)
    name = save(engine)["name"]
    engine.data.write(one, 0, b"new")
    engine.file("m\xe4de", b"", folder)
    saved = restore(engine, name)["saved"]
    engine.data.write(two, 0, b"TWO")
    engine.file("later", b"", folder)
    save(engine)
    ask(engine, "delete", snapshot=name)
    shown = ask(engine, "undo", force=True, dry_run=True)
    assert [each["path"] for each in shown["changes"]] == ["d", "d/m\xe4de", "d/one"]
    told = ask(engine, "undo", force=True)
    assert told == shown | {"saved": told["saved"]} and told["exact"] and told["until"] is None
    assert names(engine, folder) == [b"later", "m\xe4de".encode(), b"one", b"two"]
    assert (engine.content(one), engine.content(two)) == (b"new", b"TWO")
    ask(engine, "delete", snapshot=saved)
    assert changed_files(engine) == [told["saved"]]
    ask(engine, "undo", force=True)
    assert names(engine, folder) == [b"later", b"one", b"two"]
    assert (engine.content(one), engine.content(two)) == (b"old", b"TWO")
    assert engine.problems() == []


@pytest.mark.parametrize("is_saved", [False, True])
def test_what_was_not_noted_is_found_by_comparing(engine: EngineStore, is_saved: bool) -> None:
    """With what was restored; where that is gone, with what came next, and it is said."""
    one, two = engine.file("one", b"old"), engine.file("two", b"old")
    other = engine.file("other", b"old")
    name = save(engine)["name"]
    engine.data.write(one, 0, b"new")
    saved = restore(engine, name, "one", "two")["saved"]
    (engine.store.layout.snapshots / f"{saved}.changed").unlink()
    for each in (two, other):
        engine.data.write(each, 0, b"now")
    shown = ask(engine, "undo", force=True, dry_run=True)
    assert [each["path"] for each in shown["changes"]] == ["one"] and shown["exact"]
    until = save(engine)["name"] if is_saved else "current"
    ask(engine, "delete", snapshot=name)
    told = ask(engine, "undo", force=True)
    assert [each["path"] for each in told["changes"]] == ["one", "two"]
    assert (told["exact"], told["until"]) == (False, until)
    assert [engine.content(each) for each in (one, two, other)] == [b"new", b"old", b"now"]


def test_a_full_disk_keeps_no_restore_from_being_done(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it changed is not noted then, and the log says so; undo compares."""
    file = engine.file("f", b"old")
    name = save(engine)["name"]
    engine.data.write(file, 0, b"new")

    def refuse(path: Path, data: bytes) -> None:
        if path.suffix == ".changed":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(store, "write_file", refuse)
    restore(engine, name)
    assert "not noted" in caplog.text
    assert engine.content(file) == b"old"
    assert ask(engine, "undo", force=True)["exact"]
    assert engine.content(file) == b"new"


def test_the_snapshots_around_a_command_name_each_other(engine: EngineStore) -> None:
    """Either is enough to undo it; one that names another already keeps that."""
    file = engine.file("f", b"old")
    before = save(engine, kind="try", phase="before")
    engine.data.write(file, 0, b"new")
    after = save(engine, kind="try", phase="after", other=before["snapshotId"])
    save(engine, kind="try", phase="after", other=before["snapshotId"])
    assert ask(engine, "show", snapshot=before["name"])["operation"]["other"] == after["snapshotId"]
    assert engine.problems() == []  # the document in the store is the new one
    ask(engine, "undo", force=True, of=before["name"])
    assert engine.content(file) == b"old"


def test_a_snapshot_that_was_taken_for_nothing_is_not_undone(engine: EngineStore) -> None:
    """It is refused, and says what to do with it."""
    name = save(engine)["name"]
    with pytest.raises(UsageError, match=f"{name} was taken for no restore"):
        ask(engine, "undo", force=True, of="latest")


def test_undo_refuses_when_the_last_operation_cannot_be_undone(engine: EngineStore) -> None:
    """Its snapshot is deleted: an older operation is not undone in its place, unless named."""
    one, two = engine.file("one", b"old"), engine.file("two", b"old")
    name = save(engine)["name"]
    engine.data.write(one, 0, b"new")
    older = restore(engine, name)["saved"]
    engine.data.write(two, 0, b"new")
    newest = restore(engine, name)["saved"]
    ask(engine, "delete", snapshot=newest)
    expected = f"a restore, and {newest}, .*--of {older}' undoes a restore before it"
    with pytest.raises(NoSuchSnapshot, match=expected):
        ask(engine, "undo", force=True)
    assert (engine.content(one), engine.content(two)) == (b"old", b"old")
    ask(engine, "undo", force=True, of=older)
    assert (engine.content(one), engine.content(two)) == (b"new", b"old")
    for each in ask(engine, "list")["snapshots"]:
        ask(engine, "delete", snapshot=each["name"])
    with pytest.raises(NoSuchSnapshot, match=r"an undo, and .*'statefs list' shows"):
        ask(engine, "undo", force=True)


def test_a_store_of_an_older_version_is_undone(engine: EngineStore) -> None:
    """It does not say which operation was the last: the newest that there is."""
    file = engine.file("f", b"old")
    name = save(engine)["name"]
    engine.data.write(file, 0, b"new")
    restore(engine, name)
    engine.database.execute("DELETE FROM store WHERE key IN ('last_operation', 'current_as')")
    ask(engine, "undo", force=True)
    assert engine.content(file) == b"new"
