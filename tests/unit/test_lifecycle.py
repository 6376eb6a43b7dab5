from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import pytest
import trio

from statefs.control.client import ControlClient
from statefs.control.server import Call
from statefs.daemon import background, lifecycle
from statefs.daemon.adopt import CoveredFiles
from statefs.daemon.background import ReadyNotice, start_background
from statefs.daemon.handover import Begin, Channel, Ready, Working
from statefs.daemon.lifecycle import MountDaemon
from statefs.daemon.spawning import READY_VARIABLE
from statefs.errors import (
    MountBusy,
    NewerStore,
    NotMounted,
    StatefsError,
)
from statefs.fuse import session_loop
from statefs.fuse.handshake import Greeting, InitReply, read_init_request
from statefs.layout import StoreLayout
from statefs.locking import StoreLock
from statefs.maintenance.steps import Steps, drive
from statefs.mounts import MountOptions
from tests.unit.fake_kernel import FUSE_STATFS, FakeKernel

if TYPE_CHECKING:
    from statefs.fuse.operations import Operations

LONG_SECONDS = 20.0
"""A deadline that ends a test which hangs; nothing here takes a tenth of it."""


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """The paths of a store that is only a folder."""
    (tmp_path / "state.store").mkdir()
    return StoreLayout(tmp_path / "state.store")


# --- the background ---------------------------------------------------------------------------


def start_script(
    monkeypatch: pytest.MonkeyPatch,
    mount_point: Path,
    layout: StoreLayout,
    script: str,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Start a script in place of the daemon."""
    head = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from statefs.daemon.background import ReadyNotice\n"
        "from statefs.errors import *\n"
        "notice = ReadyNotice.from_environment()\n"
    )
    monkeypatch.setattr(background, "_DAEMON", (sys.executable, "-c", head + script))
    start_background(mount_point, layout.root, MountOptions(read_only=True), on_progress)


def test_starting_returns_when_the_daemon_is_ready(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """The daemon gets state, store and options, a session of its own, no input, and the log."""
    script = (
        "print(sys.argv[1:], os.getsid(0) == os.getpid(), sys.stdin.read() == '',"
        " 'STATEFS_READY_FD' in os.environ, flush=True)\n"
        "notice.succeed()\n"
    )
    start_script(monkeypatch, mount_point, layout, script)
    said = layout.log.read_text()
    assert said == f"{[str(mount_point), str(layout.root), 'ro']} True True False\n"
    assert layout.log.stat().st_mode & 0o777 == 0o600


def test_what_the_daemon_raises_is_raised_here(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """With its class, so that the exit code is right."""
    with pytest.raises(NewerStore, match="made by statefs 9"):
        start_script(
            monkeypatch, mount_point, layout, "notice.fail(NewerStore('made by statefs 9'))\n"
        )


@pytest.mark.parametrize(
    ("script", "how"),
    [("sys.exit(3)", "exit code 3"), ("os.kill(os.getpid(), signal.SIGKILL)", "by SIGKILL")],
)
def test_a_daemon_that_dies_is_told_with_its_log(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout, script: str, how: str
) -> None:
    """Before it could say why; the log may know."""
    with pytest.raises(StatefsError, match=rf"{how}.*statefs\.log"):
        start_script(monkeypatch, mount_point, layout, script)


def test_a_daemon_that_is_not_ready_in_time_is_ended(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """Nothing is left running that might mount later."""
    monkeypatch.setattr(background, "READY_SECONDS", 0.2)
    script = "Path(sys.argv[2], 'pid').write_text(str(os.getpid()))\nsignal.pause()\n"
    with pytest.raises(StatefsError, match="said nothing for"):
        start_script(monkeypatch, mount_point, layout, script)
    pid_file = layout.root / "pid"
    if pid_file.exists():  # it may have been ended before it came so far
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)


def test_a_daemon_that_says_how_far_it_is_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """However long it takes in all: what it says is passed on, and what comes last decides."""
    moments = itertools.count(0, 0.5)  # a look for each byte: 40 seconds for a line
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    script = (
        "from statefs.daemon.handover import Working\n"
        "for done in range(3):\n"
        "    notice.work(Working(what='at it', done=done, total=3, unit='files'))\n"
        "notice.succeed('done')\n"
    )
    told: list[dict[str, Any]] = []
    start_script(monkeypatch, mount_point, layout, script, told.append)
    assert told == [{"what": "at it", "done": n, "total": 3, "unit": "files"} for n in range(3)]


def test_a_large_log_is_set_aside(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """One older log is kept; a small log is continued."""
    monkeypatch.setattr(background, "LOG_BYTES_MAX", 10)
    layout.log.write_text("short\n")
    start_script(
        monkeypatch, mount_point, layout, "print('a longer line', flush=True)\nnotice.succeed()\n"
    )
    assert layout.log.read_text() == "short\na longer line\n"
    start_script(monkeypatch, mount_point, layout, "print('new', flush=True)\nnotice.succeed()\n")
    assert layout.log.read_text() == "new\n"
    assert (layout.root / "statefs.log.1").read_text() == "short\na longer line\n"


def test_a_notice_that_nobody_asked_for_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`statefs mount --foreground` from a terminal."""
    monkeypatch.delenv(READY_VARIABLE, raising=False)
    notice = ReadyNotice.from_environment()
    notice.succeed()
    notice.fail(StatefsError("late"))


def test_only_the_first_notice_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that was usable and breaks later is no failed start; the pipe is closed by then."""
    reader, writer = os.pipe()
    monkeypatch.setenv(READY_VARIABLE, str(writer))
    notice = ReadyNotice.from_environment()
    assert not os.get_inheritable(writer) and READY_VARIABLE not in os.environ
    notice.succeed()
    notice.fail(StatefsError("late"))
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b"{}\n"


def test_a_starter_that_has_gone_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its terminal was closed while the mount came up."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv(READY_VARIABLE, str(writer))
    ReadyNotice.from_environment().succeed()


# --- the tasks of a mount ---------------------------------------------------------------------


class FakeService:
    """An engine that answers and waits."""

    def __init__(self) -> None:
        self.operations = cast("Operations", pyfuse3.Operations())
        self.background_failure: Exception | None = None
        self.was_cancelled = False
        self.saves_on_request = 0
        self.requests_answered = 0
        self.was_told_served_after: int | None = None

    def follow(self, _fuse_fd: int, _dead: tuple[int, ...]) -> None:
        """Never called: nobody served the mount before."""
        pytest.fail("there is nobody to follow")

    def answered(self) -> None:
        """Count the turns of the session."""
        self.requests_answered += 1

    async def run(self) -> None:
        """Wait to be cancelled, or fail."""
        if self.background_failure is not None:
            raise self.background_failure
        try:
            await trio.sleep_forever()
        finally:
            self.was_cancelled = True

    async def handle(self, op: str, _args: dict[str, Any], _call: Call) -> Any:
        """Answer with the name of the operation."""
        return {"op": op, "mounted": False}

    async def run_alone(self, operation: Steps[Any]) -> Any:
        """Run an operation; nothing else runs."""
        return await drive(operation, trio.to_thread.run_sync)

    def size(self) -> int:
        """Return that nothing has been brought in yet."""
        return 0

    def log_format(self) -> str:
        """Return that the log is for people."""
        return "text"

    def tell_served(self, restarts: int) -> None:
        """Note that it was told that programs are answered."""
        self.was_told_served_after = restarts

    async def save_on_request(self) -> None:
        """Note that a signal asked for a snapshot."""
        self.saves_on_request += 1

    def close(self, *, clean: bool) -> None:
        """Nothing to close."""


SUPERVISOR_PID = 4711


@asynccontextmanager
async def running(
    mount_point: Path, layout: StoreLayout, service: FakeService
) -> AsyncIterator[FakeKernel]:
    """Run the tasks of a mount on a fake kernel until they end by themselves."""
    kernel = FakeKernel()
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = Channel(ours)
    greeting = Greeting(read_init_request(kernel.device.fileno()))
    begin = Begin(state="", store="", options="", supervisor_pid=SUPERVISOR_PID, oom_score_adj=0)
    daemon = MountDaemon(mount_point, layout, MountOptions(), service, Channel(end), begin)
    try:
        with trio.fail_after(LONG_SECONDS), StoreLock(layout, "daemon", mount_point):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.run, kernel.device.fileno(), greeting)
                told = await kernel.handshake()
                await trio.lowlevel.wait_readable(supervisor.fileno())
                received = supervisor.receive()
                assert received is not None and isinstance(received[0], Ready)
                assert InitReply.unpack(received[0].init_reply) == told
                yield kernel
    finally:
        kernel.close()
        supervisor.close()
        end.close()


@pytest.fixture(autouse=True)
def calls_are_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes of calls on the mount talk to this loop, for which they need its descriptors."""
    monkeypatch.setattr(lifecycle, "call_outside", lambda call, _keep=(): call())


def unmount_by_stopping(*_: object, **__: object) -> None:
    """Stand in for unmount(): the kernel would end the session."""
    trio.from_thread.run_sync(session_loop.stop)


def ask(layout: StoreLayout, op: str) -> Any:
    """Ask the daemon over its socket."""
    with ControlClient(layout) as control:
        return control.call(op, {})


async def test_a_mount_ends_when_it_is_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """The client still gets its answer; background work is cancelled, the socket is gone."""
    monkeypatch.setattr(lifecycle, "unmount", unmount_by_stopping)
    service = FakeService()
    async with running(mount_point, layout, service):
        assert await trio.to_thread.run_sync(ask, layout, "stop") == {}
    assert service.was_cancelled and not layout.control_socket.exists()


class Upgrading(FakeService):
    """Tells when an operation has begun that runs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = trio.Event()

    async def run_alone(self, operation: Steps[Any]) -> Any:
        """Run an operation; nothing else runs."""
        self.has_begun.set()
        return await super().run_alone(operation)


async def test_a_mount_can_end_while_an_upgrade_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """Nobody will answer any more: who asked is told, and the process ends."""
    monkeypatch.setattr(lifecycle, "unmount", unmount_by_stopping)
    monkeypatch.setattr(Greeting, "can_ask_again", True)
    service = Upgrading()

    async def upgrade() -> None:
        with pytest.raises(NotMounted, match="has ended meanwhile"):
            await trio.to_thread.run_sync(ask, layout, "upgrade")

    async with running(mount_point, layout, service), trio.open_nursery() as nursery:
        nursery.start_soon(upgrade)
        await service.has_begun.wait()
        await trio.to_thread.run_sync(ask, layout, "stop")


async def test_the_status_knows_the_process(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """What the engine says is completed and, about the mount, corrected."""
    monkeypatch.setattr(lifecycle, "unmount", unmount_by_stopping)
    async with running(mount_point, layout, FakeService()):
        status = await trio.to_thread.run_sync(ask, layout, "status")
        await trio.to_thread.run_sync(ask, layout, "stop")
    assert status["op"] == "status" and status["mounted"] is True
    assert status["mount_point"] == str(mount_point) and status["durability"] == "close"
    assert (status["worker_pid"], status["supervisor_pid"]) == (os.getpid(), SUPERVISOR_PID)
    assert status["restarts"] == 0
    assert status["since"].endswith("Z")


async def test_a_busy_mount_refuses_to_stop(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """The client learns who uses it, and the mount goes on."""

    def busy(*_: object) -> None:
        raise MountBusy("in use by vi (pid 7)")

    def refused() -> None:
        with pytest.raises(MountBusy, match="vi"):
            ask(layout, "stop")

    async with running(mount_point, layout, FakeService()) as kernel:
        monkeypatch.setattr(lifecycle, "unmount", busy)
        await trio.to_thread.run_sync(refused)
        await kernel.send(FUSE_STATFS, 9)
        assert (await kernel.answer())[0] == 9
        session_loop.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_unmounts(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout, number: signal.Signals
) -> None:
    """Then the session ends by itself."""
    monkeypatch.setattr(lifecycle, "unmount", unmount_by_stopping)
    async with running(mount_point, layout, FakeService()):
        os.kill(os.getpid(), number)


async def test_a_signal_detaches_a_busy_mount(
    monkeypatch: pytest.MonkeyPatch,
    mount_point: Path,
    layout: StoreLayout,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is written back, detached and said; then the session ends, used or not."""
    done: list[str] = []

    def busy(_mount_point: Path, *, lazy: bool = False) -> None:
        done.append(f"unmount lazy={lazy}")
        if not lazy:
            raise MountBusy("in use by vi (pid 7)")

    monkeypatch.setattr(lifecycle, "unmount", busy)
    monkeypatch.setattr(lifecycle, "write_back", lambda _mount_point: done.append("write back"))
    async with running(mount_point, layout, FakeService()):
        os.kill(os.getpid(), signal.SIGTERM)
    assert done == ["unmount lazy=False", "write back", "unmount lazy=True"]
    assert "vi (pid 7)" in caplog.text


async def test_a_second_signal_ends_a_mount_that_does_not_come_off(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """Whoever presses Ctrl-C twice wants out."""
    is_unmounting, go_on = trio.Event(), trio.Event()

    def hang(*_: object) -> None:
        trio.from_thread.run_sync(is_unmounting.set)
        trio.from_thread.run(go_on.wait)

    monkeypatch.setattr(lifecycle, "unmount", hang)
    async with running(mount_point, layout, FakeService()):
        os.kill(os.getpid(), signal.SIGINT)
        await is_unmounting.wait()
        os.kill(os.getpid(), signal.SIGINT)
    go_on.set()


async def test_a_mount_without_its_tree_is_not_announced(
    layout: StoreLayout, tmp_path: Path
) -> None:
    """When current/ does not answer, starting fails instead of pretending."""
    with pytest.RaisesGroup(FileNotFoundError, flatten_subgroups=True):
        async with running(tmp_path / "nothing", layout, FakeService()):
            pytest.fail("it was announced")


async def test_background_work_that_breaks_ends_the_mount(
    mount_point: Path, layout: StoreLayout
) -> None:
    """It is not served on half-working."""
    service = FakeService()
    service.background_failure = KeyError("a bug")
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with running(mount_point, layout, service):
            await trio.sleep_forever()


# --- before and after -------------------------------------------------------------------------


def test_an_internal_error_is_logged_whole_and_told_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The traceback is for the log; the line is for the person."""
    with caplog.at_level(logging.ERROR), pytest.raises(StatefsError, match="KeyError: 'a bug'"):
        lifecycle._raise_cause(ExceptionGroup("tasks", [KeyError("a bug")]))
    assert "internal error" in caplog.text


def test_an_interrupt_stays_an_interrupt() -> None:
    """Ctrl-C before the signals are watched is not an internal error."""
    with pytest.raises(KeyboardInterrupt):
        lifecycle._raise_cause(BaseExceptionGroup("tasks", [KeyboardInterrupt()]))


async def test_whoever_mounts_is_told_how_much_is_brought_in(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, layout: StoreLayout
) -> None:
    """About every second; links and folders do not count."""
    monkeypatch.setattr(lifecycle, "WORKING_SECONDS", 0.001)
    (mount_point / "current" / "nine").write_bytes(b"123456789")
    (mount_point / "link").symlink_to("current")
    was_told = threading.Event()

    class Slow(CoveredFiles):
        def bring_in(self) -> str:
            assert was_told.wait(LONG_SECONDS)
            return "remark"

    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    begin = Begin(state="", store="", options="", supervisor_pid=SUPERVISOR_PID, oom_score_adj=0)
    service = FakeService()
    daemon = MountDaemon(mount_point, layout, MountOptions(), service, Channel(end), begin)
    remarks: list[str] = []

    async def bring_in() -> None:
        with Slow(mount_point) as covered:
            remarks.append(await daemon._brought_in(covered))

    try:
        with trio.fail_after(LONG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bring_in)
                await trio.lowlevel.wait_readable(ours)
                received = Channel(ours).receive()
                was_told.set()
    finally:
        ours.close()
        end.close()
    assert received is not None
    assert received[0] == Working(what="bringing files in", done=0, total=9, unit="bytes")
    assert remarks == ["remark"]


def test_a_store_that_takes_long_to_open_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration may take minutes; nobody is told any more when it is open."""
    monkeypatch.setattr(lifecycle, "WORKING_SECONDS", 0.001)
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    try:
        with lifecycle._saying_so(Channel(end)):
            received = channel.receive()
        end.close()
        while (later := channel.receive()) is not None:
            assert isinstance(later[0], Working)
    finally:
        ours.close()
        end.close()
    assert received is not None
    assert received[0] == Working(what="opening the store", done=1, total=None, unit="seconds")
