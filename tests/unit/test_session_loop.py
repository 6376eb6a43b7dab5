from __future__ import annotations

import errno
import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pyfuse3
import pytest
import trio

from statefs.fuse import session_loop
from statefs.fuse.handshake import HANDLE_KILLPRIV_V2, Greeting
from statefs.fuse.session_loop import SPIN_SECONDS_MAX, ReaderLock, SessionLoop, SpinBudget
from tests.unit.fake_kernel import FUSE_FSYNC, FUSE_STATFS, FakeKernel

LONG_SECONDS = 10.0
"""A deadline that ends a test which hangs; nothing here takes a hundredth of it."""


class CountingOperations(pyfuse3.Operations):
    """Answers statfs at once and fsync when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.finish_fsync = trio.Event()
        self.fsyncs = 0
        self.most_fsyncs = 0
        self.failure: Exception | None = None

    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return zeros, or raise what the test wants."""
        if self.failure is not None:
            raise self.failure
        return pyfuse3.StatvfsData()

    async def fsync(self, _fh: pyfuse3.FileHandleT, _datasync: bool) -> None:
        """Wait until the test lets it end."""
        self.fsyncs += 1
        self.most_fsyncs = max(self.most_fsyncs, self.fsyncs)
        await self.finish_fsync.wait()
        self.fsyncs -= 1


@asynccontextmanager
async def served(
    operations: CountingOperations, on_ready: Callable[[Greeting], None] = lambda _: None
) -> AsyncIterator[FakeKernel]:
    """Serve a fake kernel whose handshake is done; end the session afterwards."""
    kernel = FakeKernel()
    try:
        with trio.fail_after(LONG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session_loop.serve, operations, kernel.device.fileno(), on_ready)
                init = await kernel.handshake()
                assert init.flags & HANDLE_KILLPRIV_V2
                yield kernel
                session_loop.stop()
    finally:
        kernel.close()


async def test_a_session_is_ready_after_the_handshake() -> None:
    """on_ready is called exactly once, and the first request after it is answered."""
    ready = []
    async with served(CountingOperations(), lambda _: ready.append(True)) as kernel:
        await kernel.send(FUSE_STATFS, 5)
        assert await kernel.answer() == (5, 0)
        assert ready == [True]


async def test_many_requests_in_a_row_are_answered_in_order() -> None:
    """A reading task and a spare one are enough: no tasks pile up."""
    async with served(CountingOperations()) as kernel:
        before = trio.lowlevel.current_statistics().tasks_living
        for unique in range(100, 400):
            await kernel.send(FUSE_STATFS, unique)
            assert await kernel.answer() == (unique, 0)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 1


async def test_a_suspended_handler_does_not_hold_up_others() -> None:
    """While several fsyncs wait for the disk, a statfs is answered at once."""
    operations = CountingOperations()
    async with served(operations) as kernel:
        for unique in range(10, 30):
            await kernel.send(FUSE_FSYNC, unique)
        await kernel.send(FUSE_STATFS, 99)
        assert await kernel.answer() == (99, 0)
        assert operations.fsyncs == 20
        operations.finish_fsync.set()
        answers = {await kernel.answer() for _ in range(20)}
        assert answers == {(unique, 0) for unique in range(10, 30)}


async def test_at_most_as_many_handlers_run_as_pyfuse3_allows() -> None:
    """The hundredth request waits for its turn and is answered after all."""
    operations = CountingOperations()
    async with served(operations) as kernel:
        for unique in range(200, 400):
            await kernel.send(FUSE_FSYNC, unique)
        await trio.testing.wait_all_tasks_blocked()
        assert 90 <= operations.most_fsyncs <= 99
        operations.finish_fsync.set()
        answers = {await kernel.answer() for _ in range(200)}
        assert answers == {(unique, 0) for unique in range(200, 400)}


async def test_a_request_that_is_withdrawn_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """poll(2) announces a request, read(2) finds none: the session goes on."""
    announced = 0
    real_poll = select.poll

    class HastyPoll:
        def __init__(self) -> None:
            self._poll = real_poll()
            self.register = self._poll.register

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            nonlocal announced
            announced += 1
            return [(0, select.POLLIN)] if announced % 3 == 0 else self._poll.poll(timeout)

    monkeypatch.setattr(SessionLoop, "make_poller", HastyPoll)
    async with served(CountingOperations()) as kernel:
        for unique in range(100, 120):
            await kernel.send(FUSE_STATFS, unique)
            assert await kernel.answer() == (unique, 0)
    assert announced > 20


async def test_other_tasks_have_their_turn_while_requests_pour_in() -> None:
    """A task that only counts is not starved by a kernel that always has another request."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with served(CountingOperations()) as kernel, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for unique in range(100, 150):
            await kernel.send(FUSE_STATFS, unique)
        for _ in range(50):
            await kernel.answer()
        nursery.cancel_scope.cancel()
    assert turns > 0


async def test_the_error_of_a_handler_reaches_the_kernel() -> None:
    """FUSEError becomes the errno of the reply; the session goes on."""
    operations = CountingOperations()
    operations.failure = pyfuse3.FUSEError(errno.ENOSPC)
    async with served(operations) as kernel:
        await kernel.send(FUSE_STATFS, 7)
        assert await kernel.answer() == (7, -errno.ENOSPC)
        operations.failure = None
        await kernel.send(FUSE_STATFS, 8)
        assert await kernel.answer() == (8, 0)


@pytest.mark.parametrize("failure", [KeyError("a bug"), BlockingIOError(errno.EAGAIN, "a file")])
async def test_any_other_exception_ends_the_session(failure: Exception) -> None:
    """It comes out of serve(), even one that looks like a withdrawn request."""
    operations = CountingOperations()
    operations.failure = failure
    kernel = FakeKernel()
    raised: list[BaseException] = []

    async def serve() -> None:
        try:
            await session_loop.serve(operations, kernel.device.fileno(), lambda _: None)
        except* type(failure) as group:
            raised.append(group)

    with trio.fail_after(LONG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await kernel.handshake()
            await kernel.send(FUSE_STATFS, 7)
    kernel.close()
    assert len(raised) == 1


async def test_stop_lets_running_handlers_finish() -> None:
    """A handler that waits when stop() comes still answers, then the session ends."""
    operations = CountingOperations()
    async with served(operations) as kernel:
        await kernel.send(FUSE_FSYNC, 7)
        await kernel.send(FUSE_STATFS, 8)
        assert await kernel.answer() == (8, 0)
        session_loop.stop()
        operations.finish_fsync.set()
        assert await kernel.answer() == (7, 0)


def test_stop_without_a_session_is_harmless() -> None:
    """A second signal may come when everything has ended."""
    session_loop.stop()


async def test_pyfuse3_has_its_own_trio_back_afterwards() -> None:
    """The stand-in is for one session only."""
    async with served(CountingOperations()):
        assert isinstance(vars(pyfuse3)["trio"], SessionLoop)
    assert vars(pyfuse3)["trio"] is trio


async def test_no_descriptor_is_left_behind() -> None:
    """Sessions come and go; the process has as many descriptors as before."""
    async with served(CountingOperations()):
        pass
    before = len(os.listdir("/proc/self/fd"))
    async with served(CountingOperations()):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> SpinBudget:
    """A budget on a machine with two processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    return SpinBudget()


def test_spinning_begins_with_the_first_close_requests(budget: SpinBudget) -> None:
    """One short wait gives the whole budget: a burst should not have to earn it."""
    assert budget.seconds == 0
    budget.learn(30e-6)
    assert budget.seconds == SPIN_SECONDS_MAX


def test_spinning_ends_soon_when_requests_are_rare(budget: SpinBudget) -> None:
    """After a handful of long waits the loop sleeps at once: an idle mount costs nothing."""
    budget.learn(30e-6)
    seen = []
    for _ in range(6):
        budget.learn(0.5)
        seen.append(budget.seconds)
    assert seen == sorted(seen, reverse=True) and seen[-1] == 0


def test_one_long_wait_does_not_end_a_burst(budget: SpinBudget) -> None:
    """A program that thinks once keeps half the budget."""
    budget.learn(30e-6)
    budget.learn(0.01)
    assert budget.seconds == SPIN_SECONDS_MAX / 2


def test_a_single_processor_is_never_spun_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the program that would ask next could not run."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    budget = SpinBudget()
    budget.learn(30e-6)
    assert budget.seconds == 0


async def test_a_free_lock_is_taken_without_giving_way() -> None:
    """No other task runs in between."""
    lock = ReaderLock()
    ran = []

    async def other() -> None:
        ran.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with lock:
            assert lock.is_held
        assert ran == []
    assert ran == [True]


async def test_a_waiting_task_is_woken_only_on_request() -> None:
    """Releasing wakes nobody, so that the same task may read again without a switch."""
    lock = ReaderLock()
    got: list[int] = []

    async def waiter(number: int) -> None:
        async with lock:
            got.append(number)

    async with trio.open_nursery() as nursery:
        async with lock:
            for number in range(3):
                nursery.start_soon(waiter, number)
            await trio.testing.wait_all_tasks_blocked()
            assert lock.waiting == 3
            lock.wake_successor()  # held: nobody is woken
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        for count in (1, 2, 3):
            lock.wake_successor()
            lock.wake_successor()  # the second call changes nothing
            await trio.testing.wait_all_tasks_blocked()
            assert len(got) == count


async def test_a_cancelled_wait_leaves_the_lock_usable() -> None:
    """The cancelled task is no longer counted, and the next one gets the lock."""
    lock = ReaderLock()
    async with lock:
        with trio.move_on_after(0):
            async with lock:
                pytest.fail("the lock was given twice")
        assert lock.waiting == 0
    async with lock:
        assert lock.is_held
