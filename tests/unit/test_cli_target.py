from __future__ import annotations

from pathlib import Path

import pytest

from statefs.errors import NoSuchStore, UsageError
from statefs.target import (
    find_state,
    find_target,
    find_target_of_paths,
    known_snapshot_names,
    require_state,
)
from tests.unit.cli_fakes import call, make_empty_store, pretend_mounts


@pytest.fixture(autouse=True)
def _no_state_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start each test with no state named, no mount, and a working directory of its own."""
    monkeypatch.delenv("STATEFS_STATE", raising=False)
    monkeypatch.chdir(tmp_path)
    pretend_mounts(monkeypatch, tmp_path / "mountinfo", {})


def test_the_store_lies_beside_the_state(tmp_path: Path) -> None:
    """Without a mount and without --store it is STATE.store."""
    store = make_empty_store(tmp_path / "state.store")
    target = find_target(Path("state"), None)
    assert (target.state, target.store, target.mount) == (tmp_path / "state", store, None)


def test_a_link_beside_the_state_leads_to_the_store(tmp_path: Path) -> None:
    """STATE.store may be a symbolic link to a store elsewhere."""
    store = make_empty_store(tmp_path / "elsewhere")
    (tmp_path / "state.store").symlink_to(store)
    assert find_target(Path("state"), None).store == store


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    """The message names the link and the place it leads to."""
    (tmp_path / "state.store").symlink_to(tmp_path / "gone")
    with pytest.raises(NoSuchStore, match=r"state\.store leads to .*gone"):
        find_target(Path("state"), None)


def test_a_missing_store_says_what_to_do(tmp_path: Path) -> None:
    """The message offers init and --store."""
    with pytest.raises(NoSuchStore, match=r"run 'statefs init .*state', or .*--store DIR"):
        find_target(Path("state"), None)


def test_a_mistyped_state_is_told_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the store beside it; a name like none, or a folder that is there, gets no guess."""
    monkeypatch.chdir(tmp_path)
    make_empty_store(tmp_path / "state.store")
    with pytest.raises(NoSuchStore, match=r"there is no .*/stat: did you mean .*/state\?"):
        find_target(Path("stat"), None)
    (tmp_path / "stat").mkdir()
    for name in ("stat", "shop"):
        with pytest.raises(NoSuchStore, match="run 'statefs init"):
            find_target(Path(name), None)


def test_a_store_can_be_named_alone(tmp_path: Path) -> None:
    """A backup of a store has no mount point and needs none."""
    store = make_empty_store(tmp_path / "backup.store")
    target = find_target(None, Path("backup.store"))
    assert (target.state, target.store) == (None, store)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """--store names a folder without a meta.db."""
    with pytest.raises(NoSuchStore, match="is not a store"):
        find_target(None, tmp_path)


def test_a_mounted_state_knows_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount table says where the store is, though nothing lies beside the state."""
    store = make_empty_store(tmp_path / "far away")
    pretend_mounts(monkeypatch, tmp_path / "table", {tmp_path / "state": tmp_path / r"far\040away"})
    target = find_target(Path("state"), None)
    assert target.store == store
    assert target.mount is not None and target.mount.mount_point == tmp_path / "state"


def test_a_path_inside_a_mounted_state_means_that_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`statefs list state/current/files` is clear enough."""
    store = make_empty_store(tmp_path / "s")
    pretend_mounts(monkeypatch, tmp_path / "table", {tmp_path / "state": store})
    assert find_target(Path("state/current/files"), None).state == tmp_path / "state"


def test_the_wrong_store_for_a_mounted_state_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--store must not silently work on another store than the one that is shown."""
    store = make_empty_store(tmp_path / "s")
    pretend_mounts(monkeypatch, tmp_path / "table", {tmp_path / "state": store})
    with pytest.raises(UsageError, match="shows the store"):
        find_target(Path("state"), tmp_path / "other")


def test_a_store_that_is_mounted_elsewhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naming only the store finds its mount, whose daemon is to be asked."""
    store = make_empty_store(tmp_path / "s")
    pretend_mounts(monkeypatch, tmp_path / "table", {tmp_path / "state": store})
    target = find_target(None, store)
    assert target.state == tmp_path / "state"
    assert target.mount is not None


def test_the_state_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats the environment, which beats the working directory."""
    pretend_mounts(monkeypatch, tmp_path / "table", {tmp_path: tmp_path / "s"})
    assert find_state(None) == tmp_path
    monkeypatch.setenv("STATEFS_STATE", "/from/environment")
    assert find_state(None) == Path("/from/environment")
    assert find_state(Path("/named")) == Path("/named")


def test_a_link_to_a_state_is_followed(tmp_path: Path) -> None:
    """The store lies beside the folder itself, not beside a link to it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert find_state(Path("link")) == tmp_path / "real"


@pytest.mark.parametrize(
    ("cwd", "word", "meant"),
    [
        ("", "files/a", "files/a"),
        ("", "state/current/files/a", "files/a"),
        ("", "./link/current/./files//a/", "files/a"),
        ("", "other/../state/current/files/../a", "a"),
        ("", "state/snapshots/clean/files/a", "files/a"),
        ("", "state/current", "."),
        ("", "state/snapshots/clean", "."),
        ("", "state/clones/c/a", "state/clones/c/a"),
        ("", "state/snapshots", "state/snapshots"),
        ("", "state", "state"),
        ("", "bound/a", "files/a"),
        ("", "elsewhere/current/a", "elsewhere/current/a"),
        ("state", "files/a", "files/a"),
        ("state/current/files", "a", "files/a"),
        ("state/current/files", "../b", "b"),
        ("state/current/files", ".", "files"),
        ("state/current/files", "files/a", "files/a"),  # as `diff` prints it
        ("state/current", "files", "files"),
        ("state/current/files", "gone", "files/gone"),
        ("state/snapshots/clean/files", "files/a", "files/a"),
        ("state/snapshots/clean/files", "a", "files/a"),
    ],
)
def test_a_path_into_the_mount_is_one_of_the_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cwd: str, word: str, meant: str
) -> None:
    """As every program writes it: absolute, from the working directory, through links."""
    store, other = (make_empty_store(tmp_path / name) for name in ("state.store", "other.store"))
    for name in ("state/current/files", "state/snapshots/clean/files", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("state")
    mounts = {tmp_path / "state": store, tmp_path / "elsewhere": other}
    pretend_mounts(monkeypatch, tmp_path / "mountinfo", mounts)
    with open(tmp_path / "mountinfo", "a") as table:
        table.write(f"200 1 0:50 /current/files {tmp_path}/bound rw - fuse.statefs {store} rw\n")
    monkeypatch.chdir(tmp_path / cwd)
    target, words = find_target_of_paths(tmp_path / "state", None, [word])
    assert (target.store, words) == (store, [meant])
    if meant != word and not word.startswith("files"):
        absolute = str(tmp_path / cwd / word)
        assert find_target_of_paths(None, store, [absolute]) == (target, [meant])


def test_a_path_into_a_mount_says_which_state_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else does."""
    store, other = (make_empty_store(tmp_path / f"{name}.store") for name in ("state", "other"))
    pretend_mounts(monkeypatch, tmp_path / "mountinfo", {tmp_path / "state": store})
    target, words = find_target_of_paths(None, None, ["state/current/a"])
    assert (target.store, words) == (store, ["a"])
    monkeypatch.setenv("STATEFS_STATE", "other")
    target, words = find_target_of_paths(None, None, ["state/current/a"])
    assert (target.store, words) == (other, ["state/current/a"])


def test_without_any_hint_the_message_says_how_to_name_a_state() -> None:
    """One line, three ways."""
    with pytest.raises(UsageError, match=r"name it .*STATEFS_STATE.*change into"):
        require_state(None)


@pytest.mark.parametrize("command", ["list", "status", "umount", "restore", "diff", "log", "try"])
def test_a_store_in_place_of_a_state_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Nobody is told to make another store inside it."""
    make_empty_store(tmp_path / "my state.store")
    words = {"restore": ["latest"], "diff": ["latest"], "log": ["a"], "try": ["--", "true"]}
    done = call(capsys, command, "my state.store", *words.get(command, []))
    assert (done.exit_code, done.err.count("\n")) == (2, 1)
    assert (
        f"is a store, not a state: name it with '--store '{tmp_path}/my state.store''" in done.err
    )


@pytest.mark.parametrize("words", [["log", "state"], ["cat", "state", "latest"]])
def test_a_missing_path_is_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """It is the path that is missing, not the state."""
    make_empty_store(tmp_path / "state.store")
    done = call(capsys, *words)
    assert (done.exit_code, done.err.count("\n")) == (2, 1)
    assert "'state' is the state, PATH is missing" in done.err


def test_a_suggested_command_quotes_blanks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that it can be pasted."""
    done = call(capsys, "list", "my state")
    assert f"run 'statefs init '{tmp_path}/my state''" in done.err


def test_completion_offers_names_and_labels(tmp_path: Path) -> None:
    """The newest comes first, after `latest`; each label follows its snapshot."""
    store = make_empty_store(tmp_path / "state.store")
    (store / "index.json").write_text(
        '{"snapshots": [{"name": "2025", "labels": {"name": "old"}}, {"name": "2026"}]}'
    )
    assert known_snapshot_names(Path("state"), None) == ["latest", "2026", "2025", "old"]


def test_a_working_directory_that_is_gone_matters_to_relative_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absolute one leads where it always did."""
    store = make_empty_store(tmp_path / "state.store")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert find_target(tmp_path / "state", None).store == store
