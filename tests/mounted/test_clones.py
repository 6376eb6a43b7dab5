"""Clones on a mount: programs write to a past state, and nobody else sees it."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

import statefs
from statefs.errors import CloneExists, NoSuchClone
from tests.harness.mounted_state import MountedState, eventually

BIG = 300_000
FILES = 1000


def clones_of(state: MountedState) -> Path:
    """Return the folder with the clones."""
    return state.state / "clones"


def test_a_database_is_written_in_a_clone(own_state: MountedState) -> None:
    """SQLite opens the copy, log and all, and writes; the snapshot and current stay as they are."""
    path = own_state.files / "data.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (n)")
        database.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5000)])
        database.commit()
        name = own_state.save()
        with statefs.open(own_state.state) as opened:
            opened.clone(name, "test")
        copy = clones_of(own_state) / "test/files/data.db"
        with closing(sqlite3.connect(copy)) as other:
            assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            other.execute("DELETE FROM t WHERE n >= 10")
            other.commit()
            other.execute("VACUUM")
            assert other.execute("SELECT count(*) FROM t").fetchone() == (10,)
        assert database.execute("SELECT count(*) FROM t").fetchone() == (5000,)
    with statefs.open(own_state.state) as opened:
        opened.delete_clone("test")
    assert os.listdir(clones_of(own_state)) == []
    own_state.verify()


def test_a_container_makes_and_deletes_clones(own_state: MountedState) -> None:
    """Mkdir clones the newest snapshot or NAME@SNAPSHOT; rmdir deletes one, full as it is."""
    folder = clones_of(own_state)
    with pytest.raises(FileNotFoundError):
        os.mkdir(folder / "early")
    (own_state.files / "a").write_text("one")
    first = own_state.save()
    (own_state.files / "a").write_text("two")
    own_state.save(name="clean")
    (own_state.files / "a").write_text("three")
    assert not (folder / "new").exists()
    os.mkdir(folder / "new")
    os.mkdir(folder / f"old@{first}")
    assert (folder / "new/files/a").read_text() == "two"
    assert (folder / f"old@{first}/files/a").read_text() == "one"
    with pytest.raises(FileExistsError):
        os.mkdir(folder / "new")
    with pytest.raises(FileNotFoundError):
        os.mkdir(folder / "x@missing")
    assert os.stat(folder).st_nlink == 4
    os.rmdir(folder / "new")
    assert os.listdir(folder) == [f"old@{first}"]
    assert not (folder / "new").exists()
    os.mkdir(folder / "new@clean")
    assert (
        os.getxattr(folder / "new@clean", "user.statefs.clone-of")
        == own_state.listing()[-1]["name"].encode()
    )
    own_state.verify()


def test_the_command_line_makes_lists_and_deletes(own_state: MountedState) -> None:
    """The kernel sees at once what came and went behind its back."""
    (own_state.files / "part").mkdir()
    (own_state.files / "part/a").write_text("one")
    name = own_state.save()
    folder, state = clones_of(own_state), own_state.state
    assert not (folder / "test").exists()
    made = json.loads(own_state.command("clone", state, "latest", "files/part", "test", "--json"))
    assert (made["name"], made["snapshot"], made["path"]) == ("test", name, "files/part")
    assert (folder / "test/a").read_text() == "one"
    assert json.loads(own_state.command("clone", "--list", state, "--json")) == {"clones": [made]}
    assert f"{name}/files/part" in own_state.command("clone", "--list", state)
    again = own_state.run("clone", state, "latest", "test")
    assert again.returncode == CloneExists.exit_code
    own_state.command("clone", "--delete", state, "test")
    assert not (folder / "test").exists()
    assert own_state.run("clone", "--delete", state, "test").returncode == NoSuchClone.exit_code


def test_clones_are_apart_as_filesystems_are(own_state: MountedState) -> None:
    """Renames and links fail with EXDEV; in clones/ itself there is nothing but clones."""
    (own_state.files / "a").write_text("one")
    own_state.save()
    folder = clones_of(own_state)
    os.mkdir(folder / "one")
    os.mkdir(folder / "two")
    places = [own_state.files / "a", folder / "one/files/a", folder / "two/files/a"]
    for source in places:
        for target in places:
            if source == target:
                continue
            for attempt in (os.rename, os.link):
                with pytest.raises(OSError) as caught:
                    attempt(source, target.with_name("b"))
                assert caught.value.errno == errno.EXDEV
    for forbidden in (
        lambda: os.rename(folder / "one", folder / "three"),
        lambda: os.rename(folder / "one", own_state.files / "three"),
        lambda: (folder / "file").write_text("no"),
        lambda: os.symlink("one", folder / "link"),
    ):
        with pytest.raises(PermissionError):
            forbidden()
    os.rename(folder / "one/files/a", folder / "one/volumes/a")
    assert (own_state.files / "a").read_text() == "one"


def test_a_thousand_files_in_clones_that_outlive_a_remount(own_state: MountedState) -> None:
    """Each has its own content after the next mount, too; new folders are found by all."""
    for number in range(FILES):
        (own_state.files / f"f{number}").write_text(str(number))
    (own_state.files / "big").write_bytes(b"a" * BIG)
    own_state.save()
    folder = clones_of(own_state)
    os.mkdir(folder / "test")
    files = folder / "test/files"
    assert len(os.listdir(files)) == FILES + 1
    for number in range(0, FILES, 2):
        (files / f"f{number}").write_text("changed")
    with open(files / "big", "r+b") as file:
        file.seek(1000)
        file.write(b"b" * 1000)
    own_state.remount()
    for number in range(FILES):
        expected = str(number) if number % 2 else "changed"
        assert (files / f"f{number}").read_text() == expected
        assert (own_state.files / f"f{number}").read_text() == str(number)
    assert (files / "big").read_bytes() == b"a" * 1000 + b"b" * 1000 + b"a" * (BIG - 2000)
    assert (own_state.files / "big").read_bytes() == b"a" * BIG
    os.rmdir(folder / "test")
    own_state.verify()


def test_an_open_file_outlives_its_clone(own_state: MountedState) -> None:
    """As one that was unlinked; a folder that a program stands in is gone."""
    (own_state.files / "big").write_bytes(b"a" * BIG)
    own_state.save()
    folder = clones_of(own_state)
    os.mkdir(folder / "test")
    with open(folder / "test/files/big", "r+b") as file:
        os.rmdir(folder / "test")
        file.write(b"b" * 1000)
        file.flush()
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 2000, 0) == b"b" * 1000 + b"a" * 1000
    assert (own_state.files / "big").read_bytes() == b"a" * BIG
    own_state.verify()


@pytest.mark.parametrize("what", ["clone", "delete"])
def test_a_daemon_killed_meanwhile_leaves_a_whole_clone_or_none(
    own_state: MountedState, what: str
) -> None:
    """Killed while clones are made, or deleted: each is there with everything, or not at all."""
    for number in range(FILES):
        (own_state.files / f"f{number}").write_text("x")
    own_state.save()
    folder = clones_of(own_state)
    done = threading.Event()
    begun: list[int] = []

    def work() -> None:
        for number in range(200):
            begun.append(number)
            try:
                os.mkdir(folder / f"c{number}")
                if what == "delete":
                    os.rmdir(folder / f"c{number}")
            except OSError:
                break
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: done.is_set() or len(begun) > 3, "some clones")
    own_state.kill()
    thread.join(60)
    assert done.is_set()
    own_state.mount()
    for each in folder.iterdir():
        assert len(os.listdir(each / "files")) == FILES
    for each in list(folder.iterdir()):
        os.rmdir(each)
    own_state.verify()
