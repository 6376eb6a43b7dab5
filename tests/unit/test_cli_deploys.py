from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from statefs.clock import SystemClock
from statefs.state import DeployState, JsonStore, Target
from statefs.state.terraform_states import lock_from, state_file
from tests.harness.http_states import LINEAGE, lock_info, terraform_state
from tests.unit.cli_fakes import call
from tests.unit.test_cli_documentation import shape

Capture = pytest.CaptureFixture[str]
NAME = "aws.eu-west-1"
BUCKET = "shop.bucket.images"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one deploy state, of which there is a copy."""
    folder = tmp_path / "deploy"
    for number in (1, 2):
        state = DeployState(folder, "shop", Target("aws", "eu-west-1"))
        state.record(BUCKET, f"b-{number}", {"size": number})
    return folder


@pytest.fixture
def terraform(tmp_path: Path) -> Path:
    """A folder with one of Terraform's states, of which there is a copy."""
    folder = tmp_path / "states"
    for serial in (1, 2):
        file = state_file(folder, "shop/prod", SystemClock())
        file.write(terraform_state(serial, resources=serial), None)
    return folder


def test_states_are_listed_and_shown(folder: Path, terraform: Path, capsys: Capture) -> None:
    """With serial, resources and who has the lock; a state, and a part of it."""
    state = DeployState(folder, "shop", Target("aws", "eu-west-1"))
    with state.lock("deploy", "release 7") as lock:
        [head, row] = call(capsys, "state", "list", folder).out.splitlines()
        assert head.split()[:4] == ["STATE", "PROJECT", "SERIAL", "RESOURCES"]
        assert row.split()[:4] == [NAME, "shop", "2", "1"]
        assert f"{lock.holder} for 'deploy' (release 7) since {lock.created_at}" in row
        listed = json.loads(call(capsys, "state", "list", folder, "--json").out)
    assert list(listed) == ["folder", "deploys"]
    [found] = listed["deploys"]
    assert (found["name"], found["serial"], found["resources"], found["copies"]) == (NAME, 2, 1, 1)
    assert found["lineage"] == state.version()[0] and found["lock"]["id"] == lock.id
    shown = json.loads(call(capsys, "state", "show", folder, NAME).out)
    assert shown["primitives"][BUCKET]["id"] == "b-2"
    assert call(capsys, "state", "show", folder, f"state.{NAME}").exit_code == 0
    part = json.loads(call(capsys, "state", "show", folder, NAME, BUCKET).out)
    assert part["attributes"] == {"size": 2}
    listed = json.loads(call(capsys, "state", "list", terraform, "--json").out)
    assert shape(listed["terraform"]) == shape([{**found, "lock": None}])
    assert [(each["name"], each["lineage"], each["serial"]) for each in listed["terraform"]] == [
        ("shop/prod", LINEAGE, 2)
    ]
    shown = json.loads(call(capsys, "state", "show", terraform, "shop/prod").out)
    assert shown == json.loads(terraform_state(2, resources=2))
    assert call(capsys, "state", "show", terraform, "shop/prod", "serial").out == "2\n"


def test_what_is_not_there_is_named(folder: Path, capsys: Capture) -> None:
    """A state, a part of one: exit code 30, and what there is."""
    for words, said in (
        (("show", folder, "aws.us"), f"there are: {NAME}"),
        (("show", folder, NAME, "shop.bucket.x"), "has no 'shop.bucket.x'"),
        (("unlock", folder, "aws.us"), f"there are: {NAME}"),
    ):
        done = call(capsys, "state", *words)
        assert done.exit_code == 30 and said in done.err


def test_a_lock_is_taken_away_by_its_name(folder: Path, terraform: Path, capsys: Capture) -> None:
    """With another id it is not; a state that was locked and never written has one, too."""
    state = DeployState(folder, "shop", Target("aws", "eu-west-1"))
    with state.lock("deploy") as lock:
        refused = call(capsys, "state", "unlock", folder, NAME, "another")
        assert refused.exit_code == 34 and lock.id in refused.err
        done = call(capsys, "state", "unlock", folder, NAME, lock.id)
        assert done.exit_code == 0 and f"{NAME}: the lock of {lock.holder}" in done.out
        assert "nobody has a lock" in call(capsys, "state", "unlock", folder, NAME).out
    state_file(terraform, "new", SystemClock()).lock(lock_from(lock_info(), SystemClock()))
    listed = json.loads(call(capsys, "state", "list", terraform, "--json").out)["terraform"]
    assert (listed[0]["name"], listed[0]["serial"], listed[0]["bytes"]) == ("new", None, 0)
    assert listed[0]["lock"]["holder"] == "ann@build" and listed[0]["changed"] is None
    assert call(capsys, "state", "show", terraform, "new").exit_code == 30
    assert call(capsys, "state", "check", terraform).exit_code == 0
    assert call(capsys, "state", "unlock", terraform, "new").exit_code == 0
    assert "new" not in call(capsys, "state", "list", terraform).out
    with JsonStore(folder.parent / "other") as store:
        store.set("settings", "a", 1)
    done = call(capsys, "state", "unlock", folder.parent / "other", "settings")
    assert done.exit_code == 30 and "no states with locks" in done.err


@pytest.mark.parametrize("which", ["deploy", "terraform"])
def test_a_broken_state_is_named_then_the_newest_good_copy_takes_its_place(
    request: pytest.FixtureRequest, which: str, capsys: Capture
) -> None:
    """Not while somebody works on it; what was broken stays beside it."""
    place = request.getfixturevalue("folder" if which == "deploy" else "terraform")
    name = f"state.{NAME}.json" if which == "deploy" else "shop%2Fprod.tfstate"
    path = place / name
    path.write_text(path.read_text().replace('"serial": 2', '"serial": two'))
    done = call(capsys, "state", "check", place)
    assert done.exit_code == 29 and done.out.startswith(f"{path}, line ")
    [row] = call(capsys, "state", "list", place).out.splitlines()[1:]
    assert "invalid" in row
    file = state_file(place, "shop/prod", SystemClock())
    if which == "terraform":
        file.lock(lock_from(lock_info("1"), SystemClock()))
        assert call(capsys, "state", "repair", place).exit_code == 34
        file.unlock("1")
    done = call(capsys, "state", "repair", place)
    assert done.exit_code == 0 and "has taken its place" in done.out
    assert '"serial": 1' in path.read_text()
    assert len(list(place.glob(f"{name}.broken-*"))) == 1
    assert call(capsys, "state", "check", place).exit_code == 0
    assert "nothing to repair" in call(capsys, "state", "repair", place).out


def test_modes_locks_and_files_of_others_are_named(folder: Path, capsys: Capture) -> None:
    """A mode is put right; a lock that cannot be read is for `unlock`, a copied file for people."""
    path = folder / f"state.{NAME}.json"
    path.chmod(0o644)
    lock = folder / f".state.{NAME}.json.lock"
    lock.write_text("{")
    lock.chmod(0o600)
    copied = folder / "state.aws.eu-west-2.json"
    copied.write_bytes(path.read_bytes())
    copied.chmod(0o600)
    told = call(capsys, "state", "check", folder).out.splitlines()
    assert len(told) == 3 and "its mode is 0644" in told[0]
    assert told[1].startswith(f"{lock}, line 1") and "'statefs state unlock'" in told[1]
    assert told[2] == f"{copied} holds the state of another target, aws, eu-west-1"
    assert call(capsys, "state", "repair", folder).exit_code == 29
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not copied.exists()
    assert call(capsys, "state", "unlock", folder, NAME).exit_code == 0
    assert call(capsys, "state", "check", folder).exit_code == 0


def test_a_document_may_be_called_as_a_state_is(tmp_path: Path, capsys: Capture) -> None:
    """What is in it tells that it is none."""
    with JsonStore(tmp_path / "app") as store:
        store.set("state.aws.eu", "a", 1)
    listed = json.loads(call(capsys, "state", "list", tmp_path / "app", "--json").out)
    assert [each["name"] for each in listed["documents"]] == ["state.aws.eu"]


def test_states_are_not_served_to_others_without_a_token(tmp_path: Path, capsys: Capture) -> None:
    """Nor with one that others may read, or that is easily guessed."""
    folder, token = tmp_path / "states", tmp_path / "token"
    done = call(capsys, "serve-http", folder, "--host", "0.0.0.0", "--port", "0")
    assert done.exit_code == 2 and "--token-file" in done.err
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o644)
    done = call(capsys, "serve-http", folder, "--token-file", token, "--port", "0")
    assert done.exit_code == 2 and "chmod 600" in done.err
    token.chmod(0o600)
    for text in ("short", "tököntököntökön", "a token\nof lines 1234"):
        token.write_text(text)
        done = call(capsys, "serve-http", folder, "--token-file", token, "--port", "0")
        assert done.exit_code == 2 and "16 ASCII characters" in done.err
    assert not folder.exists()


def test_a_server_says_where_it_serves_and_ends_when_it_is_told(tmp_path: Path) -> None:
    """It makes its token, and a second one on its port is refused in one line."""
    token = tmp_path / "token"
    command = [sys.executable, "-m", "statefs", "serve-http", str(tmp_path / "states")]
    with subprocess.Popen(
        [*command, "--port", "0", "--token-file", str(token)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = line.rpartition("/states/NAME")[0].rpartition(":")[2]
        assert line == f"{tmp_path}/states is served at http://127.0.0.1:{port}/states/NAME\n"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) > 40
        second = subprocess.run([*command, "--port", port], capture_output=True, text=True)
        assert second.returncode == 1
        assert second.stderr == (f"statefs: error: 127.0.0.1 port {port}: Address already in use\n")
        process.terminate()
        assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
    assert os.listdir(tmp_path / "states") == []
