from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statefs.control.messages import error_body
from statefs.daemon import supervisor as module
from statefs.daemon.handover import (
    Channel,
    Failed,
    Opened,
    Ready,
    Serve,
    Working,
)
from statefs.daemon.supervisor import Supervisor
from statefs.errors import (
    AlreadyMounted,
    FuseUnavailable,
    NewerStore,
    NotMounted,
    StaleMount,
    StatefsError,
)
from statefs.layout import StoreLayout
from statefs.locking import read_owner
from statefs.mounts import MountInfo
from tests.unit.supervisor_stage import (
    INIT,
    RESEND,
    SINCE,
    Stage,
    a_sudden_death,
    a_whole_life,
    begun,
    ended,
    served,
)


def test_a_mount_is_served_and_unmounted(stage: Stage) -> None:
    """The lock is the supervisor's while it lasts, and free after it."""

    def life(channel: Channel) -> None:
        begin = begun(channel)
        serve, _ = served(channel)
        owner = read_owner(stage.layout)
        assert owner is not None and owner.alive and owner.pid == begin.supervisor_pid
        assert serve == Serve(init_request=INIT)
        ended(channel)

    stage.lives.append(life)
    stage.run()
    assert (stage.done, stage.told) == (["mounted", "unmounted"], ["usable"])
    assert read_owner(stage.layout) is None


def test_whoever_mounts_is_told_how_far_a_worker_is(stage: Stage) -> None:
    """While it opens the store, and before programs are answered."""

    def life(channel: Channel) -> None:
        channel.receive()
        channel.send(Working(what="opening", done=1, total=None, unit="seconds"))
        channel.send(Opened())
        channel.receive()
        channel.send(Working(what="bringing in", done=2, total=3, unit="bytes"))
        channel.send(Ready(SINCE, b"reply"))
        ended(channel)

    stage.lives.append(life)
    stage.run()
    assert stage.told == ["opening 1 seconds", "bringing in 2 bytes", "usable"]


def test_a_dead_worker_is_followed_by_another(stage: Stage) -> None:
    """It is given the connection, what the kernel was told, and the page; the kernel asks again."""

    def follow(channel: Channel) -> None:
        begin = begun(channel)
        assert (begin.restarts, begin.since) == (1, SINCE)
        serve, fd = served(channel)
        assert serve == Serve(init_request=INIT, init_reply=b"reply")
        os.write(fd, b"from the second")
        ended(channel)

    stage.lives += [a_sudden_death, follow]
    stage.run()
    assert stage.kernel.recv(4096) == RESEND
    assert stage.kernel.recv(4096) == b"from the second"
    assert stage.done == ["mounted", "unmounted"]


def test_a_worker_that_says_what_nobody_understands_is_followed(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """One of another version may: it ends neither the supervisor nor the mount."""

    def babble(channel: Channel) -> None:
        begun(channel)
        served(channel)
        os.write(channel.fileno(), b'{"type":"Joke"}')
        channel.receive()

    stage.lives += [babble, a_whole_life]
    stage.run()
    assert "what this version does not understand" in caplog.text
    assert stage.done == ["mounted", "unmounted"]


def test_the_page_of_changes_outlives_a_worker(stage: Stage) -> None:
    """What one notes, the next finds."""

    def note(channel: Channel) -> None:
        received = channel.receive()
        assert received is not None
        os.pwrite(received[1][1], b"noted", 0)
        channel.send(Opened())
        served(channel)
        os._exit(1)

    def find(channel: Channel) -> None:
        received = channel.receive()
        assert received is not None and os.pread(received[1][1], 5, 0) == b"noted"
        served(channel)
        ended(channel)

    stage.lives += [note, find]
    stage.run()


def test_a_successor_that_dies_at_once_is_followed_too(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether before or after it could say what is wrong."""

    def fail(channel: Channel) -> None:
        begun(channel)
        channel.send(Failed(error_body(StatefsError("a bad day"))))

    stage.lives += [a_sudden_death, fail, lambda _: os._exit(9), a_whole_life]
    stage.run()
    assert "a bad day" in caplog.text and "exit code 9" in caplog.text
    assert stage.done == ["mounted", "unmounted"]


def test_it_gives_up_loudly(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After so many deaths in a row: the mount stays and answers with errors, the lock is free."""
    monkeypatch.setattr(module, "FAILURES_MAX", 2)
    stage.lives += [a_sudden_death, a_sudden_death, a_sudden_death]
    with pytest.raises(FuseUnavailable, match=r"3 workers in a row.*--repair"):
        stage.run()
    assert stage.done == ["mounted"]
    assert read_owner(stage.layout) is None
    assert "3 workers in a row" in caplog.text
    while stage.kernel.recv(4096):
        pass  # the connection is closed: a kernel would answer programs with errors


def test_a_successor_that_is_late_is_not_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs wait for a bounded time."""
    monkeypatch.setattr(module, "TAKEOVER_SECONDS", 0.1)
    stage.lives += [a_sudden_death, lambda _: signal.pause()]
    with pytest.raises(FuseUnavailable, match="no worker was ready within"):
        stage.run()


@contextmanager
def no_resending(monkeypatch: pytest.MonkeyPatch, waiting: str) -> Iterator[None]:
    """Let the kernel be an older one, with so many requests that wait for an answer."""
    folder = module.OOM_FILE.with_name("connection")
    folder.mkdir()
    (folder / "waiting").write_text(waiting)
    monkeypatch.setattr(module, "ask_again", lambda _fd: False)
    monkeypatch.setattr(Supervisor, "_control_folder", lambda _self: folder)
    yield
    assert (folder / "abort").exists() == (waiting != "0\n")


def test_an_older_kernel_answers_with_errors_what_was_under_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot ask again, and programs must not wait for ever."""
    stage.lives += [a_sudden_death]
    with (
        no_resending(monkeypatch, "1\n"),
        pytest.raises(FuseUnavailable, match=r"before Linux 6\.9"),
    ):
        stage.run()


def test_an_older_kernel_goes_on_when_nothing_was_under_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waited for the dead worker."""
    stage.lives += [a_sudden_death, a_whole_life]
    with no_resending(monkeypatch, "0\n"):
        stage.run()


def test_a_mount_that_ends_with_its_worker_is_not_served_again(stage: Stage) -> None:
    """Somebody unmounts it and kills the worker."""

    def life(channel: Channel) -> None:
        begun(channel)
        served(channel)
        stage.kernel.close()

    ends = threading.Event()
    stage.lives.append(life)

    def connected(_fd: int) -> bool:
        ends.set()
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "is_connected", connected)
        stage.run()
    assert ends.is_set() and stage.done == ["mounted", "unmounted"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_for_the_worker(stage: Stage, number: signal.Signals) -> None:
    """It knows how to end, and how to save."""

    def obey(channel: Channel) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        begin = begun(channel)
        served(channel)
        wait_for_handlers(begin.supervisor_pid, number)
        os.kill(begin.supervisor_pid, number)
        assert signal.sigwait({number}) == number
        ended(channel)

    stage.lives.append(obey)
    stage.run()
    assert stage.done == ["mounted", "unmounted"]


def test_a_signal_that_comes_between_two_workers_is_for_the_second(stage: Stage) -> None:
    """Once it serves: before that it could not end the mount."""

    def die_and_call(channel: Channel) -> None:
        begin = begun(channel)
        served(channel)
        wait_for_handlers(begin.supervisor_pid, signal.SIGTERM)
        os._exit(1)

    def obey(channel: Channel) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        begin = begun(channel)
        os.kill(begin.supervisor_pid, signal.SIGTERM)
        served(channel)
        assert signal.sigwait({signal.SIGTERM}) == signal.SIGTERM
        ended(channel)

    stage.lives += [die_and_call, obey]
    stage.run()


def wait_for_handlers(pid: int, number: int) -> None:
    """Return when a process catches a signal."""
    while True:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16)
        if caught >> (number - 1) & 1:
            return


def test_a_store_that_cannot_be_opened_is_not_mounted(stage: Stage) -> None:
    """The worker's reason is the supervisor's, with its class."""

    def fail(channel: Channel) -> None:
        assert channel.receive() is not None
        channel.send(Failed(error_body(NewerStore("made by statefs 9"))))

    stage.lives.append(fail)
    with pytest.raises(NewerStore, match="made by statefs 9"):
        stage.run()
    assert (stage.done, stage.told) == ([], [])
    assert read_owner(stage.layout) is None


def test_a_worker_that_dies_before_the_mount_is_usable_is_not_followed(stage: Stage) -> None:
    """Whoever has asked for the mount learns it; nothing stays mounted."""

    def die(channel: Channel) -> None:
        begun(channel)
        channel.receive()
        os._exit(9)

    stage.lives.append(die)
    with pytest.raises(StatefsError, match=r"before the mount was usable \(exit code 9\)"):
        stage.run()
    assert stage.done == ["mounted", "unmounted"]


def test_the_supervisor_shuns_the_oom_killer(stage: Stage) -> None:
    """Its worker is told to be as likely a victim as anybody."""

    def life(channel: Channel) -> None:
        assert begun(channel).oom_score_adj == 0
        assert module.OOM_FILE.read_text() == "-900"
        served(channel)
        ended(channel)

    stage.lives.append(life)
    stage.run()
    assert stage.done == ["mounted", "unmounted"]


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    """What would be a mount point."""
    return tmp_path / "state"


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """The paths of a store that need not be there."""
    return StoreLayout(tmp_path / "state.store")


@pytest.mark.parametrize(
    ("is_stale", "kind", "match"),
    [(True, StaleMount, "--repair"), (False, AlreadyMounted, "shows /srv/x.store")],
)
def test_a_mount_point_that_is_mounted_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    mount_point: Path,
    layout: StoreLayout,
    is_stale: bool,
    kind: type[StatefsError],
    match: str,
) -> None:
    """A dead mount and a living one have different cures."""
    mount = MountInfo(mount_point, "/srv/x.store", "fuse.statefs")
    monkeypatch.setattr(module, "find_mount", lambda _state: mount)
    monkeypatch.setattr(module, "is_stale", lambda _mount: is_stale)
    with pytest.raises(kind, match=match):
        module._refuse_mounted(mount_point)


@pytest.mark.parametrize(
    ("now", "is_unmounted"),
    [((0, 40), True), ((0, 41), False), (None, False)],
    ids=["ours", "another's", "gone"],
)
def test_only_our_own_mount_is_cleared_away_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
    mount_point: Path,
    now: tuple[int, int] | None,
    is_unmounted: bool,
) -> None:
    """Somebody may have unmounted ours and mounted another in its place."""
    ours = MountInfo(mount_point, "/s", "fuse.statefs", device=(0, 40))
    there = None if now is None else MountInfo(mount_point, "/s", "fuse.statefs", device=now)
    unmounted: list[Path] = []

    def unmount(mount_point: Path, *, is_dead: bool) -> None:
        assert is_dead
        unmounted.append(mount_point)
        raise NotMounted("somebody was faster")

    monkeypatch.setattr(module, "find_mount", lambda _state: there)
    monkeypatch.setattr(module, "unmount", unmount)
    module._unmount_leftover(ours)
    assert unmounted == ([mount_point] if is_unmounted else [])


def test_an_end_that_is_closed_with_something_unread_is_a_broken_pipe() -> None:
    """As any other closed end: a worker may be killed before it has read what it was sent."""
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    channel.send(Opened())
    end.close()
    with pytest.raises(BrokenPipeError):
        channel.send(Opened())
    channel.close()
