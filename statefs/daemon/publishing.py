"""Metrics for who reads them by himself: a file that is written again and again, a local port."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from statefs.config import Metrics
from statefs.durable import write_file
from statefs.errors import InvalidConfig
from statefs.maintenance.store import Store
from statefs.mounts import call_outside

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often it is looked whether settings have changed."""
RETRY_SECONDS: Final = 30.0
"""Before a port that was taken, or a file that could not be written, is tried again."""
LOCALHOST: Final = "127.0.0.1"
TEXTFILE_MODE: Final = 0o644
"""The collector that reads it is another user."""

Document = dict[str, Any]


class Publisher:
    """Publishes the metrics of one mounted store.

    Args:
        store: opened under its lock.
        status: returns the status document with what the mount's process knows; on the loop.
    """

    def __init__(self, store: Store, status: Callable[[], Document]) -> None:
        self._store = store
        self._status = status
        self._port = 0
        self._close: Callable[[], None] | None = None
        self._port_due = 0.0
        self._file_due = 0.0
        self._complaints: dict[str, str] = {}
        self._known: Document = {}

    async def run(self) -> None:
        """Do what [metrics] says, until cancelled."""
        try:
            while True:
                settings = self._settings()
                await self._serve(settings.port)
                await self._write(settings)
                await trio.sleep(min(TICK_SECONDS, settings.interval_seconds))
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()

    def _settings(self) -> Metrics:
        try:
            return self._store.settings.read().metrics
        except InvalidConfig:
            return Metrics()  # the keeper complains

    async def _serve(self, port: int) -> None:
        now = trio.current_time()
        if port == self._port or now < self._port_due:
            return
        await self._stop()
        if port:
            token = trio.lowlevel.current_trio_token()
            self._known = self._status()
            ask = partial(self._asked, token)
            try:
                self._close = await trio.to_thread.run_sync(self._started, port, ask)
                self._port = port
                self._complaints.pop("port", None)
            except OSError as error:
                self._port_due = now + RETRY_SECONDS
                self._complain("port", f"cannot be served on port {port}: {error.strerror}")

    def _asked(self, token: trio.lowlevel.TrioToken) -> Document:
        """Return the status, from a thread; what was known last where the mount has just ended."""
        try:
            self._known = trio.from_thread.run_sync(self._status, trio_token=token)
        except trio.RunFinishedError:
            pass
        return self._known

    async def _stop(self) -> None:
        """Close the port, if one is open; takes half a second."""
        if self._close is not None:
            await trio.to_thread.run_sync(self._close)
        self._close, self._port = None, 0

    def _started(self, port: int, ask: Callable[[], Document]) -> Callable[[], None]:
        """Start to listen; return what ends that. Blocks while prometheus_client is loaded."""
        from prometheus_client import start_http_server

        from statefs.telemetry.metrics import registry_of

        registry = registry_of(ask, self._store.tallies)
        server, thread = start_http_server(port, LOCALHOST, registry)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close

    async def _write(self, settings: Metrics) -> None:
        now = trio.current_time()
        if not settings.textfile or now < self._file_due:
            return
        self._file_due = now + settings.interval_seconds
        text = partial(self._text, self._status())
        try:
            data = await trio.to_thread.run_sync(text)
            await trio.to_thread.run_sync(
                call_outside, partial(_put, Path(settings.textfile), data)
            )
            self._complaints.pop("textfile", None)
        except OSError as error:
            self._file_due = now + max(RETRY_SECONDS, settings.interval_seconds)
            self._complain(
                "textfile", f"cannot be written to {settings.textfile}: {error.strerror}"
            )

    def _text(self, status: Document) -> bytes:
        from statefs.telemetry.metrics import exposition

        return exposition(status, self._store.tallies)

    def _complain(self, setting: str, complaint: str) -> None:
        """Tell what is wrong with a setting of [metrics], once."""
        if complaint != self._complaints.get(setting):
            log.error("metrics %s", complaint)
        self._complaints[setting] = complaint


def _put(path: Path, data: bytes) -> None:
    write_file(path, data)
    path.chmod(TEXTFILE_MODE)  # past the umask
