"""Terraform or OpenTofu: states that `statefs serve-http` serves, and one that lies in a mount."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.apps.terraform_project import (
    RESOURCES,
    Pipes,
    Project,
    Server,
    http_backend,
    needs_terraform,
    steady_port,
)
from tests.harness.mounted_state import MountedState

pytestmark = needs_terraform
ROUNDS: Final = 6
PARTS: Final = 12


@pytest.fixture
def server(app_state: MountedState, disk: Path) -> Server:
    """A server of a folder in a mounted state."""
    return Server(app_state.files / "terraform", disk / "token", disk / "server.log")


@pytest.fixture
def pipes(disk: Path) -> Pipes:
    """Pipes that an apply waits at."""
    made = Pipes(disk)
    made.make()
    return made


def checkout(folder: Path, server: Server, url: str, *parts: str) -> Project:
    """Return a configuration whose state is at a server."""
    project = Project(folder, server.token())
    project.write(http_backend(url, "shop"), *parts)
    return project


def served_state(server: Server) -> dict[str, Any]:
    """Return the state in the folder."""
    found: dict[str, Any] = json.loads((server.folder / "shop.tfstate").read_text())
    return found


def inputs_of(state: dict[str, Any]) -> list[str]:
    """Return what the parts of a release have, in their order."""
    [parts] = [each for each in state["resources"] if each["name"] == "part"]
    return [each["attributes"]["input"]["value"] for each in parts["instances"]]


def release_of(state: dict[str, Any]) -> set[str]:
    """Return the releases of the parts of a state, which has all of them."""
    inputs = inputs_of(state)
    assert [each.rpartition("-")[2] for each in inputs] == [str(n) for n in range(PARTS)]
    return {each.rpartition("-")[0] for each in inputs}


def versions_of(state: MountedState, path: str) -> Iterator[dict[str, Any]]:
    """Return the content of each version that `statefs log` shows, the oldest first."""
    for version in json.loads(state.command("log", state.state, path, "--json"))["versions"]:
        text = state.command("cat", state.state, version["snapshot"] or "current", path)
        yield json.loads(text)


def test_init_plan_apply_and_every_version_in_the_log(
    app_state: MountedState, server: Server, disk: Path
) -> None:
    """Four releases and a destruction: each version is there, with the release it had."""
    with server.serving() as (url, _):
        project = checkout(disk / "infra", server, url, RESOURCES)
        plan = project.run("plan", "-var=release=one", "-detailed-exitcode")
        assert plan.returncode == 2, plan.stderr
        for release in ("one", "two", "three"):
            done = project.apply(release)
            assert done.returncode == 0, done.stderr
            assert release_of(served_state(server)) == {release}
        same = project.run("plan", "-var=release=three", "-detailed-exitcode")
        assert same.returncode == 0, same.stdout
        shown = json.loads(project.run("output", "-json").stdout)
        assert shown["parts"]["value"] == [f"three-{n}" for n in range(PARTS)]
        assert project.run("destroy", "-auto-approve", "-var=release=x").returncode == 0
        pulled = json.loads(project.run("state pull").stdout)
        assert pulled == served_state(server) and pulled["resources"] == []
    versions = list(versions_of(app_state, "files/terraform/shop.tfstate"))
    assert [each["serial"] for each in versions] == list(range(1, pulled["serial"] + 1))
    assert len({each["lineage"] for each in versions}) == 1
    complete = [release_of(each) for each in versions if each["outputs"]]
    assert [each for each in complete if len(each) == 1][:1] == [{"one"}]
    assert {frozenset(each) for each in complete} >= {
        frozenset({release}) for release in ("one", "two", "three")
    }
    assert not (server.folder / "backups").exists()
    assert server.token() not in server.log.read_text()


def test_of_two_applies_at_a_time_one_is_refused(server: Server, disk: Path, pipes: Pipes) -> None:
    """It is told by whom; nothing of the first one is lost, and the second one can come after."""
    with server.serving() as (url, _):
        first = checkout(disk / "first", server, url, RESOURCES, pipes.configuration())
        second = checkout(disk / "second", server, url, RESOURCES)
        with first.applying("one") as process:
            pipes.wait_until_begun()
            refused = second.apply("two", "-lock-timeout=0s")
            assert refused.returncode == 1
            assert "Error acquiring the state lock" in refused.stderr
            assert "OperationTypeApply" in refused.stderr
            unlocked = second.apply("two", "-lock=false")
            assert unlocked.returncode == 1 and "423" in unlocked.stderr
            pipes.let_go()
            assert process.wait(60) == 0, (first.folder / "apply.log").read_text()
        assert release_of(served_state(server)) == {"one"}
        assert second.apply("two").returncode == 0
        assert release_of(served_state(server)) == {"two"}


def test_the_lock_of_a_killed_apply_stays_until_it_is_forced(
    server: Server, disk: Path, pipes: Pipes
) -> None:
    """Also over a restart of the server; `terraform force-unlock` takes it away."""
    with server.serving() as (url, _):
        project = checkout(disk / "infra", server, url, RESOURCES, pipes.configuration())
        with project.applying("one") as process:
            pipes.wait_until_begun()
            process.kill()
            process.wait(60)
    with server.serving() as (url, _):
        project = checkout(disk / "again", server, url, RESOURCES)
        refused = project.apply("two", "-lock-timeout=0s")
        found = re.search(r"already locked:\s+ID=(\S+)", refused.stderr)
        assert refused.returncode == 1 and found, refused.stderr
        forced = project.run("force-unlock", "-force", found[1])
        assert forced.returncode == 0, forced.stderr
        done = project.apply("two")
        assert done.returncode == 0, done.stderr
        assert release_of(served_state(server)) == {"two"}
    assert found[1] in (server.folder / ".audit.log").read_text()


def test_a_wrong_token_is_refused(server: Server, disk: Path) -> None:
    """As is none; the program says which."""
    with server.serving() as (url, _):
        project = checkout(disk / "infra", server, url, RESOURCES)
        for token, said in (("", "requires auth"), ("another", "invalid auth")):
            project.token = token
            refused = project.apply("one")
            assert refused.returncode == 1 and said in refused.stderr
    assert os.listdir(server.folder) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_local_state_in_a_mount_outlives_kills(app_state: MountedState) -> None:
    """The program or the worker is killed at random: the state is whole, and every past one there.

    A killed worker is not noticed by the program. A killed program leaves the state of before or of
    after; it writes its file in place, so that it may be killed within that, on any filesystem:
    then the last snapshot has it.
    """
    app_state.expected_log = r"the worker \d+ died \(killed by SIGKILL\)"
    chance = random.Random(5)
    project = Project(app_state.files / "infra")
    project.write('backend "local" {}', RESOURCES)
    path = project.folder / "terraform.tfstate"
    begun = time.monotonic()
    assert project.apply("r0").returncode == 0
    usual_seconds = time.monotonic() - begun
    past = {app_state.save(): path.read_bytes()}
    for number in range(1, ROUNDS + 1):
        release, victim = f"r{number}", ("program", "worker")[number % 2]
        with project.applying(release) as process:
            time.sleep(chance.random() * usual_seconds)  # which moment is hit is up to chance
            pid = process.pid if victim == "program" else app_state.worker_pid()
            if process.poll() is None or victim == "worker":
                os.kill(pid, signal.SIGKILL)
            code = process.wait(60)
        log = (project.folder / "apply.log").read_text()
        assert victim == "program" or code == 0, log
        data = path.read_bytes()
        if code != 0 and not is_whole(data):
            name = list(past)[-1]
            app_state.command("restore", app_state.state, name, "files/infra/terraform.tfstate")
            data = path.read_bytes()
            assert data == past[name]
        releases = release_of(json.loads(data))
        assert releases <= {f"r{n}" for n in range(number + 1)}
        if code == 0:
            assert releases == {release}
        past[app_state.save()] = data
    done = project.apply("last")
    assert done.returncode == 0, done.stderr
    assert release_of(json.loads(path.read_bytes())) == {"last"}
    for name, data in past.items():
        assert (app_state.snapshots / name / "files/infra/terraform.tfstate").read_bytes() == data
        release_of(json.loads(data))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_served_state_outlives_kills(app_state: MountedState, server: Server, disk: Path) -> None:
    """The program or the server is killed at random: the state is whole at each look.

    It is that of before, of after, or one between; the next apply goes on from it, after the lock
    of a killed one was taken away. Every version that was answered for is in the log.
    """
    chance, port = random.Random(6), steady_port()
    with server.serving(port) as (url, _):
        project = checkout(disk / "infra", server, url, RESOURCES)
        begun = time.monotonic()
        assert project.apply("r0").returncode == 0
        usual_seconds = time.monotonic() - begun
    for number in range(1, ROUNDS + 1):
        release, victim = f"r{number}", ("program", "server")[number % 2]
        with server.serving(port) as (_, serving), project.applying(release) as process:
            time.sleep(chance.random() * usual_seconds)  # which moment is hit is up to chance
            if victim == "program":
                process.kill()
                code = process.wait(60)
            else:
                serving.kill()
                serving.wait(60)
                with server.serving(port):
                    code = process.wait(60)
        releases = release_of(served_state(server))
        assert releases <= {f"r{n}" for n in range(number + 1)}
        assert code != 0 or releases == {release}
        with server.serving(port):
            assert project.run("force-unlock", "-force", "any").returncode == 0
        (project.folder / "errored.tfstate").unlink(missing_ok=True)
    with server.serving(port):
        done = project.apply("last")
        assert done.returncode == 0, done.stderr
    assert release_of(served_state(server)) == {"last"}
    versions = list(versions_of(app_state, "files/terraform/shop.tfstate"))
    assert [each["serial"] for each in versions] == list(range(1, len(versions) + 1))
    assert all(release_of(each) for each in versions if each["outputs"])


def is_whole(data: bytes) -> bool:
    """Return whether a program's file was not cut by its end."""
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
