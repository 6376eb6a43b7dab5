from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from statefs.errors import NewerStore, NotInStore, StateDamaged, StoreLocked, UsageError
from statefs.state import DocumentType, JsonStore
from statefs.state.checking import check_documents, repair_documents
from statefs.state.copies import copies_of
from statefs.state.journal import Journal
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.harness.processes import run_as

NAMES = ["settings", "providers", "sessions", "mcp-servers", "spaces", "hooks", "skills", "context"]


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What a program allows in its settings."""

    theme: str = "light"
    font_size: int = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a store will be; two folders that are not there."""
    return tmp_path / "app" / "state"


def test_what_was_set_is_there_in_the_next_process(folder: Path) -> None:
    """Every kind of JSON value, in several documents, in the order it was set."""
    values: dict[str, Any] = {
        "text": "ü\n\"'",
        "none": None,
        "big": 2**80,
        "f": 0.1,
        "list": [1, [True]],
        "": {},
    }
    with JsonStore(folder) as store:
        for name in NAMES:
            for key, value in values.items():
                store.set(name, key, value)
        assert store.names() == sorted(NAMES)

    def read() -> list[Any]:
        with JsonStore(folder) as store:
            return [list(store.all(name).items()) for name in NAMES]

    assert run_as(None, read) == [list(values.items())] * len(NAMES)


def test_the_file_is_json_of_its_owner_alone(folder: Path) -> None:
    """One key to a line; modes 0600 and 0700, also of the folders above that were made."""
    with JsonStore(folder) as store:
        store.set("settings", "theme", {"name": "dark"})
        store.set("settings", "ü", 1)
    path = folder / "settings.json"
    assert path.read_text() == (
        '{\n  "version": 1,\n  "values": {\n    "theme": {"name": "dark"},\n    "ü": 1\n  }\n}\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)} == {0o700}
    assert sorted(os.listdir(folder)) == [".lock", "settings.json"]


def test_keys_go_and_documents_go(folder: Path) -> None:
    """Each answer says whether there was something."""
    with JsonStore(folder) as store:
        store.save("settings", {"a": 1, "b": 2})
        assert store.delete("settings", "a") and not store.delete("settings", "a")
        assert store.all("settings") == {"b": 2} == store.load("settings")
        assert store.get("settings", "a", "default") == "default"
        assert store.get("nothing", "a") is None
        store.save("settings", {})
        assert store.all("settings") == {} and store.names() == ["settings"]
        store.remove("settings")
        assert store.names() == [] and store.all("settings") == {}
        for ask in (store.load, store.remove):
            with pytest.raises(NotInStore, match="no document 'settings'"):
                ask("settings")


def test_nobody_changes_what_is_in_memory_by_the_way(folder: Path) -> None:
    """A value that was given or got is the caller's own."""
    with JsonStore(folder) as store:
        value = {"list": [1]}
        store.set("settings", "a", value)
        value["list"].append(2)
        store.get("settings", "a")["list"].append(3)
        store.all("settings")["a"]["list"].append(4)
        assert store.get("settings", "a") == {"list": [1]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}.union, object(), "\udcff"])
def test_what_json_does_not_hold_is_refused_and_changes_nothing(folder: Path, value: Any) -> None:
    """In one line that does not quote the value."""
    with JsonStore(folder) as store:
        store.set("settings", "a", 1)
        with pytest.raises(UsageError, match=r"^the value of a key cannot be stored: [^\n]+$"):
            store.set("settings", "a", {"deep": [value]})
        with pytest.raises(UsageError, match="a key is a text"):
            store.set("settings", 7, 1)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="a key cannot be stored"):
            store.set("settings", "\udcff", 1)
        with pytest.raises(UsageError, match="document"):
            store.set("", "a", 1)
        assert store.all("settings") == {"a": 1} == store.load("settings")


def test_a_typed_document_takes_only_what_fits(folder: Path) -> None:
    """Unknown keys and wrong types are refused when set, and named when a file has them."""
    types = {"settings": DocumentType(Settings)}
    with JsonStore(folder, types) as store:
        store.set("settings", "theme", "dark")
        for key, value in (("font_size", "big"), ("tehme", "dark")):
            with pytest.raises(UsageError, match="'settings' cannot hold that: .*" + key):
                store.set("settings", key, value)
        assert store.load("settings") == {"theme": "dark"}
    path = folder / "settings.json"
    path.write_text(path.read_text().replace('"dark"', '"dark",\n"tehme": 1'))
    with JsonStore(folder, types) as store:
        with pytest.raises(StateDamaged, match=f"^{path}, line 5: .*`tehme`"):
            store.get("settings", "theme")
        with pytest.raises(StateDamaged):
            store.set("settings", "theme", "light")
    assert '"tehme"' in path.read_text()


def test_an_older_document_is_migrated_after_a_copy_was_kept(folder: Path) -> None:
    """A reader migrates in memory; a newer one is refused and stays."""
    with JsonStore(folder) as store:
        store.save("settings", {"colour": "dark"})
    old = (folder / "settings.json").read_bytes()

    def renamed(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"values": {"theme": document["values"]["colour"]}}

    types = {"settings": DocumentType(Settings, version=2, migrations={1: renamed})}
    with JsonStore(folder, types, read_only=True) as reader:
        assert reader.all("settings") == {"theme": "dark"}
        assert (folder / "settings.json").read_bytes() == old
    with JsonStore(folder, types) as store:
        assert store.get("settings", "theme") == "dark"
    assert json.loads((folder / "settings.json").read_text())["version"] == 2
    assert [each.read_bytes() for each in copies_of(folder / "settings.json")] == [old]
    with JsonStore(folder) as store, pytest.raises(NewerStore, match="has version 2"):
        store.set("settings", "theme", "light")


def test_each_process_that_changes_a_document_keeps_one_copy_of_what_it_was(folder: Path) -> None:
    """Not one for each change."""
    for number in range(3):
        with JsonStore(folder) as store:
            store.set("settings", "n", number)
            store.set("settings", "m", number)
    found = [json.loads(each.read_text())["values"] for each in copies_of(folder / "settings.json")]
    assert found == [{"n": 1, "m": 1}, {"n": 0, "m": 0}]


def test_one_process_writes_and_others_read_what_it_wrote(folder: Path) -> None:
    """A second writer is refused; a reader sees each change at its next look."""
    with JsonStore(folder) as store:
        store.set("settings", "n", 0)

        def second() -> None:
            JsonStore(folder)

        with pytest.raises(AssertionError, match=f"StoreLocked: .* in use by pid {os.getpid()}"):
            run_as(None, second)
        with JsonStore(folder, read_only=True) as reader:
            for number in range(50):
                store.set("settings", "n", number)
                assert reader.get("settings", "n") == number
            store.remove("settings")
            assert reader.get("settings", "n") is None
            with pytest.raises(UsageError, match="read only"):
                reader.set("settings", "n", 1)
            with pytest.raises(UsageError, match="read only"):
                reader.delete("settings", "n")
    with pytest.raises(UsageError, match="closed"):
        store.get("settings", "n")
    with pytest.raises(NotInStore):
        JsonStore(folder / "nowhere", read_only=True)


def test_a_second_store_of_one_folder_in_one_process_is_refused(folder: Path) -> None:
    """It would overwrite what the first has in memory."""
    with JsonStore(folder), pytest.raises(StoreLocked, match="in this process"):
        JsonStore(folder)
    JsonStore(folder).close()


def test_a_file_that_somebody_edits_is_read_again(folder: Path) -> None:
    """A change by hand, in the midst, is not overwritten."""
    with JsonStore(folder) as store:
        store.set("settings", "a", 1)
        (folder / "settings.json").write_text('{"version": 1, "values": {"a": 100, "b": 200}}')
        store.set("settings", "c", 3)
        assert store.all("settings") == {"a": 100, "b": 200, "c": 3}


def test_a_change_is_synced_before_it_is_renamed_and_its_name_before_it_is_acknowledged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut cannot break, of a set, a removal and a record of a journal."""
    calls: list[str] = []

    def noted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any) -> Any:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append("sync folder" if is_folder else name)
            return original(*args)

        monkeypatch.setattr(os, name, call)

    with JsonStore(folder) as store, Journal(folder / "journal.log") as journal:
        store.set("settings", "a", 1)
        for name in ("write", "fsync", "fdatasync", "rename", "unlink"):
            noted(name)
        store.set("settings", "a", 2)
        assert calls[-4:] == ["write", "fsync", "rename", "sync folder"]
        journal.append("x")
        assert calls[-2:] == ["write", "fdatasync"]
        store.remove("settings")
        assert calls[-2:] == ["unlink", "sync folder"]


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_threads_lose_nothing_of_each_other(folder: Path) -> None:
    """Four write keys of one document while four read."""
    seen: list[bool] = []

    def write(thread: int) -> None:
        for number in range(25):
            store.set("settings", f"{thread}-{number}", [number] * 10)

    def read(thread: int) -> None:
        for number in range(25):
            found = store.get("settings", f"{thread}-{number}", [number] * 10)
            seen.append(found == [number] * 10)

    with JsonStore(folder) as store:
        jobs = [threading.Thread(target=job, args=(i,)) for i in range(4) for job in (write, read)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        assert len(store.all("settings")) == 100 == len(store.load("settings"))
    assert seen == [True] * 100


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_leaves_the_old_or_the_new_value(folder: Path) -> None:
    """The store opens after each, with all that was acknowledged, and takes changes."""

    def work(acknowledge: Acknowledge) -> None:
        with JsonStore(folder) as store:
            for number in range(2):
                store.set("settings", "n", [number] * 100)
                acknowledge(f"n{number}")
            store.set("other", "x", "kept")
            acknowledge("x")
            store.delete("settings", "n")
            acknowledge("gone")

    steps = ["", "n0", "n1", "x", "gone"]
    states = [
        ([-1] * 100, None), ([0] * 100, None), ([1] * 100, None),
        ([1] * 100, "kept"), (None, "kept"),
    ]  # fmt: skip
    kills = 0
    with JsonStore(folder) as store:
        store.set("settings", "n", [-1] * 100)
    for killed in each_kill(work):
        kills += 1
        done = steps.index(killed.acknowledged[-1]) if killed.acknowledged else 0
        with JsonStore(folder) as store:
            found = (store.get("settings", "n"), store.get("other", "x"))
            assert found in states[done : done + 2], killed
            store.save("settings", {"n": [-1] * 100})
            store.save("other", {})
        assert not [each for each in os.listdir(folder) if each.endswith(".broken")]
    assert kills > 30


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_during_a_migration_leaves_the_old_or_the_new_document(folder: Path) -> None:
    """And the copy of the old one, before the new one is there."""
    path = folder / "settings.json"
    old = '{"version": 1, "values": {"colour": "dark"}}'

    def renamed(document: dict[str, Any]) -> dict[str, Any]:
        return {"values": {"theme": document["values"]["colour"]}}

    types = {"settings": DocumentType(Settings, version=2, migrations={1: renamed})}

    def work(_acknowledge: Acknowledge) -> None:
        with JsonStore(folder, types) as store:
            store.load("settings")

    folder.mkdir(parents=True)
    path.write_text(old)
    for killed in each_kill(work):
        if path.read_text() != old:
            assert json.loads(path.read_text()) == {"version": 2, "values": {"theme": "dark"}}
            assert [each.read_text() for each in copies_of(path)] == [old], killed
        with JsonStore(folder, types) as store:
            assert store.all("settings") == {"theme": "dark"}
        for copy in copies_of(path):
            copy.unlink()
        path.write_text(old)


def test_a_link_is_no_document_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    """Neither opening nor a repair follows it, as its modes are somebody else's."""
    folder, victim = tmp_path / "shop", tmp_path / "victim"
    victim.write_text("{}")
    victim.chmod(0o644)
    with JsonStore(folder) as store:
        store.set("settings", "a", 1)
    (folder / "evil.json").symlink_to(victim)
    with JsonStore(folder) as store:
        assert store.names() == ["settings"]
    folder.chmod(0o755)
    assert repair_documents(folder) != [] and check_documents(folder) == []
    assert victim.stat().st_mode & 0o777 == 0o644
