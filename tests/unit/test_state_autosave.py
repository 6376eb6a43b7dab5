from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from statefs.errors import UsageError
from statefs.state import AsyncStatePersistence, StatePersistence, Task, WorkSession
from statefs.state.autosave import InterruptibleLock
from statefs.state.task_events import AutosaveBegun, TaskEvent, TasksLoaded, TasksSaved
from tests.harness.processes import start
from tests.unit.hand_timer import HandTimer
from tests.unit.test_state_tasks import opened, statuses


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where tasks will be."""
    return tmp_path / "work"


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Puts the handler of SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def on_disk(folder: Path) -> dict[str, int]:
    """Return `data["n"]` of each task as another process sees it."""
    with opened(folder, read_only=True) as reader:
        return {task.id: task.data["n"] for task in reader.load_tasks()}


def test_what_has_changed_is_saved_each_time_the_timer_elapses(folder: Path) -> None:
    """And nothing is written, or told, while nothing has."""
    timer, events = HandTimer(), list[TaskEvent]()
    with StatePersistence(folder, timer=timer, listeners=[events.append]) as store:
        store.save_task(Task(id="a", data={"n": 1}))
        store.update_task(Task(id="a", data={"n": 2}))
        assert on_disk(folder) == {"a": 1}
        timer.elapse()
        assert on_disk(folder) == {"a": 2}
        stamp = (folder / "state.json").stat()
        timer.elapse()
        assert (folder / "state.json").stat().st_ino == stamp.st_ino
        assert timer.seconds[:2] == [30.0, 30.0]
    kinds = [type(event) for event in events]
    assert kinds == [TasksSaved, TasksLoaded, TasksSaved, AutosaveBegun, TasksSaved]


def test_a_task_that_is_new_or_has_another_status_is_saved_at_once(folder: Path) -> None:
    """Else it waits: for autosave, another save of everything, or the end."""
    with opened(folder) as store:
        store.update_task(Task(id="a", data={"n": 1}))
        assert on_disk(folder) == {"a": 1}
        store.update_task(Task(id="a", data={"n": 2}))
        assert on_disk(folder) == {"a": 1}
        store.update_task(Task(id="a", status="completed", data={"n": 3}))
        assert on_disk(folder) == {"a": 3}
        store.update_task(Task(id="a", status="completed", data={"n": 4}))
        assert store.task("a").data == store.load_state().task("a").data == {"n": 4}
        assert on_disk(folder) == {"a": 4}, "a load settles what is unsaved"
        store.update_task(Task(id="a", status="completed", data={"n": 5}))
        store.save_state()
        assert on_disk(folder) == {"a": 5}
        store.update_task(Task(id="a", status="completed", data={"n": 6}))
    assert on_disk(folder) == {"a": 6}


def test_a_shutdown_ends_the_thread_and_lets_the_next_one_in(folder: Path) -> None:
    """However often it is called."""
    store = StatePersistence(folder)
    names = [thread.name for thread in threading.enumerate()]
    assert "statefs-autosave" in names
    for _ in range(2):
        store.shutdown()
    assert "statefs-autosave" not in [thread.name for thread in threading.enumerate()]
    StatePersistence(folder).shutdown()


def ended_by_sigterm(folder: Path, prepare: Callable[[], None]) -> int:
    """Have a process change a task and be told to end; return its exit code, or minus the signal.

    Args:
        folder: of its tasks.
        prepare: is called before the store is told to listen to SIGTERM.
    """
    reader, writer = os.pipe()

    def child() -> None:
        prepare()
        store = StatePersistence(folder)
        store.save_on_sigterm()
        store.save_task(Task(id="a", data={"n": 1}))
        store.update_task(Task(id="a", data={"n": 2}))
        os.write(writer, b"ready")
        while True:
            signal.pause()

    pid = start(child)
    assert os.read(reader, 9) == b"ready"
    os.close(reader)
    os.close(writer)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_sigterm_saves_and_then_ends_the_process_as_ever(folder: Path) -> None:
    """By the default, with the status of a signal; what was unsaved is on the disk."""
    assert ended_by_sigterm(folder, lambda: None) == -signal.SIGTERM
    assert on_disk(folder) == {"a": 2}


def test_sigterm_goes_on_to_the_handler_that_was_there(folder: Path) -> None:
    """It finds everything saved."""

    def handler(*_: object) -> None:
        os._exit(7 if on_disk(folder) == {"a": 2} else 1)

    def prepare() -> None:
        signal.signal(signal.SIGTERM, handler)

    assert ended_by_sigterm(folder, prepare) == 7


@pytest.mark.usefixtures("sigterm")
def test_a_program_that_ignores_sigterm_goes_on_doing_so(folder: Path) -> None:
    """It is saved all the same; a shutdown puts the old handler back, if it is ours to put back."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with opened(folder) as store:
        store.save_on_sigterm()
        store.save_on_sigterm()
        store.save_task(Task(id="a", data={"n": 1}))
        store.update_task(Task(id="a", data={"n": 2}))
        signal.raise_signal(signal.SIGTERM)
        assert on_disk(folder) == {"a": 2}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    with opened(folder) as store:
        store.save_on_sigterm()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_the_main_thread_can_handle_sigterm(folder: Path) -> None:
    """Another one is told so, and the store is as it was."""
    said: list[str] = []
    with opened(folder) as store:

        def ask() -> None:
            try:
                store.save_on_sigterm()
            except UsageError as error:
                said.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        store.save_task(Task(id="a"))
    assert said == ["only the main thread of a program can handle SIGTERM"]


@pytest.mark.usefixtures("sigterm")
def test_sigterm_in_the_midst_of_a_save_waits_for_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file of the save under way is nobody else's to replace."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with opened(folder) as store:
        store.save_on_sigterm()
        rename, saved_in_rename = os.rename, list[int]()

        def interrupted(*paths: str) -> None:
            inode = (folder / "state.json").stat().st_ino
            signal.raise_signal(signal.SIGTERM)
            saved_in_rename.append((folder / "state.json").stat().st_ino - inode)
            rename(*paths)

        store.save_task(Task(id="b", data={"n": 1}))
        store.update_task(Task(id="b", data={"n": 2}))
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", interrupted)
            store.save_task(Task(id="a", data={"n": 1}))
        assert saved_in_rename and set(saved_in_rename) == {0}
        assert on_disk(folder) == {"a": 1, "b": 2}


def test_what_waits_for_the_lock_is_done_once_when_it_is_free() -> None:
    """By the thread that has it, at the outermost end; another one does not wait for that."""
    done: list[str] = []
    lock = InterruptibleLock()
    with lock:
        with lock:
            lock.when_free(lambda: done.append("later"))
        assert done == []
        thread = threading.Thread(target=lock.when_free, args=(lambda: done.append("other"),))
        thread.start()
        thread.join()
        assert done == ["other"]
    assert done == ["other", "later"]
    with lock:
        pass
    lock.when_free(lambda: done.append("now"))
    assert done == ["other", "later", "now"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_api_does_the_same_on_both_event_loops(folder: Path, backend: str) -> None:
    """Each method of it, with other tasks of the loop running meanwhile."""

    async def work() -> None:
        async with AsyncStatePersistence(folder, autosave_seconds=0) as store:
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(store.save_task, Task(id=f"t{number}"))
            await store.update_task(Task(id="t0", status="completed"))
            await store.delete_task("t1")
            await store.save_session(WorkSession(id="s"))
            await store.save_session_log("s", "log")
            await store.save_report("r", [1])
            assert await store.load_session_log("s") == "log"
            assert (await store.load_report("r")).report == [1]
            assert (await store.task("t0")).status == "completed"
            assert await store.state() == await store.load_state()
            assert [task.id for task in await store.load_tasks()].count("t4") == 1
            await store.save_state()
            assert await store.autosave() is True
            assert all(check.ok for check in await store.health())
            assert await store.alerts() == []
            assert (await store.metrics()).tasks == 4
        with pytest.raises(UsageError, match="closed"):
            await store.state()
        with pytest.raises(UsageError, match="async with"):
            await AsyncStatePersistence(folder).state()

    anyio.run(work, backend=backend)
    with opened(folder) as store:
        assert statuses(store) == {
            "t0": "completed", "t2": "pending", "t3": "pending", "t4": "pending"}  # fmt: skip


def test_a_cancelled_program_shuts_its_store_down(folder: Path) -> None:
    """What was unsaved is on the disk, and the lock is free."""

    async def work() -> None:
        with anyio.CancelScope() as scope:
            async with AsyncStatePersistence(folder, autosave_seconds=0) as store:
                await store.save_task(Task(id="a", data={"n": 1}))
                await store.update_task(Task(id="a", data={"n": 2}))
                scope.cancel()
                await anyio.sleep(0)
        assert scope.cancelled_caught

    anyio.run(work, backend="trio")
    opened(folder).shutdown()
    assert on_disk(folder) == {"a": 2}


def test_importing_the_stores_needs_no_anyio() -> None:
    """It is an extra."""
    program = "import sys, statefs.state; sys.exit('anyio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.usefixtures("sigterm")
def test_a_forked_child_that_is_ended_saves_nothing(folder: Path) -> None:
    """What it remembers is older than what its parent has saved since."""
    reader, writer = os.pipe()

    def child() -> None:
        os.write(writer, b"ready")
        while True:
            signal.pause()

    with opened(folder) as store:
        store.save_on_sigterm()
        store.save_task(Task(id="a", data={"n": 1}))
        store.update_task(Task(id="a", data={"n": 2}))
        pid = start(child)
        assert os.read(reader, 9) == b"ready"
        store.update_task(Task(id="a", data={"n": 3}))
        store.save_state()
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert on_disk(folder) == {"a": 3}
    os.close(reader)
    os.close(writer)
