"""The worker that is kept loaded, and going over to another version."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from statefs.daemon import background, child, spare
from statefs.daemon import supervisor as module
from statefs.daemon.handover import (
    Channel,
    Loaded,
    Refused,
    Upgrade,
)
from statefs.daemon.spawning import start
from statefs.daemon.succession import Succession
from statefs.errors import StatefsError
from statefs.layout import StoreLayout
from statefs.locking import StoreLock, read_owner
from statefs.mounts import MountInfo, MountOptions
from tests.unit.supervisor_stage import (
    INIT,
    RESEND,
    SINCE,
    Life,
    Stage,
    a_whole_life,
    begun,
    ended,
    served,
)


def loaded(channel: Channel, basis: str = "format 1") -> None:
    """Say that the worker could serve, and wait to be told to."""
    channel.send(Loaded("9.9", basis))


def asks_for_an_upgrade(channel: Channel) -> None:
    """Serve, and ask for another worker; it does not end by itself unless that is refused."""
    loaded(channel)
    begun(channel)
    served(channel)
    channel.send(Upgrade())
    answer = channel.receive()
    assert answer is not None and isinstance(answer[0], Refused)
    ended(channel)


def waits_for_ever(channel: Channel) -> None:
    """Say nothing, and go when nobody is there any more."""
    channel.receive()


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Succession]:
    """What the supervisor would leave to its next version; it stays what it is."""
    left: list[Succession] = []
    monkeypatch.setattr(module, "succeed", left.append)
    return left


def wait_for(marker: Path) -> None:
    """Return when a file is there."""
    while not marker.exists():
        time.sleep(0.001)


def test_a_worker_waits_for_the_next_death(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded before, while the first one serves."""
    monkeypatch.setattr(module, "SPARE_SECONDS", 0.0)
    marker = stage.layout.root / "loaded"

    def die_later(channel: Channel) -> None:
        begun(channel)
        served(channel)
        wait_for(marker)
        os.kill(os.getpid(), signal.SIGKILL)

    def wait(channel: Channel) -> None:
        loaded(channel)
        marker.touch()
        a_whole_life(channel)

    stage.lives += [die_later, wait, wait]
    stage.run()
    assert stage.done == ["mounted", "unmounted"]


def test_a_worker_that_dies_while_it_waits_is_no_harm(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and another one is tried after a while."""
    monkeypatch.setattr(module, "SPARE_SECONDS", 0.0)
    monkeypatch.setattr(spare, "RETRY_SECONDS", 0.0)
    marker = stage.layout.root / "second"

    def end_later(channel: Channel) -> None:
        begun(channel)
        served(channel)
        wait_for(marker)
        ended(channel)

    def second(_: Channel) -> None:
        marker.touch()
        signal.pause()

    monkeypatch.setattr(child, "END_SECONDS", 0.1)  # it does not see that its channel is closed
    stage.lives += [end_later, lambda _: os._exit(7), second]
    stage.run()
    assert "kept ready ended (exit code 7)" in caplog.text
    assert stage.done == ["mounted", "unmounted"]


def test_an_upgrade_kills_the_worker_when_another_is_loaded(
    stage: Stage, executed: list[Succession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one serves, and then the supervisor goes over, too, with all it needs."""
    marker = stage.layout.root / "executed"

    def succeed(left: Succession) -> None:
        executed.append(left)
        marker.touch()

    monkeypatch.setattr(module, "succeed", succeed)
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.05)

    def follow(channel: Channel) -> None:
        loaded(channel)
        assert begun(channel).restarts == 1
        served(channel)
        wait_for(marker)
        ended(channel)

    stage.lives += [asks_for_an_upgrade, follow]
    stage.run()
    (left,) = executed
    assert (left.version, left.basis, left.since) == ("9.9", "format 1", SINCE)
    assert (left.init_request, left.init_reply) == (INIT, b"reply")
    assert stage.kernel.recv(4096) == RESEND


def dies_when_it_is_to_serve(channel: Channel) -> None:
    """Die of the first thing that it is told."""
    begun(channel)
    os._exit(7)


def dies_when_it_serves(channel: Channel) -> None:
    """Serve, and die at once."""
    begun(channel)
    served(channel)
    os._exit(7)


@pytest.mark.parametrize("new", [dies_when_it_is_to_serve, dies_when_it_serves, waits_for_ever])
def test_an_upgrade_that_fails_leaves_the_mount_to_a_worker_of_the_old_version(
    new: Life,
    stage: Stage,
    executed: list[Succession],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that was loaded before the new version was installed."""
    monkeypatch.setattr(module, "SPARE_SECONDS", 0.0)
    monkeypatch.setattr(module, "FALLBACK_SECONDS", 0.1)
    marker = stage.layout.root / "loaded"

    def first(channel: Channel) -> None:
        loaded(channel)
        begun(channel)
        served(channel)
        wait_for(marker)
        channel.send(Upgrade())
        channel.receive()

    def kept(channel: Channel) -> None:
        loaded(channel)
        marker.touch()
        assert begun(channel).restarts == 2
        served(channel)
        ended(channel)

    def loaded_new(channel: Channel) -> None:
        channel.send(Loaded("9.9.1", "format 1"))
        new(channel)

    stage.lives += [first, kept, loaded_new, waits_for_ever]
    stage.run()
    assert "what is installed cannot serve: the old version goes on" in caplog.text
    assert (executed, stage.done) == ([], ["mounted", "unmounted"])


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (lambda channel: loaded(channel, "format 2"), r"9\.9 \(format 2\) cannot go on"),
        (lambda _: os._exit(5), "exit code 5"),
        (waits_for_ever, "not loaded within 0 s"),
    ],
)
def test_an_upgrade_is_refused_before_anything_is_changed(
    new: Life,
    why: str,
    stage: Stage,
    executed: list[Succession],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By what the new version is, or when it does not come up; the old one serves on."""
    if "within" in why:
        monkeypatch.setattr(spare, "LOADING_SECONDS", 0.1)
    stage.lives += [asks_for_an_upgrade, new]
    stage.run()
    assert re.search(why, caplog.text)
    assert (executed, stage.done) == ([], ["mounted", "unmounted"])


def test_a_mount_that_a_command_needs_is_not_upgraded(
    stage: Stage, executed: list[Succession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leash would be lost: it is refused at once, and the command goes on."""
    monkeypatch.setattr(stage.supervisor, "_is_private", True)
    stage.lives.append(asks_for_an_upgrade)
    stage.run()
    assert (executed, stage.done) == ([], ["mounted", "unmounted"])


def test_a_daemon_that_does_not_close_its_store_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command that has mounted for itself says so in one line, and where to look."""
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.01)
    process = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(StatefsError, match=rf"daemon {process.pid} has not closed .*\.log"):
            background._wait_until_closed(process, StoreLayout(tmp_path))
    finally:
        process.kill()
        process.wait()


def test_the_next_version_of_a_supervisor_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lock, the connection, the page and the worker that an earlier one has left.

    It knows, too, how the log is written and which dead workers have not gone yet.
    """
    forms: list[str] = []
    monkeypatch.setattr(module, "choose_format", forms.append)
    monkeypatch.setattr(module, "spawn_worker", stage.spawn)
    lingering = subprocess.Popen(["sleep", "60"])
    lock = StoreLock(stage.layout, role="daemon")
    lock.acquire()
    monkeypatch.setattr(module, "prepare_process", lambda: None)  # of the tests, here
    mount = MountInfo(stage.layout.root, "", "fuse.statefs", device=(0, 1 << 30))
    monkeypatch.setattr(module, "find_mount", lambda _state: mount)

    def follow(channel: Channel) -> None:
        assert begun(channel).dead == (lingering.pid,)
        served(channel)
        ended(channel)

    stage.lives += [lambda _: os._exit(7), follow]
    pid, ours = start(stage.spawn)
    left = Succession(
        state=str(stage.layout.root.with_suffix("")), store=str(stage.layout.root),
        options=MountOptions().text(), since=SINCE, restarts=4, oom_score_adj=0,
        init_request=INIT, init_reply=b"reply", lock_fd=lock.fileno(),
        page_fd=os.memfd_create("page"), fuse_fd=stage.device.detach(), worker_pid=pid,
        worker_fd=ours.detach(), version="1", basis="format 1", log_format="json",
        dead=(lingering.pid,),
    )  # fmt: skip
    document = os.memfd_create("document")
    os.write(document, msgspec.json.encode(left))
    try:
        module.resume(document)
    finally:
        lingering.kill()
        lingering.wait()
    assert forms == ["json", "text"]  # what it was told, then what the next worker says
    assert stage.done == ["unmounted"]
    assert read_owner(stage.layout) is None
    for descriptor in (document, *left.descriptors):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
