from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from statefs.cli import prepare
from statefs.cli.prepare import (
    choose_store,
    link_store,
    mount_point_made,
    refuse_covered_files,
    refuse_foreign,
    refuse_overlap,
    require_space,
)
from statefs.errors import MountPointNotEmpty, NoSpace, NoSuchStore, UsageError
from statefs.maintenance.store import init_store
from tests.unit.cli_fakes import make_empty_store


def test_a_missing_mount_point_is_made_with_its_parents(tmp_path: Path) -> None:
    """A second time changes nothing."""
    for _ in range(2):
        with mount_point_made(tmp_path / "a" / "b"):
            pass
    assert (tmp_path / "a" / "b").is_dir()


def test_what_was_made_for_a_mount_that_is_refused_is_gone(tmp_path: Path) -> None:
    """The folder and the parents that were missing; one that was there, or has something, stays."""
    (tmp_path / "a").mkdir()
    with pytest.raises(NoSpace), mount_point_made(tmp_path / "a" / "b" / "c"):
        raise NoSpace("full")
    assert list((tmp_path / "a").iterdir()) == []
    with pytest.raises(NoSpace), mount_point_made(tmp_path / "a"):
        raise NoSpace("full")

    def fail_with_a_file() -> None:
        with mount_point_made(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b" / "precious").touch()
            raise NoSpace("full")

    with pytest.raises(NoSpace):
        fail_with_a_file()
    assert (tmp_path / "a" / "b" / "precious").exists()


@pytest.mark.parametrize("state", ["file", "file/state"])
def test_a_file_is_no_mount_point(tmp_path: Path, state: str) -> None:
    """Nor can there be one below a file."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="is not a folder"),
        mount_point_made(tmp_path / state),
    ):
        pass


def test_the_store_is_beside_the_state_unless_named(tmp_path: Path) -> None:
    """--store wins where there is none beside."""
    assert choose_store(tmp_path / "state", None) == tmp_path / "state.store"
    assert choose_store(tmp_path / "state", tmp_path / "far") == tmp_path / "far"


def test_the_link_beside_the_state_is_followed(tmp_path: Path) -> None:
    """It was made by an earlier --store, which may be given again."""
    far = make_empty_store(tmp_path / "far")
    (tmp_path / "state.store").symlink_to(far)
    assert choose_store(tmp_path / "state", None) == far
    assert choose_store(tmp_path / "state", far) == far


def test_another_store_than_the_one_beside_is_refused(tmp_path: Path) -> None:
    """Two stores for one state would be confused sooner or later."""
    make_empty_store(tmp_path / "state.store")
    with pytest.raises(UsageError, match=r"has a store already, .*state\.store"):
        choose_store(tmp_path / "state", tmp_path / "far")


def test_a_link_to_a_missing_disk_makes_no_new_store(tmp_path: Path) -> None:
    """The store that is not there may hold everything; a new one would hide that."""
    (tmp_path / "state.store").symlink_to(tmp_path / "disk" / "store")
    with pytest.raises(NoSuchStore, match="which is not there"):
        choose_store(tmp_path / "state", None)


@pytest.mark.parametrize("store", ["state", "state/store", "state/a/b"])
def test_a_store_cannot_lie_in_its_own_mount(tmp_path: Path, store: str) -> None:
    """The mount would cover it."""
    with pytest.raises(UsageError, match="cannot lie in its own mount point"):
        refuse_overlap(tmp_path / "state", tmp_path / store)


def test_nothing_is_mounted_or_made_in_a_store(tmp_path: Path) -> None:
    """It would belong to nothing there, and verify would say so."""
    store = make_empty_store(tmp_path / "state.store")
    for state, its_store in (
        (store / "objects" / "q", tmp_path / "other.store"),
        (tmp_path / "other", store / "q.store"),
    ):
        with pytest.raises(UsageError, match=f"lies in the store {store}: name a place outside"):
            refuse_overlap(state, its_store)


def test_a_state_that_is_named_as_a_store_is_told(tmp_path: Path) -> None:
    """A new store in its empty mount point is not what is meant."""
    make_empty_store(tmp_path / "old.store")
    with pytest.raises(UsageError, match=r"its store is '--store .*/old\.store'"):
        choose_store(tmp_path / "new", tmp_path / "old")


def test_a_store_elsewhere_gets_a_link(tmp_path: Path) -> None:
    """STATE.store leads to it; a second time changes nothing."""
    far = make_empty_store(tmp_path / "far")
    assert link_store(tmp_path / "state", far) is None
    assert link_store(tmp_path / "state", far) is None
    assert (tmp_path / "state.store").readlink() == far


def test_the_store_beside_needs_no_link(tmp_path: Path) -> None:
    """It is found as it is."""
    beside = make_empty_store(tmp_path / "state.store")
    assert link_store(tmp_path / "state", beside) is None
    assert not beside.is_symlink()


def test_a_link_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    """The mount goes on; the warning says what to type from now on."""
    far = make_empty_store(tmp_path / "far")
    warning = link_store(tmp_path / "no such folder" / "state", far)
    assert warning is not None
    assert f"give --store {far} with each command" in warning


@pytest.mark.parametrize(
    ("names", "listing"),
    [
        (["a"], "(a)"),
        (["c", "a", "b"], "(a, b, c)"),
        (["e", "d", "c", "b", "a"], "(a, b, c and 2 more)"),
    ],
)
def test_files_under_the_mount_point_are_named(
    tmp_path: Path, names: list[str], listing: str
) -> None:
    """A few of them, and both ways out."""
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(MountPointNotEmpty) as caught:
        refuse_covered_files(tmp_path)
    assert listing in str(caught.value)
    assert f"statefs mount --adopt {tmp_path}" in str(caught.value)


def test_an_empty_mount_point_is_fine(tmp_path: Path) -> None:
    """Nothing would be hidden."""
    refuse_covered_files(tmp_path)
    assert os.listdir(tmp_path) == []


def test_too_little_space_is_noticed_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filesystem of the nearest folder that exists is asked; what root may use counts not."""
    asked: list[Path] = []

    def nearly_full(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(f_bavail=2, f_bfree=1 << 30, f_frsize=1 << 20)

    monkeypatch.setattr("statefs.cli.prepare.os.statvfs", nearly_full)
    with pytest.raises(NoSpace, match=r"only 2\.0 MiB free .*3\.0 MiB needed"):
        require_space(tmp_path / "not" / "there", 3 << 20)
    require_space(tmp_path, 2 << 20)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize("what", ["a file", "a folder of files"])
def test_what_is_no_store_is_not_built_over(tmp_path: Path, what: str) -> None:
    """Only a new place or an empty folder becomes a store."""
    place = tmp_path / "place"
    refuse_foreign(place)
    if what == "a file":
        place.touch()
    else:
        place.mkdir()
        refuse_foreign(place)
        (place / "precious").touch()
    with pytest.raises(UsageError, match="is there and is no store"):
        refuse_foreign(place)


def test_a_store_that_another_command_has_just_made_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands at once make one store, and nothing else stays."""
    store = tmp_path / "state.store"
    monkeypatch.setattr(prepare, "refuse_foreign", init_store)
    assert not prepare.make_store(store, None)
    assert [path.name for path in tmp_path.iterdir()] == ["state.store"]
