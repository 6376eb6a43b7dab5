"""pyfuse3's main loop, made cheap: it polls before it sleeps and keeps one task on the requests.

pyfuse3 takes `trio.Lock`, `trio.lowlevel.wait_readable` and a few other names from its module
attribute `trio`. serve() puts a `SessionLoop` there. The difference it makes:

* A request that is there already is taken without a turn of trio's scheduler and without epoll.
* When there is none, the reader looks again for some tens of microseconds before it sleeps, as long
  as that has paid lately (`SpinBudget`): waking a sleeping process costs more than most requests.
* The task that has just answered a request reads the next one. Another task takes over only when a
  handler really suspends (a thread is syncing a file, say), and then at once.
* Everything else in the process has its turn at least every `TURN_SECONDS`, and immediately if a
  handler is suspended and something has become runnable (its thread has finished, say).

Also completes the handshake, as only this loop knows when libfuse has answered. Does not mount.
"""

from __future__ import annotations

import errno
import os
import select
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import pyfuse3
import trio

from statefs.fuse.handshake import Greeting, Handshake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TURN_SECONDS: Final = 0.002
"""The longest time without a turn for the other tasks: short for a person, long for a request."""
SPIN_SECONDS_MAX: Final = 60e-6
"""The longest look-again before sleeping; about what sleeping and being woken costs."""
SPIN_SECONDS_MIN: Final = 5e-6
"""A budget below this is no better than none."""
SLEEP_COST_SECONDS: Final = 50e-6
"""What a sleep adds to the time in which the next request seems to come."""
IDLE_TASKS: Final = 8
"""Reading tasks kept when there is nothing to do: a parked one costs nothing, a new one some us."""


class SpinBudget:
    """How long it is worth looking for a request before sleeping, learned from the last waits.

    While requests follow each other closely the budget is `SPIN_SECONDS_MAX`; each longer gap
    halves it, so that a filesystem used now and then does not burn the processor at all.
    """

    def __init__(self) -> None:
        # With a single processor the program that would send the next request cannot run meanwhile.
        self._limit = SPIN_SECONDS_MAX if len(os.sched_getaffinity(0)) > 1 else 0.0
        self.seconds = 0.0

    def learn(self, waited_seconds: float) -> None:
        """Take in how long the last wait was, sleep included."""
        if waited_seconds <= SPIN_SECONDS_MAX + SLEEP_COST_SECONDS:
            self.seconds = self._limit
        else:
            self.seconds /= 2
            if self.seconds < SPIN_SECONDS_MIN:
                self.seconds = 0.0


class ReaderLock:
    """Who may read the next request: one task, and no other is woken until it must be.

    Unlike trio.Lock it has no turn order and taking a free one is no checkpoint; releasing wakes
    nobody. `wake_successor()` is called when a task suspends: only then is there something to do.
    """

    def __init__(self) -> None:
        self.is_held = False
        self.waiting = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._successor_is_woken = False

    async def __aenter__(self) -> None:
        while self.is_held:
            self.waiting += 1
            try:
                await self._lot.park()
            finally:
                self.waiting -= 1
                self._successor_is_woken = False
        self.is_held = True

    async def __aexit__(self, *exc_info: object) -> None:
        self.is_held = False

    def wake_successor(self) -> None:
        """Wake one waiting task if nobody holds the lock and none has been woken already."""
        if self.waiting and not self.is_held and not self._successor_is_woken:
            self._successor_is_woken = True
            self._lot.unpark()


def _do_nothing() -> None:
    """Stand in for a listener that nobody needs."""


class SessionLoop:
    """Stands in for the module `trio` inside pyfuse3, with what pyfuse3 uses of it.

    Args:
        handshake: started; completed here, after libfuse has processed FUSE_INIT.
        on_ready: called once, right after that, before the first request is taken.
        on_answered: called before each request is taken: what was taken before has been answered,
            but for handlers that are suspended.
    """

    ClosedResourceError: Final = trio.ClosedResourceError

    def __init__(
        self,
        handshake: Handshake,
        on_ready: Callable[[Greeting], None],
        on_answered: Callable[[], None] = _do_nothing,
    ) -> None:
        self.lowlevel = self
        self._on_answered = on_answered
        self._handshake: Handshake | None = handshake
        self._init_is_read = False
        self._on_ready = on_ready
        self._lock = ReaderLock()
        self._loops = 0
        self._is_closing = False
        self._spin = SpinBudget()
        self._turn_due = 0.0
        self._may_read = trio.Event()
        self._may_read.set()
        self._poller = self.make_poller()

    make_poller = staticmethod(select.poll)

    # What pyfuse3 calls, by trio's names.

    def Lock(self) -> ReaderLock:  # noqa: N802 - it stands in for trio.Lock
        """Return the lock that pyfuse3 holds while it waits for a request."""
        return self._lock

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def notify_closing(self, fd: int) -> None:
        """End the wait of whoever reads `fd`, as trio.lowlevel.notify_closing."""
        self._is_closing = True
        trio.lowlevel.notify_closing(fd)

    def open_nursery(self) -> AbstractAsyncContextManager[SessionNursery]:
        """Return a nursery whose tasks this loop looks after."""
        return self._nursery()

    @asynccontextmanager
    async def _nursery(self) -> AsyncIterator[SessionNursery]:
        async with trio.open_nursery() as nursery:
            yield SessionNursery(nursery, self)

    async def wait_readable(self, fd: int) -> None:
        """Return when `fd` has a request; the caller holds the lock.

        Raises:
            trio.ClosedResourceError: the session is being ended.
        """
        if self._handshake is not None and self._shake_hands(fd):
            return
        await self._wait_for_request(fd)
        while not self._may_read.is_set():
            await self._may_read.wait()
            await self._wait_for_request(fd)
        self._on_answered()

    # The rest is this module's own.

    def hold(self) -> None:
        """Take no request until `release`; those that have been taken are answered."""
        self._may_read = trio.Event()

    async def admitted(self) -> None:
        """Return when nothing is held."""
        await self._may_read.wait()

    def release(self) -> None:
        """Take requests again."""
        self._may_read.set()

    async def _wait_for_request(self, fd: int) -> None:
        now = perf_counter()
        if now >= self._turn_due or self._another_task_is_ready():
            await trio.lowlevel.checkpoint()
            now = perf_counter()
            self._turn_due = now + TURN_SECONDS
        if self._is_closing:
            raise trio.ClosedResourceError("the session is being ended")
        if self._poller.poll(0):
            return
        await self._wait(fd, now)

    def _shake_hands(self, fd: int) -> bool:
        """Return True once, for the FUSE_INIT that is queued; then finish the handshake."""
        assert self._handshake is not None
        if not self._init_is_read:
            self._init_is_read = True
            return True
        greeting = self._handshake.complete()
        self._handshake = None
        self._poller.register(fd, select.POLLIN)
        self._on_ready(greeting)
        return False

    async def _wait(self, fd: int, started: float) -> None:
        give_up = started + self._spin.seconds
        now = started
        while now < give_up:
            if self._poller.poll(0):
                self._spin.learn(perf_counter() - started)
                return
            if self._another_task_is_ready():
                break
            now = perf_counter()
        await trio.lowlevel.wait_readable(fd)
        now = perf_counter()
        self._turn_due = now + TURN_SECONDS
        self._spin.learn(now - started)

    def _another_task_is_ready(self) -> bool:
        """Return whether a turn of the scheduler would run something that was waiting.

        Asked only while some handler is suspended, because asking costs microseconds.
        """
        if self._loops - self._lock.waiting <= 1:
            return False
        statistics = trio.lowlevel.current_statistics()
        return statistics.tasks_runnable > 0 or statistics.run_sync_soon_queue_size > 0

    async def run_session_loop(
        self, session_loop: Callable[..., Coroutine[Any, Any, None]], *args: object
    ) -> None:
        """Run one of pyfuse3's reading tasks to its end."""
        self._loops += 1
        try:
            while True:
                try:
                    return await _watched(session_loop(*args), self._lock.wake_successor)
                except OSError as error:
                    if not _is_withdrawn_request(error):
                        raise
        finally:
            self._loops -= 1
            self._lock.wake_successor()


class SessionNursery:
    """The one method of a trio.Nursery that pyfuse3 calls."""

    def __init__(self, nursery: trio.Nursery, loop: SessionLoop) -> None:
        self._nursery = nursery
        self._loop = loop

    def start_soon(
        self,
        session_loop: Callable[..., Coroutine[Any, Any, None]],
        *args: object,
        name: str,
    ) -> None:
        """Start another reading task. pyfuse3 passes its nursery among `args`."""
        self._nursery.start_soon(self._loop.run_session_loop, session_loop, *args, name=name)


def _is_withdrawn_request(error: OSError) -> bool:
    """Return whether pyfuse3 found no request although poll(2) had announced one.

    That happens when the asking program is killed in between; nothing is lost. pyfuse3 raises
    from its loop then (its buffer is lost, which is why it is not simply provoked).
    """
    return error.errno == errno.EAGAIN and "fuse_session_receive_buf" in str(error)


@types.coroutine
def _watched(
    coroutine: Coroutine[Any, Any, None], on_suspend: Callable[[], None]
) -> Generator[Any, Any, None]:
    """Await `coroutine`, and call `on_suspend` each time it gives way to other tasks."""
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            trap = resume(value)
        except StopIteration:
            return
        on_suspend()
        try:
            value = yield trap
            resume = coroutine.send
        except BaseException as error:
            value = error
            resume = coroutine.throw


async def serve(
    operations: pyfuse3.Operations,
    fuse_fd: int,
    on_ready: Callable[[Greeting], None],
    *,
    greeting: Greeting | None = None,
    on_answered: Callable[[], None] = _do_nothing,
    only_owner_and_root: bool = False,
) -> None:
    """Answer the requests of a mounted connection until it ends.

    It ends when the filesystem is unmounted, the connection is aborted, or stop() is called.

    Args:
        operations: the filesystem.
        fuse_fd: from mount_fuse(); stays the caller's.
        on_ready: called once the kernel has what it needs to send requests, before any is taken.
        greeting: what has been read from the connection already, and perhaps been answered.
        on_answered: called before each request is taken (`SessionLoop`).
        only_owner_and_root: libfuse refuses everyone else (the mount option allow_root).

    Raises:
        FuseUnavailable: the handshake failed.
        ExceptionGroup: a handler raised something other than FUSEError.
    """
    handshake = Handshake(fuse_fd, greeting)
    handshake.start()
    before = pyfuse3.trio  # type: ignore[attr-defined]  # not in the stubs; pyfuse3.asyncio sets it
    pyfuse3.trio = SessionLoop(handshake, on_ready, on_answered)  # type: ignore[attr-defined]
    try:
        # default_permissions is an option of the mount, which exists; libfuse needs none of it.
        pyfuse3.init(
            operations,
            handshake.session_mount_point,
            {"allow_root"} if only_owner_and_root else set(),
        )
        try:
            await pyfuse3.main(min_tasks=IDLE_TASKS)
        finally:
            pyfuse3.close(unmount=False)
    finally:
        handshake.close()
        pyfuse3.trio = before  # type: ignore[attr-defined]


@contextmanager
def held() -> Iterator[None]:
    """Take no request of the kernel inside the `with` block; those taken before are answered.

    From the thread of the loop only, and not for long: programs wait.
    """
    loop = pyfuse3.trio  # type: ignore[attr-defined]  # see serve()
    if not isinstance(loop, SessionLoop):
        yield  # nothing is served yet, or any more
        return
    loop.hold()
    try:
        yield
    finally:
        loop.release()


async def admitted() -> None:
    """Return at once, or when what `held` holds up may go on; for a handler that has waited."""
    loop = pyfuse3.trio  # type: ignore[attr-defined]  # see serve()
    if isinstance(loop, SessionLoop):
        await loop.admitted()


def stop() -> None:
    """End serve() after the handlers that run now; harmless when it has ended.

    From the thread of the loop only.
    """
    # Without a session libfuse would read through a null pointer.
    if isinstance(pyfuse3.trio, SessionLoop):  # type: ignore[attr-defined]
        pyfuse3.terminate()
