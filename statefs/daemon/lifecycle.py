"""Serving a mount: open the store, answer the kernel and the control socket, close the store.

serve_for() is all of it, in a worker. The mount itself is the supervisor's
(statefs/daemon/supervisor.py): whatever ends this process, programs that use the mount wait for the
next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

import trio

from statefs.control.messages import ErrorBody, error_body, raised_error
from statefs.control.server import Call, ControlServer
from statefs.daemon.adopt import CoveredFiles
from statefs.daemon.handover import Begin, Channel, Opened, Ready, Refused, Serve, Upgrade, Working
from statefs.daemon.process import ENDING_SIGNALS, SAVING_SIGNAL, undisturbed
from statefs.errors import MountBusy, NotMounted, StatefsError, unforeseen
from statefs.fuse import session_loop
from statefs.fuse.handshake import Greeting
from statefs.layout import StoreLayout
from statefs.maintenance.steps import Steps
from statefs.mounts import MountOptions, call_outside, unmount, write_back

if TYPE_CHECKING:
    from statefs.fuse.operations import Operations

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS: Final = 50.0
"""How long the first stat of current/ may take; a little less than start_background() waits."""
WORKING_SECONDS: Final = 1.0
"""How often it is said that the mount is not usable yet."""
LAST_REPLIES_SECONDS: Final = 5.0
"""How long requests on the control socket may go on after the mount has ended."""
NO_SUPERVISOR: Final = "the supervisor of this mount is gone: unmount and mount again"
ORPHAN_SECONDS: Final = 1.0
"""A worker whose supervisor is gone says so after this, unless it is ended, too."""


class Service(Protocol):
    """What this module needs of the engine (statefs.daemon.service)."""

    @property
    def operations(self) -> Operations:
        """The filesystem."""

    def follow(self, fuse_fd: int, dead: tuple[int, ...]) -> None:
        """Settle what the kernel had asked an earlier process, before any other request."""

    def answered(self) -> None:
        """Note that what was asked so far has been answered."""

    async def run(self) -> None:
        """Do what is to be done in the background, until cancelled."""

    async def handle(self, op: str, args: dict[str, Any], call: Call) -> Any:
        """Do one operation of the control socket."""

    async def run_alone(self, steps: Steps[T]) -> T:
        """Run an operation while no other one changes the list of snapshots."""

    def size(self) -> int:
        """Return how many bytes all files of current/ have."""

    def log_format(self) -> str:
        """Return how the log is to be written, and write it so in this process."""

    def tell_served(self, restarts: int) -> None:
        """Tell that programs are answered, after so many earlier workers of this mount."""

    async def save_on_request(self) -> None:
        """Take a snapshot because a signal asks for it."""

    def close(self, *, clean: bool) -> None:
        """Close the store; `clean` says that nothing went wrong."""


def serve_for(channel: Channel, begin: Begin, page: int) -> None:
    """Open a store and serve its mount until that ends, for a supervisor that says when.

    Args:
        channel: to the supervisor.
        begin: what it has said first.
        page: where the change under way is noted.

    Raises:
        StatefsError: the engine's reasons; or something broke while serving.
    """
    state, layout = Path(begin.state), StoreLayout(Path(begin.store))
    options = MountOptions.parse(begin.options)
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if begin.since else _saying_so(channel):
            service = _open_service(layout, options, page, begin)
        is_clean = False
        try:
            covered = stack.enter_context(CoveredFiles(state)) if options.adopt else None
            channel.send(Opened())
            received = channel.receive()
            if received is None:
                return  # there is nothing to be mounted after all
            serve, (fuse_fd,) = received
            assert isinstance(serve, Serve)
            greeting = Greeting(serve.init_request, serve.init_reply)
            daemon = MountDaemon(state, layout, options, service, channel, begin, covered)
            try:
                trio.run(daemon.run, fuse_fd, greeting)
            except BaseExceptionGroup as group:
                _raise_cause(group)
            is_clean = True
        finally:
            with undisturbed():
                service.close(clean=is_clean)


@contextlib.contextmanager
def _saying_so(channel: Channel) -> Iterator[None]:
    """Tell the supervisor every second that the store is still being opened."""
    is_open = threading.Event()

    def say() -> None:
        seconds = 0
        while not is_open.wait(WORKING_SECONDS):
            seconds += 1
            with contextlib.suppress(OSError):  # the supervisor has gone: it is seen later
                channel.send(
                    Working(what="opening the store", done=seconds, total=None, unit="seconds")
                )

    thread = threading.Thread(target=say, name="opening", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_open.set()
        thread.join()


def _open_service(layout: StoreLayout, options: MountOptions, page: int, begin: Begin) -> Service:
    from statefs.clock import SystemClock
    from statefs.daemon.service import Service as Engine
    from statefs.maintenance.store import open_store
    from statefs.volume.underway import Underway

    follows = bool(begin.restarts)
    store = open_store(layout.root, clock=SystemClock(), follows_another=follows)
    store.volume.table.underway = Underway.in_file(page)
    return Engine(store, durability=options.durability)


def _raise_cause(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the first StatefsError of a group; log any other exception and say that it happened."""
    chosen: BaseException = group.subgroup(StatefsError) or group
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    if isinstance(chosen, StatefsError) or not isinstance(chosen, Exception):
        raise chosen from None
    log.error("the mount ends because of an internal error", exc_info=group)
    raise unforeseen(chosen) from None


async def _in_thread(call: Callable[[], T], keep: Collection[int] = ()) -> T:
    """Make a call on the mount that this process serves (mounts/outside.py)."""
    return await trio.to_thread.run_sync(call_outside, call, keep, abandon_on_cancel=True)


class MountDaemon:
    """The tasks of one mounted filesystem.

    Args:
        state: where it is mounted.
        layout: of the store.
        options: of the mount.
        service: the engine.
        channel: to the supervisor, which is told when the mount is usable.
        begin: what the supervisor has said of itself and of earlier workers.
        covered: the files that the mount hides, to be brought in first.
    """

    def __init__(
        self,
        state: Path,
        layout: StoreLayout,
        options: MountOptions,
        service: Service,
        channel: Channel,
        begin: Begin,
        covered: CoveredFiles | None = None,
    ) -> None:
        self._state = state
        self._options = options
        self._service = service
        self._channel = channel
        self._begin = begin
        self._has_supervisor = True
        self._refusals: queue.SimpleQueue[ErrorBody] = queue.SimpleQueue()
        self._greeting = Greeting(b"")
        self._covered = covered
        self._control = ControlServer(layout, self._handle)
        self._kernel_is_ready = trio.Event()
        self._control_has_ended = trio.Event()
        self._since = begin.since

    async def run(self, fuse_fd: int, greeting: Greeting) -> None:
        """Serve the mounted connection `fuse_fd` until it ends.

        Args:
            greeting: how the connection began.
        """

        def begin(greeting: Greeting) -> None:
            self._greeting = greeting
            if self._begin.restarts:
                self._service.follow(fuse_fd, self._begin.dead)
            self._kernel_is_ready.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._work_beside, nursery)
            await session_loop.serve(
                self._service.operations,
                fuse_fd,
                begin,
                greeting=greeting,
                on_answered=self._service.answered,
                only_owner_and_root=self._options.allow_root,
            )
            log.info("the mount at %s has ended", self._state)
            if not self._kernel_is_ready.is_set():
                self._control_has_ended.set()
            self._refusals.put(error_body(NotMounted("the mount has ended meanwhile")))
            self._control.finish()
            with trio.move_on_after(LAST_REPLIES_SECONDS):
                await self._control_has_ended.wait()
            nursery.cancel_scope.cancel()

    async def _serve_control(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._control.serve(task_status=task_status)
        finally:
            self._control_has_ended.set()

    async def _work_beside(self, nursery: trio.Nursery) -> None:
        """Begin whatever may change the store, once nothing of an earlier process is left to do."""
        await self._kernel_is_ready.wait()
        await nursery.start(self._serve_control)
        nursery.start_soon(self._service.run)
        nursery.start_soon(self._hear_supervisor)
        await self._announce()

    async def _announce(self) -> None:
        """Say that the mount is usable, once it has answered and holds the adopted files."""
        with trio.move_on_after(FIRST_ANSWER_SECONDS) as scope:
            await _in_thread(partial(os.stat, self._state / "current"))
        if scope.cancelled_caught:
            raise StatefsError(
                f"the mount at {self._state} does not answer: see the end of the store's "
                "statefs.log, and the kernel's messages ('dmesg'), and mount again"
            )
        remark = ""
        if self._covered is not None:
            remark = await self._brought_in(self._covered)
        if not self._since:
            self._since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        log_format = self._service.log_format()
        self._service.tell_served(self._begin.restarts)
        with contextlib.suppress(BrokenPipeError):  # `_hear_supervisor` will tell
            self._channel.send(Ready(self._since, self._greeting.reply, remark, log_format))

    async def _brought_in(self, covered: CoveredFiles) -> str:
        """Bring in the files that the mount hides, and return what is to be said of that."""
        total, before = covered.size(), self._service.size()

        async def say() -> None:
            while True:
                await trio.sleep(WORKING_SECONDS)
                done = min(max(0, self._service.size() - before), total)
                with contextlib.suppress(BrokenPipeError):
                    self._channel.send(
                        Working(what="bringing files in", done=done, total=total, unit="bytes")
                    )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            remark = await _in_thread(covered.bring_in, covered.descriptors)
            nursery.cancel_scope.cancel()
        covered.let_go()
        return remark

    async def _hear_supervisor(self) -> None:
        """Take in what the supervisor says, until it has gone: this process serves on, the last."""
        while True:
            await trio.lowlevel.wait_readable(self._channel.fileno())
            received = self._channel.receive()
            if received is None:
                break
            assert isinstance(received[0], Refused), received
            self._refusals.put(received[0].error)
        self._has_supervisor = False
        self._refusals.put(error_body(StatefsError(NO_SUPERVISOR)))
        await trio.sleep(ORPHAN_SECONDS)
        log.warning(
            "the supervisor %d is gone: %s is served on, but not after the end of this process",
            self._begin.supervisor_pid,
            self._state,
        )

    async def _obey_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*ENDING_SIGNALS, SAVING_SIGNAL) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                is_first = True
                async for number in signals:
                    if number == SAVING_SIGNAL:
                        nursery.start_soon(self._service.save_on_request)
                        continue
                    log.info("%s: unmounting %s", signal.Signals(number).name, self._state)
                    if is_first:
                        nursery.start_soon(self._end)
                    else:
                        session_loop.stop()
                    is_first = False

    async def _end(self) -> None:
        """Unmount and let serve() end by itself; detach the mount if programs still use it."""
        try:
            # In a thread, because unmounting waits for answers of this very process.
            await _in_thread(partial(unmount, self._state))
            return
        except MountBusy as busy:
            log.warning("detaching the mount, and programs that use it get errors: %s", busy)
            await self._detach()
        except StatefsError as error:
            log.warning("%s", error)
        session_loop.stop()

    async def _detach(self) -> None:
        with contextlib.suppress(OSError):
            await _in_thread(partial(write_back, self._state))
        with contextlib.suppress(StatefsError):
            await _in_thread(partial(unmount, self._state, lazy=True))

    async def _handle(self, op: str, args: dict[str, Any], call: Call) -> Any:
        if op == "stop":
            await _in_thread(partial(unmount, self._state))
            return {}
        if op == "upgrade":
            return await self._service.run_alone(self._replaced())
        result = await self._service.handle(op, args, call)
        if op == "status":
            result = {**result, **self._status()}
            if self._options.read_only:
                result |= {"writable": False, "not_writable": "it is mounted read-only"}
        return result

    def _replaced(self) -> Steps[NoReturn]:
        """Have the supervisor put another process in the place of this one; it does not return.

        Raises:
            StatefsError: that cannot be done, and why.
        """
        if not self._has_supervisor:
            raise StatefsError(NO_SUPERVISOR)
        if not self._greeting.can_ask_again:
            raise StatefsError(
                "this kernel (before Linux 6.9) cannot go over to another process without errors: "
                "unmount and mount again"
            )
        self._channel.send(Upgrade())
        raise raised_error((yield self._refusals.get))

    def _status(self) -> dict[str, Any]:
        """Return what only the process that serves the mount knows."""
        return {
            "mounted": True,
            "mount_point": str(self._state),
            "worker_pid": os.getpid(),
            "supervisor_pid": self._begin.supervisor_pid if self._has_supervisor else None,
            "restarts": self._begin.restarts,
            "since": self._since,
            "durability": self._options.durability,
            "mount_options": replace(self._options, adopt=False).text(),
        }
