"""A store on a disk that can only be read: its past can be looked at, and is not touched."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState
from tests.harness.small_disks import read_only_view

LARGE = bytes(range(256)) * 4096
"""More than lies in the database."""


@pytest.fixture
def closed(own_state: MountedState) -> MountedState:
    """A state with one sealed snapshot and something newer, not mounted."""
    (own_state.files / "large").write_bytes(LARGE)
    (own_state.files / "small").write_text("then")
    own_state.command("save", own_state.state, "--label", "name=one", "--wait")
    (own_state.files / "small").write_text("now")
    own_state.umount()
    return own_state


@pytest.fixture
def view(closed: MountedState, tmp_path: Path) -> Iterator[Path]:
    """Its store as on a disk that is mounted read-only."""
    with read_only_view(closed.store, tmp_path / "view") as folder:
        yield folder


def test_what_only_reads_works(closed: MountedState, view: Path, tmp_path: Path) -> None:
    """The same answers as elsewhere, and no byte of the store is another one afterwards."""
    before = {path: path.read_bytes() for path in view.rglob("*") if path.is_file()}

    def ask(command: str, *words: str) -> str:
        return closed.command(command, *words, "--store", view)

    assert [each["labels"] for each in json.loads(ask("list", "--json"))["snapshots"]] == [
        {"name": "one"}
    ]
    assert "2 files" in ask("verify", "--read-data")
    assert ask("diff", "one") == "M  files/small\n"
    assert ask("cat", "one", "files/small") == "then"
    assert len(json.loads(ask("log", "files/small", "--json"))["versions"]) == 2
    assert json.loads(ask("status", "--json"))["mounted"] is False
    assert "Sealed" in ask("show", "one") and "name=one" in ask("list", "--sizes")
    ask("export", "one", str(tmp_path / "one.tar"))
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert "files/large" in archive.getnames()
    ask("restore", "one", "--to", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "files" / "large").read_bytes() == LARGE
    assert {path: path.read_bytes() for path in view.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", ["save", "restore one", "prune", "scrub", "mount", "repair"])
def test_what_has_to_write_is_refused(
    closed: MountedState, view: Path, tmp_path: Path, words: str
) -> None:
    """One line that says why, and what to do; no lock and no log is made."""
    command, *rest = words.split()
    state = [str(tmp_path / "place")] if command == "mount" else []
    refused = closed.run(command, *state, *rest, "--store", view)
    assert (refused.returncode, refused.stderr.count("\n")) == (27, 1), refused.stderr
    assert f"'cp -a {view} DIR'" in refused.stderr


def test_a_store_that_must_be_recovered_is_not_read(
    own_state: MountedState, tmp_path: Path
) -> None:
    """Its log holds what the database does not yet; where it can be written it is recovered."""
    (own_state.files / "a").write_text("a")
    own_state.kill_daemon()
    own_state.command("umount", own_state.state)
    with read_only_view(own_state.store, tmp_path / "view") as view:
        for command in ("list", "verify"):
            refused = own_state.run(command, "--store", view)
            assert (refused.returncode, refused.stderr.count("\n")) == (27, 1)
            assert "not closed cleanly" in refused.stderr and "repair" not in refused.stderr
    assert own_state.command("list", own_state.state) == ""


def test_a_daemon_that_has_the_store_elsewhere_is_asked(
    own_state: MountedState, tmp_path: Path
) -> None:
    """Past a read-only bind mount its socket is reached; nothing is read behind its back."""
    (own_state.files / "a").write_text("newest")
    with read_only_view(own_state.store, tmp_path / "view") as view:
        assert json.loads(own_state.command("status", "--store", view, "--json"))["mounted"]
        assert own_state.command("cat", "current", "files/a", "--store", view) == "newest"
