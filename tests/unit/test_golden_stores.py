"""Stores of every format version, as people have them: they open, and show what they held."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from statefs.doors import open_door
from statefs.errors import OlderStore
from statefs.ids import TREE_ROOT
from statefs.maintenance.verify import verify
from statefs.metadata.schema import FORMAT_VERSION
from statefs.target import Target
from tests.fixtures.make_store import EXPECTED, STORE, encode, golden, make, shown
from tests.unit.engine_store import EngineStore

VERSIONS = range(1, FORMAT_VERSION + 1)


def unpacked(version: int, place: Path) -> Path:
    """Return a copy of the golden store of a version."""
    with tarfile.open(golden(version) / f"{STORE}.tar.xz") as archive:
        # Python 3.11.2 knows no filters yet, and later ones warn without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(place)
    return place / STORE


def known_of(now: Any, then: Any) -> Any:
    """Return what `now` says of that which `then` says something of."""
    if isinstance(then, dict):
        return {key: known_of(now[key], value) for key, value in then.items()}
    if isinstance(then, list):
        return [known_of(one, other) for one, other in zip(now, then, strict=True)]
    return now


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_each_version_shows_what_it_held(tmp_path: Path, version: int) -> None:
    """Current and each snapshot: names, attributes, times, links, xattrs, and every byte."""
    expected = json.loads((golden(version) / EXPECTED).read_text())
    with EngineStore(unpacked(version, tmp_path)) as engine:
        found = json.loads(encode(shown(engine)))
        assert found["trees"] == expected["trees"]
        for now, then in zip(found["snapshots"], expected["snapshots"], strict=True):
            assert known_of(now, then) == then  # later formats know more
        assert engine.problems() == []


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_only_a_mount_migrates(tmp_path: Path, version: int) -> None:
    """A command says what to type, and the store is as it was: a newer one for an older program."""
    root = unpacked(version, tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for state, typed in ((None, f"STATE --store {root}"), (tmp_path / "store", "store")):
        target = Target(state, root, None)
        with pytest.raises(
            OlderStore, match=rf"format {version}.*'statefs mount .*{typed}'.*backup"
        ):
            open_door(target)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert after | {root / "lock": b""} == before | {root / "lock": b""}
    with EngineStore(root):  # as a mount opens it
        assert [path.name[:7] for path in (root / "backups").iterdir()] == [f"meta-v{version}"]
    open_door(target).close()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_each_version_goes_on_living(tmp_path: Path, version: int) -> None:
    """Written, saved, emptied and closed, it is sound, and its old snapshots are as they were."""
    root = unpacked(version, tmp_path)
    expected = json.loads((golden(version) / EXPECTED).read_text())
    with EngineStore(root) as engine:
        files = engine.names.lookup(TREE_ROOT, b"files").ino
        engine.data.write(engine.names.lookup(files, b"big").ino, 10, b"changed")
        engine.save(name="newest")
        engine.names.unlink(files, b"big")
        engine.store.collect()
        trees = json.loads(encode(shown(engine)))["trees"]
        for snapshot in expected["snapshots"]:
            assert trees[snapshot["name"]] == expected["trees"][snapshot["name"]]
    assert verify(engine.store.layout) == []


def test_the_golden_store_is_what_its_script_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again as root, the store of the current version shows the same, but for UUIDs."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "getgid", lambda: 0)
    make(tmp_path / "made")
    made, kept = (
        json.loads((place / EXPECTED).read_text())
        for place in (tmp_path / "made", golden(FORMAT_VERSION))
    )
    assert made["trees"] == kept["trees"]
    names = [[snapshot["name"] for snapshot in each["snapshots"]] for each in (made, kept)]
    assert names[0] == names[1]
