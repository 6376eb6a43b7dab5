"""Task persistence for programs on trio or asyncio: each call waits in a thread of its own.

Needs the package anyio, which is imported with the first call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeVar

from statefs.errors import UsageError
from statefs.state.task_documents import Report, Task, TaskState, WorkSession
from statefs.state.task_health import Check, PersistenceMetrics
from statefs.state.task_persistence import StatePersistence

T = TypeVar("T")


class AsyncStatePersistence:
    """A `StatePersistence` whose methods are awaited: `async with` opens it and shuts it down.

    A call that is cancelled is done all the same: a save that has begun comes to its end first.
    Listeners are called in the thread that saves, not in the event loop.

    Args:
        folder: as for `StatePersistence`, as are the options.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._open = partial(StatePersistence, folder, **options)
        self._store: StatePersistence | None = None

    @property
    def store(self) -> StatePersistence:
        """The store itself, for `recovery`, `listen` and `save_on_sigterm`, which wait for nothing.

        Raises:
            UsageError: it has not been opened.
        """
        if self._store is None:
            raise UsageError("the tasks are not open: use 'async with'")
        return self._store

    async def __aenter__(self) -> Self:
        self._store = await _in_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def state(self) -> TaskState:
        """See `StatePersistence.state`."""
        return await _in_thread(self.store.state)

    async def load_state(self) -> TaskState:
        """See `StatePersistence.load_state`."""
        return await _in_thread(self.store.load_state)

    async def save_state(self) -> None:
        """See `StatePersistence.save_state`."""
        await _in_thread(self.store.save_state)

    async def task(self, task_id: str) -> Task:
        """See `StatePersistence.task`."""
        return await _in_thread(self.store.task, task_id)

    async def load_tasks(self) -> list[Task]:
        """See `StatePersistence.load_tasks`."""
        return await _in_thread(self.store.load_tasks)

    async def save_task(self, task: Task) -> None:
        """See `StatePersistence.save_task`."""
        await _in_thread(self.store.save_task, task)

    async def update_task(self, task: Task) -> None:
        """See `StatePersistence.update_task`."""
        await _in_thread(self.store.update_task, task)

    async def delete_task(self, task_id: str) -> None:
        """See `StatePersistence.delete_task`."""
        await _in_thread(self.store.delete_task, task_id)

    async def save_session(self, session: WorkSession) -> None:
        """See `StatePersistence.save_session`."""
        await _in_thread(self.store.save_session, session)

    async def save_session_log(self, session_id: str, text: str) -> None:
        """See `StatePersistence.save_session_log`."""
        await _in_thread(self.store.save_session_log, session_id, text)

    async def load_session_log(self, session_id: str) -> str:
        """See `StatePersistence.load_session_log`."""
        return await _in_thread(self.store.load_session_log, session_id)

    async def save_report(self, report_id: str, report: Any) -> None:
        """See `StatePersistence.save_report`."""
        await _in_thread(self.store.save_report, report_id, report)

    async def load_report(self, report_id: str) -> Report:
        """See `StatePersistence.load_report`."""
        return await _in_thread(self.store.load_report, report_id)

    async def autosave(self) -> bool:
        """See `StatePersistence.autosave`."""
        return await _in_thread(self.store.autosave)

    async def health(self) -> list[Check]:
        """See `StatePersistence.health`."""
        return await _in_thread(self.store.health)

    async def metrics(self) -> PersistenceMetrics:
        """See `StatePersistence.metrics`."""
        return await _in_thread(self.store.metrics)

    async def alerts(self) -> list[str]:
        """See `StatePersistence.alerts`."""
        return await _in_thread(self.store.alerts)

    async def shutdown(self) -> None:
        """See `StatePersistence.shutdown`; done to its end even in a scope that is cancelled."""
        anyio = _anyio()
        with anyio.CancelScope(shield=True):
            await _in_thread(self.store.shutdown)


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    result: T = await _anyio().to_thread.run_sync(function, *args)
    return result


def _anyio() -> Any:
    try:
        import anyio
        import anyio.to_thread
    except ImportError:
        raise UsageError(
            "AsyncStatePersistence needs the package anyio: pip install 'statefs[async]'"
        ) from None
    return anyio
