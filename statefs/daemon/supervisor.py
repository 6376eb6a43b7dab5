"""The process that has the mount: it outlives the workers that answer for it.

It opens /dev/fuse, mounts, keeps the connection, and has a worker (statefs/daemon/worker.py) serve
it. When a worker dies another one takes the connection over, and programs notice a pause. It loads
neither the engine nor a FUSE library, opens no file of the mount and stands elsewhere: nothing that
a worker does can end it or hold it up.

    start      worker opens the store -- mount -- worker serves -- usable
    a death    the kernel sends again what was not answered -- next worker, at once or after a while
    an upgrade a worker of the new version is loaded -- the old one is killed -- this process, too,
               becomes the new version (statefs/daemon/succession.py) -- as after a death
    the end    umount, a signal, `stop`: the worker closes the store and says Ended; else, when no
               worker comes to life, the connection is ended, so that programs get errors
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from statefs.daemon.background import READY_SECONDS, ReadyNotice
from statefs.daemon.child import Child, Worker
from statefs.daemon.handover import (
    Begin,
    Ended,
    Failed,
    Loaded,
    Message,
    Opened,
    Ready,
    Serve,
    Upgrade,
    Working,
)
from statefs.daemon.init_system import InitSystem
from statefs.daemon.process import (
    ENDING_SIGNALS,
    SAVING_SIGNAL,
    ended_by,
    ended_later,
    prepare_process,
    undisturbed,
)
from statefs.daemon.spare import SPARE_SECONDS, Spare
from statefs.daemon.spawning import TRIAL_SECONDS, Spawn, Started, spawn_worker, start
from statefs.daemon.succession import Succession, read_succession, rehearse, succeed
from statefs.errors import (
    AlreadyMounted,
    FuseUnavailable,
    NotMounted,
    StaleMount,
    StatefsError,
    typed,
    unforeseen,
)
from statefs.fuse.handshake import Greeting, ask_again, is_connected, read_init_request
from statefs.layout import StoreLayout
from statefs.locking import StoreLock
from statefs.mounts import (
    MountInfo,
    MountOptions,
    find_mount,
    is_stale,
    mount_fuse,
    require_empty,
    unmount,
)
from statefs.telemetry.lines import TEXT, choose_format

log = logging.getLogger(__name__)

TAKEOVER_SECONDS: Final = 60.0
"""Programs wait for so long at most until a successor is ready. It recovers the store before."""
FALLBACK_SECONDS: Final = 20.0
"""The same for a worker of another version, where one of this version waits."""
STEADY_SECONDS: Final = 0.25
"""A worker that served for so long did not die of what it found when it began."""
FAILURES_MAX: Final = 10
"""So many workers in a row that did not: there is no use in another one."""
PAUSE_SECONDS: Final = 0.05
"""Before the third worker in a row, doubled with each further one."""
PAUSE_SECONDS_MAX: Final = 5.0
OOM_SCORE_ADJ: Final = -900
"""The kernel ends nearly everything else before this process when memory is short (proc(5))."""
PRIVATE: Final = (
    "a command (import, check) has mounted this for itself and unmounts it when it is done: wait "
    "for that, the next mount is of the version that is installed"
)
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
OOM_FILE: Final = Path("/proc/self/oom_score_adj")
PAGE_BYTES: Final = 4096
"""Of the changes under way (statefs/volume/underway.py), which only workers understand."""


def run_foreground(
    state: Path,
    store: Path,
    options: MountOptions,
    spawn: Spawn = spawn_worker,
    first: Started | None = None,
    *,
    is_private: bool = False,
) -> None:
    """Mount `store` at `state` and have it served until it is unmounted.

    Args:
        state: the mount point, an existing folder.
        store: an existing store.
        options: of the mount.
        spawn: how to start a worker.
        first: a worker that has been started already.
        is_private: a command needs the mount and ends it, so it cannot be upgraded.

    Raises:
        AlreadyMounted: the state or the store is mounted.
        MountEnded: SIGTERM came before the mount was usable.
        StaleMount: a daemon has died at `state`.
        StoreLocked: another process has the store open.
        MountPointNotEmpty: files lie in `state` and are not to be adopted.
        FuseUnavailable: this machine or this user cannot mount.
        StatefsError: the engine's reasons; or something broke while serving.
    """
    notice, manager = ReadyNotice.from_environment(), InitSystem.from_environment()
    try:
        prepare_process()
        layout = StoreLayout(store.absolute())
        supervisor = Supervisor(
            state.absolute(), layout, options, notice, spawn, manager, is_private=is_private
        )
        supervisor.run(Worker(*(first or start(spawn))))
    except StatefsError as error:
        notice.fail(error)
        raise
    except SystemExit as error:
        ended = ended_by(error, state)
        notice.fail(ended)
        raise ended from None
    except KeyboardInterrupt as error:
        notice.fail(ended_by(error, state))
        raise
    except BaseException as error:
        notice.fail(unforeseen(error))
        raise


def resume(document_fd: int) -> None:
    """Go on with a mount that this process has held as another version of this program.

    Args:
        document_fd: of the document that it has left.

    Raises:
        StatefsError: as run_foreground().
    """
    supervisor, worker = resumed(document_fd)
    supervisor.go_on(worker)


def resumed(document_fd: int) -> tuple[Supervisor, Worker]:
    """Return the supervisor of a mount that an earlier version has left, and who serves it.

    Args:
        document_fd: of the document that it has left.
    """
    prepare_process()
    left = read_succession(document_fd)
    worker = Worker(left.worker_pid, socket.socket(fileno=left.worker_fd))
    worker.loaded = Loaded(left.version, left.basis)
    return Supervisor.resumed(left), worker


class Supervisor:
    """One mount, from mounting it to its end.

    Args:
        state: the mount point.
        layout: of the store.
        options: of the mount.
        notice: told when the mount is usable.
        spawn: starts a worker.
        manager: of services, told when the mount is usable, and then that this process lives.
        is_private: see run_foreground().
    """

    def __init__(
        self,
        state: Path,
        layout: StoreLayout,
        options: MountOptions,
        notice: ReadyNotice,
        spawn: Spawn,
        manager: InitSystem | None = None,
        *,
        is_private: bool = False,
    ) -> None:
        self._state = state
        self._layout = layout
        self._options = options
        self._notice = notice
        self._spawn = spawn
        self._is_private = is_private
        self._manager = manager or InitSystem(None)
        self._oom_score_adj = int(OOM_FILE.read_text())
        self._lock = StoreLock(layout, role="daemon", mount_point=state)
        self._page = -1
        self._fuse_fd = -1
        self._mount: MountInfo | None = None
        self._greeting = Greeting(b"")
        self._since = ""
        self._restarts = 0
        self._failures = 0
        self._dead: list[Child] = []
        self._log_format = TEXT
        self._signals = -1
        self._spare = Spare(spawn, lambda worker: rehearse(self._left_with(worker)))

    @classmethod
    def resumed(cls, left: Succession) -> Self:
        """Return the supervisor of a mount that an earlier version has left to this one."""
        state, layout = Path(left.state), StoreLayout(Path(left.store))
        manager = InitSystem(left.manager, left.watchdog_seconds)
        options = MountOptions.parse(left.options)
        new = cls(state, layout, options, ReadyNotice(None), spawn_worker, manager)
        new._lock, new._page = StoreLock.held(layout, left.lock_fd), left.page_fd
        new._fuse_fd, new._mount = left.fuse_fd, find_mount(state)
        new._greeting = Greeting(left.init_request, left.init_reply)
        new._oom_score_adj = left.oom_score_adj
        new._since, new._restarts = left.since, left.restarts
        new._dead = [Child(pid) for pid in left.dead]
        new._choose_log_format(left.log_format)
        return new

    def run(self, worker: Worker) -> None:
        """Mount, serve, unmount, and let the lock go last. Raises as run_foreground() does.

        Args:
            worker: the first one.
        """
        os.chdir("/")
        self._shun_the_oom_killer()
        self._page = os.memfd_create("statefs-underway")
        os.ftruncate(self._page, PAGE_BYTES)
        try:
            _refuse_mounted(self._state)
            if not self._options.adopt:
                require_empty(self._state)
            self._lock.acquire_for_mount()
            self._notice.succeed(self._start(worker))
            self._manager.ready(f"{self._layout.root} is mounted at {self._state}")
        except BaseException:
            with undisturbed():
                worker.signal(signal.SIGTERM)
                worker.end()
                self._leave()
            raise
        self._keep_served(worker)

    def go_on(self, worker: Worker) -> None:
        """Watch over a worker that serves since an earlier version. Raises as run_foreground()."""
        self._note_served(worker)
        self._keep_served(worker)

    def _shun_the_oom_killer(self) -> None:
        with contextlib.suppress(PermissionError):  # an ordinary user may not
            OOM_FILE.write_text(str(min(OOM_SCORE_ADJ, self._oom_score_adj)))

    def _start(self, worker: Worker) -> str:
        """Have a worker open the store, mount, and have it serve; return its remark."""
        worker.channel.send(self._begin(self._options), [self._lock.fileno(), self._page])
        worker.expect(Opened, self._tell_working)
        with ended_later():  # what is mounted must be known, to be unmounted
            self._fuse_fd = mount_fuse(self._layout.root, self._state, self._options)
            self._mount = find_mount(self._state)
        self._greeting = Greeting(read_init_request(self._fuse_fd))
        worker.channel.send(self._serve(), [self._fuse_fd])
        ready = worker.expect(Ready, self._tell_working)
        self._note_ready(worker, ready)
        return ready.remark

    def _tell_working(self, message: Working) -> None:
        self._notice.work(message)
        self._manager.wait(READY_SECONDS)

    def _begin(self, options: MountOptions) -> Begin:
        return Begin(
            state=str(self._state),
            store=str(self._layout.root),
            options=options.text(),
            supervisor_pid=os.getpid(),
            oom_score_adj=self._oom_score_adj,
            restarts=self._restarts,
            since=self._since,
            dead=tuple(each.pid for each in self._dead if not each.is_reaped()),
        )

    def _serve(self) -> Serve:
        return Serve(init_request=self._greeting.request, init_reply=self._greeting.reply)

    def _note_ready(self, worker: Worker, message: Ready) -> None:
        self._note_served(worker)
        self._since = message.since
        self._choose_log_format(message.log_format)
        self._greeting = Greeting(self._greeting.request, message.init_reply)

    def _choose_log_format(self, form: str) -> None:
        self._log_format = form
        choose_format(form)

    def _note_served(self, worker: Worker) -> None:
        worker.ready_at = time.monotonic()
        self._spare.due = worker.ready_at + SPARE_SECONDS

    # While the mount is served.

    def _keep_served(self, worker: Worker) -> None:
        """Return when the mount has ended and nothing of it is left; replace workers that die.

        Raises:
            StatefsError: no worker comes to life any more; the connection is ended then.
        """
        try:
            with self._signals_noted():
                while True:
                    if not worker.has_ended:
                        self._listen(worker, None)
                    if worker.has_ended:
                        worker.end()
                        return
                    dead_since = time.monotonic()
                    if not self._bury(worker):
                        return
                    upgraded = self._spare.worker if self._spare.is_upgrade else None
                    worker = self._successor(dead_since)
                    if worker is upgraded and not self._proves_itself(worker):
                        continue
                    self._spare.drop_fallback()
                    if worker is upgraded:
                        succeed(self._left_with(worker))
        finally:
            self._manager.stopping()
            with undisturbed():
                self._leave()

    def _proves_itself(self, worker: Worker) -> bool:
        """Return whether a worker of another version does not die of what it is first asked."""
        return worker.ready_at is not None and not self._listen(
            worker, time.monotonic() + TRIAL_SECONDS
        )

    def _left_with(self, worker: Worker) -> Succession:
        """Return what this process would leave to the version that is installed.

        Args:
            worker: who serves then.
        """
        assert worker.loaded is not None
        return Succession(
            state=str(self._state), store=str(self._layout.root), options=self._options.text(),
            since=self._since, restarts=self._restarts, oom_score_adj=self._oom_score_adj,
            init_request=self._greeting.request, init_reply=self._greeting.reply,
            lock_fd=self._lock.fileno(), page_fd=self._page, fuse_fd=self._fuse_fd,
            worker_pid=worker.pid, worker_fd=worker.channel.fileno(),
            version=worker.loaded.version, basis=worker.loaded.basis,
            dead=tuple(each.pid for each in self._dead), log_format=self._log_format,
            manager=self._manager.address, watchdog_seconds=self._manager.watchdog_seconds,
        )  # fmt: skip

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Have signals be read from a descriptor, for workers to obey."""
        self._signals, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = (*ENDING_SIGNALS, SAVING_SIGNAL)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        wakeup_before = signal.set_wakeup_fd(writer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # they waited while a version changed
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            for descriptor in (self._signals, writer):
                os.close(descriptor)

    def _listen(self, worker: Worker, give_up: float | None) -> bool:
        """Return when a worker has died, or ended, or become ready, or it is time to give up.

        Args:
            give_up: when that is.

        Returns:
            Whether it has died or ended.
        """
        while True:
            ready = self._something_to_read(worker, give_up)
            self._manager.alive()
            if not ready and give_up is not None and time.monotonic() >= give_up:
                return False
            if self._signals in ready:
                for number in os.read(self._signals, 64):
                    worker.signal(number)
            if worker.ready_at is not None:
                self._spare.attend(worker)
            if worker.channel.fileno() in ready:
                received = worker.receive()
                if received is None:
                    return True
                if self._note(worker, received[0]):
                    return False

    def _something_to_read(self, worker: Worker, give_up: float | None) -> list[int]:
        """Wait for the worker, a signal or the spare worker, or until it is time for something."""
        poller = select.poll()
        poller.register(worker.channel.fileno(), select.POLLIN)
        if worker.ready_at is not None:  # before that it must not hear signals
            poller.register(self._signals, select.POLLIN)
            if self._spare.worker is not None:
                poller.register(self._spare.worker.channel.fileno(), select.POLLIN)
        return [descriptor for descriptor, _ in poller.poll(self._patience_ms(worker, give_up))]

    def _note(self, worker: Worker, message: Message) -> bool:
        """Take in what a worker says; return whether it has just become ready."""
        if isinstance(message, Ready):
            self._note_ready(worker, message)
            return True
        if isinstance(message, Failed):
            log.error("a worker has failed: %s", message.error.message)
        if isinstance(message, Upgrade) and self._is_private:
            self._spare.refuse(worker, PRIVATE)
        elif isinstance(message, Upgrade):
            self._spare.upgrade(worker)
        worker.has_ended = worker.has_ended or isinstance(message, Ended)
        return False

    def _patience_ms(self, worker: Worker, give_up: float | None) -> float | None:
        """Return how long to wait for something to happen before something is due."""
        moments = [give_up, None if worker.ready_at is None else self._spare.due]
        waits = [max(0.0, each - time.monotonic()) for each in moments if each is not None]
        if self._manager.period_seconds is not None:
            waits.append(self._manager.period_seconds)
        return min(waits) * 1000 if waits else None

    def _bury(self, worker: Worker) -> bool:
        """Take leave of a worker that died; return whether there is a mount to go on with.

        Raises:
            FuseUnavailable: the kernel cannot send again what the worker had read.
        """
        worker.signal(signal.SIGKILL)  # whatever is left of it
        worker.channel.close()
        how = worker.ending()
        self._dead = [each for each in (*self._dead, worker) if not each.is_reaped()]
        if not is_connected(self._fuse_fd):
            log.info("the mount at %s has ended with its worker%s", self._state, how)
            return False
        lived = 0.0 if worker.ready_at is None else time.monotonic() - worker.ready_at
        self._failures = 0 if lived >= STEADY_SECONDS else self._failures + 1
        if not self._spare.is_upgrade:
            log.warning(
                "the worker %d died%s after %.1f s; another follows", worker.pid, how, lived
            )
        if not ask_again(self._fuse_fd) and self._requests_waiting() != 0:
            raise self._given_up(
                "this kernel (before Linux 6.9) cannot send again what it had read, so the "
                "programs that wait for an answer get errors"
            )
        return True

    def _requests_waiting(self) -> int | None:
        """Return how many requests wait for an answer; None if it cannot be told."""
        try:
            return int((self._control_folder() / "waiting").read_text())
        except OSError:
            return None

    def _control_folder(self) -> Path:
        return CONNECTIONS / str(self._mount.device[1] if self._mount else 0)

    def _successor(self, dead_since: float) -> Worker:
        """Return a worker that serves the mount, or that has seen it end.

        Raises:
            StatefsError: none does in time.
        """
        give_up = dead_since + TAKEOVER_SECONDS
        options = replace(self._options, adopt=False)
        while self._failures <= FAILURES_MAX:
            self._pause()
            self._restarts += 1
            try:
                worker = self._spare.take() or Worker(*start(self._spawn))
            except OSError as error:
                log.error("no worker could be started: %s", error)
                self._failures += 1
                continue
            with contextlib.suppress(BrokenPipeError):  # it is dead already
                worker.channel.send(self._begin(options), [self._lock.fileno(), self._page])
                worker.channel.send(self._serve(), [self._fuse_fd])
            limit = give_up
            if self._spare.fallback is not None:
                limit = min(limit, time.monotonic() + FALLBACK_SECONDS)
            self._listen(worker, limit)
            if worker.ready_at is not None:
                pause = time.monotonic() - dead_since
                log.info("worker %d serves %s after %.2f s", worker.pid, self._state, pause)
            if worker.ready_at is not None or worker.has_ended:
                return worker
            if time.monotonic() >= give_up:
                worker.signal(signal.SIGKILL)
                worker.channel.close()
                raise self._given_up(f"no worker was ready within {TAKEOVER_SECONDS:.0f} s")
            if not self._bury(worker):
                worker.has_ended = True
                return worker
        raise self._given_up(f"{self._failures} workers in a row have died at once")

    def _pause(self) -> None:
        """Wait before the next worker, the longer the more have failed in a row."""
        if self._failures > 1:
            time.sleep(min(PAUSE_SECONDS * 2 ** (self._failures - 2), PAUSE_SECONDS_MAX))

    def _given_up(self, why: str) -> StatefsError:
        """End the connection: the mount stays and answers with errors until it is unmounted."""
        with contextlib.suppress(OSError):
            (self._control_folder() / "abort").write_text("1")
        if not self._is_private:  # nobody else knows of that one, to unmount it
            self._mount = None
        message = (
            f"{why}: {self._state} answers with errors from now on; see {self._layout.log}, then "
            f"'{typed('statefs', 'mount', '--repair', self._state)}'"
        )
        log.critical("%s", message)
        return FuseUnavailable(message)

    # The end.

    def _leave(self) -> None:
        """Leave no mount behind, unless it is to answer with errors, and no lock."""
        if self._fuse_fd >= 0:
            os.close(self._fuse_fd)  # then the mount answers with errors: nothing hangs
        _unmount_leftover(self._mount)
        self._spare.drop()
        self._spare.drop_fallback()
        os.close(self._page)
        self._lock.release()


def _refuse_mounted(state: Path) -> None:
    mount = find_mount(state)
    if mount is None:
        return
    if is_stale(mount):
        raise StaleMount(
            f"a crashed daemon left {state} mounted: "
            f"'{typed('statefs', 'mount', '--repair', state)}' mounts it again, "
            f"'{typed('statefs', 'umount', state)}' frees it"
        )
    raise AlreadyMounted(
        f"{state} is mounted already, and shows {mount.source}: "
        f"'{typed('statefs', 'umount', state)}' first"
    )


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
