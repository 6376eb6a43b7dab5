from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from statefs.state import DocumentType, JsonStore
from statefs.state.checking import repair_documents
from statefs.state.snapshots import mounted_folder

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def example(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the programs in docs/examples/."""
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *words], capture_output=True, text=True
    )


def test_in_a_mounted_state_snapshots_stand_for_copies(state: Path) -> None:
    """No backups/; a migration takes a snapshot; a repair names the snapshots that have it."""
    folder = state / "current" / "files" / "shop"
    with JsonStore(folder) as store:
        store.set("settings", "colour", "dark")
    mounted = mounted_folder(folder)
    assert mounted is not None and str(mounted.place) == "files/shop"
    mounted.take_snapshot("good")
    types = {"settings": DocumentType(version=2, migrations={1: lambda document: document})}
    with JsonStore(folder, types) as store:
        assert store.get("settings", "colour") == "dark"
    assert sorted(os.listdir(folder)) == [".lock", "settings.json"]
    labels = [each for each in os.listdir(state / "snapshots") if each.startswith("before-")]
    assert len(labels) == 1
    path = folder / "settings.json"
    path.write_text("{")
    mounted.take_snapshot("broken")
    [repair] = repair_documents(folder)
    assert repair.source is None and len(repair.snapshots) == 2
    versions = [json.loads(each.read_text())["version"] for each in repair.snapshots]
    assert versions == [1, 1]
    assert repair.snapshots[0].parent.parent.parent.parent == state / "snapshots"


@pytest.mark.parametrize("place", ["disk", "mount"])
def test_the_example_of_settings_works(request: pytest.FixtureRequest, place: str) -> None:
    """On a disk and in a mount: it sets, refuses what its type does not hold, and migrates."""
    if place == "disk":
        folder = request.getfixturevalue("tmp_path") / "shop"
    else:
        folder = request.getfixturevalue("state") / "current" / "files" / "shop"
    assert json.loads(example("settings", folder, "theme", "dark").stdout) == {
        "theme": "dark", "font_size": 12}  # fmt: skip
    refused = example("settings", folder, "font_size", "big")
    assert refused.returncode == 1
    assert "expected `int`, got `str`" in refused.stderr and "Traceback" not in refused.stderr
    (folder / "settings.json").write_text('{"version": 1, "values": {"colour": "blue"}}')
    assert json.loads(example("settings", folder).stdout) == {"theme": "blue", "font_size": 12}
