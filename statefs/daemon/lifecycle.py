"""The life of a mount: lock, open, mount, serve, unmount, close, unlock. The only wiring there is.

run_foreground() is that life. Whatever ends it - umount, a signal, `stop` over the control socket,
an exception - the mount does not stay behind and the lock is let go last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import trio

from statefs.control.server import Call, ControlServer
from statefs.daemon.adopt import CoveredFiles
from statefs.daemon.background import ReadyNotice, start_background
from statefs.errors import (
    AlreadyMounted,
    MountBusy,
    NotMounted,
    StaleMount,
    StatefsError,
)
from statefs.fuse import session_loop
from statefs.layout import StoreLayout
from statefs.locking import StoreLock
from statefs.mounts import (
    MountInfo,
    MountOptions,
    call_outside,
    find_mount,
    is_stale,
    mount_fuse,
    require_empty,
    unmount,
    write_back,
)

if TYPE_CHECKING:
    from statefs.fuse.operations import Operations

__all__ = ["run_foreground", "start_background"]

log = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS: Final = 50.0
"""How long the first stat of current/ may take; a little less than start_background() waits."""
LAST_REPLIES_SECONDS: Final = 5.0
"""How long requests on the control socket may go on after the mount has ended."""
ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SAVING_SIGNAL: Final = signal.SIGUSR1
"""Asks for a snapshot; ignored while nothing is mounted yet, or any more."""
SWITCH_SECONDS: Final = 0.0002
"""A thread that computes in Python lets the mount's loop in after this; Python's own 5 ms would
be added to every request (measured with a busy thread beside: 5.3 ms; at 0.1 ms: 0.25 ms)."""


class Service(Protocol):
    """What this module needs of the engine (statefs.daemon.service)."""

    @property
    def operations(self) -> Operations:
        """The filesystem."""

    async def run(self) -> None:
        """Do what is to be done in the background, until cancelled."""

    async def handle(self, op: str, args: dict[str, Any], call: Call) -> Any:
        """Do one operation of the control socket."""

    async def save_on_request(self) -> None:
        """Take a snapshot because a signal asks for it."""

    def close(self, *, clean: bool) -> None:
        """Close the store; `clean` says that nothing went wrong."""


def run_foreground(state: Path, store: Path, options: MountOptions) -> None:
    """Mount `store` at `state` and serve it until it is unmounted.

    Args:
        state: the mount point, an existing folder.
        store: an existing store.
        options: of the mount.

    Raises:
        AlreadyMounted: the state or the store is mounted.
        StaleMount: a daemon has died at `state`.
        StoreLocked: another process has the store open.
        MountPointNotEmpty: files lie in `state` and are not to be adopted.
        FuseUnavailable: this machine or this user cannot mount.
        StatefsError: the engine's reasons; or something broke while serving.
    """
    notice = ReadyNotice.from_environment()
    try:
        _prepare_process()
        _run(state.absolute(), StoreLayout(store.absolute()), options, notice)
    except StatefsError as error:
        notice.fail(error)
        raise
    except BaseException as error:
        notice.fail(StatefsError(f"internal error: {type(error).__name__}: {error}"))
        raise


def _prepare_process() -> None:
    """Make this process fit to live long: no folder held, no signal of a terminal, a log."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(SAVING_SIGNAL, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    sys.setswitchinterval(SWITCH_SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave(number: int, _frame: object) -> NoReturn:
    """End on a signal that comes while the mount is not served, past every clean-up there is."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal of a terminal or an init system cut short what is in the `with` block."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(state: Path, layout: StoreLayout, options: MountOptions, notice: ReadyNotice) -> None:
    os.chdir("/")
    _refuse_mounted(state)
    if not options.adopt:
        require_empty(state)
    lock = StoreLock(layout, role="daemon", mount_point=state)
    lock.acquire_for_mount()
    try:
        service = _open_service(layout, options)
        is_clean = False
        try:
            _mount_and_serve(state, layout, options, service, notice)
            is_clean = True
        finally:
            with _undisturbed():
                service.close(clean=is_clean)
    finally:
        lock.release()


def _refuse_mounted(state: Path) -> None:
    mount = find_mount(state)
    if mount is None:
        return
    if is_stale(mount):
        raise StaleMount(
            f"a crashed daemon left {state} mounted: 'statefs mount --repair {state}' mounts it "
            f"again, 'statefs umount {state}' frees it"
        )
    raise AlreadyMounted(f"{state} is mounted already, and shows {mount.source}")


def _open_service(layout: StoreLayout, options: MountOptions) -> Service:
    from statefs.clock import SystemClock
    from statefs.daemon.service import Service as Engine
    from statefs.maintenance.store import open_store

    return Engine(open_store(layout.root, clock=SystemClock()), durability=options.durability)


def _mount_and_serve(
    state: Path, layout: StoreLayout, options: MountOptions, service: Service, notice: ReadyNotice
) -> None:
    with contextlib.ExitStack() as stack:
        covered = stack.enter_context(CoveredFiles(state)) if options.adopt else None
        fuse_fd = stack.enter_context(_mounted(state, layout, options))
        daemon = MountDaemon(state, layout, options, service, notice, covered)
        try:
            trio.run(daemon.run, fuse_fd)
        except BaseExceptionGroup as group:
            _raise_cause(group)


@contextlib.contextmanager
def _mounted(state: Path, layout: StoreLayout, options: MountOptions) -> Iterator[int]:
    """Mount, yield the descriptor, and leave no mount behind."""
    fuse_fd = mount_fuse(layout.root, state, options)
    mount = find_mount(state)
    try:
        yield fuse_fd
    finally:
        with _undisturbed():
            # With its descriptor closed the mount answers with errors: nothing hangs.
            os.close(fuse_fd)
            _unmount_leftover(mount)


def _unmount_leftover(mount: MountInfo | None) -> None:
    """Unmount what is still mounted of `mount`; not another mount that has taken its place."""
    if mount is None:
        return
    now = find_mount(mount.mount_point)
    if now is None or now.device != mount.device:
        return
    try:
        unmount(mount.mount_point, is_dead=True)
    except NotMounted:
        pass  # somebody else was faster


def _raise_cause(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the first StatefsError of a group; log any other exception and say that it happened."""
    chosen: BaseException = group.subgroup(StatefsError) or group
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    if isinstance(chosen, StatefsError) or not isinstance(chosen, Exception):
        raise chosen from None
    log.error("the mount ends because of an internal error", exc_info=group)
    raise StatefsError(f"internal error: {type(chosen).__name__}: {chosen}") from None


async def _in_thread(call: Callable[[], object], keep: Collection[int] = ()) -> None:
    """Make a call on the mount that this process serves (mounts/outside.py)."""
    await trio.to_thread.run_sync(call_outside, call, keep, abandon_on_cancel=True)


class MountDaemon:
    """The tasks of one mounted filesystem.

    Args:
        state: where it is mounted.
        layout: of the store.
        options: of the mount.
        service: the engine.
        notice: told when the mount is usable.
        covered: the files that the mount hides, to be brought in first.
    """

    def __init__(
        self,
        state: Path,
        layout: StoreLayout,
        options: MountOptions,
        service: Service,
        notice: ReadyNotice,
        covered: CoveredFiles | None = None,
    ) -> None:
        self._state = state
        self._options = options
        self._service = service
        self._notice = notice
        self._covered = covered
        self._control = ControlServer(layout, self._handle)
        self._kernel_is_ready = trio.Event()
        self._control_has_ended = trio.Event()
        self._since = datetime.now(UTC)

    async def run(self, fuse_fd: int) -> None:
        """Serve the mounted connection `fuse_fd` until it ends."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve_control)
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._service.run)
            await session_loop.serve(
                self._service.operations,
                fuse_fd,
                self._kernel_is_ready.set,
                only_owner_and_root=self._options.allow_root,
            )
            log.info("the mount at %s has ended", self._state)
            self._control.finish()
            with trio.move_on_after(LAST_REPLIES_SECONDS):
                await self._control_has_ended.wait()
            nursery.cancel_scope.cancel()

    async def _serve_control(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._control.serve(task_status=task_status)
        finally:
            self._control_has_ended.set()

    async def _announce(self) -> None:
        """Say that the mount is usable, once it has answered and holds the adopted files."""
        await self._kernel_is_ready.wait()
        with trio.move_on_after(FIRST_ANSWER_SECONDS) as scope:
            await _in_thread(partial(os.stat, self._state / "current"))
        if scope.cancelled_caught:
            raise StatefsError(f"the mount at {self._state} does not answer")
        if self._covered is not None:
            await _in_thread(self._covered.bring_in, self._covered.descriptors)
        self._since = datetime.now(UTC)
        log.info("mounted %s", self._state)
        self._notice.succeed()

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
        result = await self._service.handle(op, args, call)
        if op == "status":
            result = {**result, **self._status()}
        return result

    def _status(self) -> dict[str, Any]:
        """Return what only the process that serves the mount knows."""
        return {
            "mounted": True,
            "mount_point": str(self._state),
            "worker_pid": os.getpid(),
            "supervisor_pid": os.getpid(),
            "since": self._since.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "durability": self._options.durability,
            "mount_options": replace(self._options, adopt=False).text(),
        }
