from __future__ import annotations

import json
import os
import re
from pathlib import Path

from statefs.state import DeployState, Target
from statefs.state.deploy_checking import DEPLOYS, repair_states
from statefs.state.snapshots import mounted_folder
from tests.conftest import Cli
from tests.harness.http_states import ask, serving, terraform_state

TIME = r"\d{8}T\d{6}\.\d{6}Z"


def labels(state: Path) -> list[str]:
    """Return the labels of snapshots, without their times."""
    names = (re.sub(rf"-{TIME}$", "", each) for each in os.listdir(state / "snapshots"))
    return sorted(each for each in names if "-serial-" in each)


def test_an_operation_takes_a_snapshot_of_what_it_changes(state: Path) -> None:
    """One, in place of a copy; a repair names it."""
    folder = state / "current" / "files" / "deploy"
    deploys = DeployState(folder, "shop", Target("aws", "eu"))
    deploys.record("shop.bucket.a", "1")
    with deploys.lock("deploy"):
        for number in range(5):
            deploys.record(f"shop.queue.{number}", "q")
    assert labels(state) == ["state.aws.eu-serial-1"]
    assert not (folder / "backups").exists()
    path = folder / "state.aws.eu.json"
    path.write_text("{")
    [repair] = repair_states(DEPLOYS, folder)
    assert repair.aside is not None and repair.source is None and not path.exists()
    [good] = repair.snapshots
    assert list(json.loads(good.read_text())["primitives"]) == ["shop.bucket.a"]


def test_every_posted_version_is_in_the_log(state: Path, statefs_cli: Cli) -> None:
    """Also of a state whose name is long, or was deleted and made again."""
    folder = state / "current" / "files" / "terraform"
    name = "x" * 200
    with serving(folder) as server:
        for serial in (1, 2, 3):
            assert ask(server, "POST", body=terraform_state(serial)).status == 200
            assert ask(server, "POST", body=terraform_state(serial)).status == 200
        assert ask(server, "DELETE").status == 200
        assert ask(server, "POST", body=terraform_state(1, "another")).status == 200
        for serial in (1, 2):
            body = terraform_state(serial)
            assert ask(server, "POST", f"/states/{name}", body).status == 200
    assert labels(state) == [
        "shop-serial-1",
        "shop-serial-2",
        "shop-serial-3",
        f"{'x' * 150}-serial-1",
    ]
    mounted = mounted_folder(folder)
    assert mounted is not None
    past = [json.loads(each.read_text())["serial"] for each in mounted.past_of("shop.tfstate")]
    assert past == [1, 3, 2, 1]  # the newest snapshot is of the other state's change
    assert versions(state, statefs_cli) == [1, 2, 3, 1]


def test_an_older_version_goes_back_to_its_place(state: Path, statefs_cli: Cli) -> None:
    """`statefs restore` brings it, and Terraform goes on from there."""
    folder = state / "current" / "files" / "terraform"
    with serving(folder) as server:
        for serial in (1, 2, 3):
            assert ask(server, "POST", body=terraform_state(serial)).status == 200
        [label] = [each for each in os.listdir(state / "snapshots") if "serial-1-" in each]
        statefs_cli("restore", state, label, "files/terraform/shop.tfstate")
        assert ask(server, "GET").body == terraform_state(1)
        assert ask(server, "POST", body=terraform_state(2, resources=3)).status == 200
    assert versions(state, statefs_cli) == [1, 2, 3, 1, 2]


def versions(state: Path, statefs_cli: Cli) -> list[int]:
    """Return the serials of the versions that `statefs log` shows, the oldest first."""
    path = "files/terraform/shop.tfstate"
    shown = json.loads(statefs_cli("log", state, path, "--json").stdout)["versions"]
    there = [each["snapshot"] for each in shown if each["mode"] is not None]
    texts = [statefs_cli("cat", state, snapshot, path).stdout for snapshot in there]
    return [json.loads(text)["serial"] for text in texts]
