from __future__ import annotations

import datetime
import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from statefs.layout import StoreLayout
from statefs.snapshots.reasons import REASONS
from tests.harness.mounted_state import MountedState
from tests.harness.system_calls import errno_of


@pytest.fixture(scope="module")
def saved(shared_state: MountedState) -> MountedState:
    """A state with three snapshots of growing content."""
    for number in range(3):
        (shared_state.files / f"f{number}").write_bytes(b"x" * 1000 * (number + 1))
        shared_state.save(f"message {number}", number=str(number))
    return shared_state


def read(path: Path) -> dict[str, Any]:
    """Return a JSON document."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_index_names_every_snapshot_in_order(saved: MountedState) -> None:
    """index.json, `list --json` and the folder agree; the newest is last."""
    index = read(saved.state / "index.json")
    names = [snapshot["name"] for snapshot in index["snapshots"]]
    assert names == [snapshot["name"] for snapshot in saved.listing()]
    assert sorted(set(os.listdir(saved.snapshots)) - {"latest"}) == sorted(names)
    times = [snapshot["timestamp"] for snapshot in index["snapshots"]]
    assert times == sorted(times)


def test_index_has_its_fields(saved: MountedState) -> None:
    """ProjectId is a UUID, the policy and the last change are there."""
    index = read(saved.state / "index.json")
    assert str(uuid.UUID(index["projectId"])) == index["projectId"]
    assert {"appId", "currentStateDigest"} <= index.keys()
    assert index["retentionPolicy"]["maxSnapshots"] == 100
    moment = datetime.datetime.fromisoformat(index["lastModified"])
    assert moment.utcoffset() == datetime.timedelta(0)


def test_metadata_has_its_fields(saved: MountedState) -> None:
    """Every snapshot's own document says what, when, why and of which parent."""
    parent = None
    for number, listed in enumerate(saved.listing()[-3:]):
        metadata = read(saved.snapshots / listed["name"] / "metadata.json")
        assert str(uuid.UUID(metadata["snapshotId"])) == metadata["snapshotId"]
        assert metadata["message"] == f"message {number}"
        assert metadata["labels"] == {"number": str(number)}
        assert metadata["reason"] in REASONS
        assert metadata["files"] == number + 1
        assert metadata["bytes"] == sum(1000 * (n + 1) for n in range(number + 1))
        assert metadata["parentSnapshotId"] == parent
        assert {"appVersion", "formatVersion", "stateDigest", "volumeManifests"} <= metadata.keys()
        parent = metadata["snapshotId"]


def test_a_folder_is_named_by_its_time(saved: MountedState) -> None:
    """The name is the timestamp in UTC with hyphens for colons."""
    for listed in saved.listing():
        stamp = listed["timestamp"].replace(":", "-")
        assert stamp.startswith(listed["name"].removesuffix("Z"))


def test_the_store_keeps_the_same_documents(saved: MountedState) -> None:
    """The plain files in the store are equal to what the mount shows."""
    layout = StoreLayout(saved.store)
    assert read(layout.index_json) == read(saved.state / "index.json")
    for listed in saved.listing():
        kept = read(layout.snapshots / f"{listed['name']}.json")
        assert kept == read(saved.snapshots / listed["name"] / "metadata.json")
    assert len(os.listdir(layout.snapshots)) == len(saved.listing())


def test_documents_are_files_like_others(saved: MountedState) -> None:
    """Their size is that of their bytes, and they cannot be written."""
    for path in (saved.state / "index.json", saved.snapshots / "latest/metadata.json"):
        status = os.stat(path)
        assert status.st_size == len(path.read_bytes())
        assert status.st_mode & 0o777 == 0o444
        with open(path, "rb") as file:
            assert os.pread(file.fileno(), 5, 1) == path.read_bytes()[1:6]
            assert os.pread(file.fileno(), 5, status.st_size) == b""


def test_the_name_of_a_document_is_kept_free(saved: MountedState) -> None:
    """No file of current/ can hide a snapshot's metadata.json; deeper down it is any name."""
    taken = saved.current / "metadata.json"
    (saved.current / "other").write_text("x")
    for make in (
        taken.touch,
        taken.mkdir,
        lambda: taken.symlink_to("x"),
        lambda: os.mkfifo(taken),
        lambda: os.link(saved.current / "other", taken),
        lambda: os.rename(saved.current / "other", taken),
    ):
        assert errno_of(make) == errno.EPERM
    (saved.current / "other").unlink()
    (saved.files / "metadata.json").write_text("{}")
    name = saved.save()
    assert (saved.snapshots / name / "files/metadata.json").read_text() == "{}"
    (saved.files / "metadata.json").unlink()


def test_index_is_never_stale(saved: MountedState) -> None:
    """A reader sees a save and a delete at once, with a new mtime and the whole new text."""
    before = os.stat(saved.state / "index.json")
    assert read(saved.state / "index.json")["snapshots"]
    name = saved.save("a longer message, so that the document grows" * 20)
    index = read(saved.state / "index.json")
    assert index["snapshots"][-1]["name"] == name
    assert os.stat(saved.state / "index.json").st_mtime_ns > before.st_mtime_ns
    saved.delete(name)
    index = read(saved.state / "index.json")
    assert name not in [snapshot["name"] for snapshot in index["snapshots"]]
    assert read(StoreLayout(saved.store).index_json) == index


def test_a_document_open_over_a_save_stays_whole(saved: MountedState) -> None:
    """Whoever reads index.json piece by piece while it changes still gets one whole document."""
    with open(saved.state / "index.json", "rb", buffering=0) as file:
        head = file.read(20)
        saved.save("in between")
        rest = file.read()
    assert json.loads(head + rest)["snapshots"]


def test_text_of_any_script_is_kept(saved: MountedState) -> None:
    """Message and labels are Unicode and come back as given."""
    message, value = 'quotes " \\ and\nlines, \u00e4\u00f6 \u4f60\u597d \U0001f600', "\u00e9=\u00e8"
    name = saved.save(message, word=value)
    metadata = read(saved.snapshots / name / "metadata.json")
    assert metadata["message"] == message
    assert metadata["labels"] == {"word": value}
