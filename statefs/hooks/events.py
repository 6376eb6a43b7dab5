"""Commands of [[events]] in statefs.toml, run when something has happened.

They run one after the other in a process of its own, for a daemon that started a program lying in
its own mount would wait for itself. Who tells of an event hands it to a thread and goes on.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

import statefs
from statefs.config import Config
from statefs.errors import HookFailed, InvalidConfig
from statefs.hooks.commands import Deadline, run
from statefs.telemetry.events import AnyEvent, name_of
from statefs.telemetry.lines import begin_log, choose_format

log = logging.getLogger(__name__)

WAITING_MAX: Final = 1000
"""Commands that wait for their turn; more are dropped, as they come faster than they end."""
LEAVE_SECONDS: Final = 2.0
"""How long the end of a mount waits until what has happened is handed over."""
_PROGRAM: Final = (
    "import sys; sys.path[0] = sys.argv[1]; from statefs.hooks.events import main; main()"
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One command to be run, and for what."""

    command: tuple[str, ...]
    deadline_seconds: float
    event: dict[str, Any]
    store: str
    log_format: str


class EventCommands:
    """Runs the commands of one store's settings; `note` is a listener.

    Args:
        store: its folder.
        settings: returns what statefs.toml says now. Raises InvalidConfig.
    """

    def __init__(self, store: Path, settings: Callable[[], Config]) -> None:
        self._store = str(store)
        self._settings = settings
        self._jobs: queue.Queue[Job | None] = queue.Queue(WAITING_MAX)
        self._thread: threading.Thread | None = None
        self._drops = False

    def note(self, event: AnyEvent) -> None:
        """Have the commands run that want to know of an event."""
        try:
            config = self._settings()
        except InvalidConfig:
            return  # the keeper complains
        name = name_of(type(event))
        for hook in config.events:
            if not hook.on or name in hook.on:
                self._add(
                    Job(
                        command=hook.hook,
                        deadline_seconds=float(hook.deadline_seconds),
                        event=msgspec.to_builtins(event),
                        store=self._store,
                        log_format=config.log_format,
                    )
                )

    def _add(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._hand_over, name="statefs-events", daemon=True
            )
            self._thread.start()
        try:
            self._jobs.put_nowait(job)
            self._drops = False
        except queue.Full:
            if not self._drops:
                log.error("commands of [[events]] end too slowly: some are not run")
            self._drops = True

    def _hand_over(self) -> None:
        """Pass jobs on to a process, which is started with the first and anew if it has ended."""
        process: subprocess.Popen[bytes] | None = None
        while (job := self._jobs.get()) is not None:
            line = msgspec.json.encode(job) + b"\n"
            for _ in range(2):
                if process is None or process.poll() is not None:
                    try:
                        process = _started()
                    except OSError as error:
                        log.error("a command for %s is not run: %s", job.event["event"], error)
                        break
                assert process.stdin is not None
                try:
                    process.stdin.write(line)
                    process.stdin.flush()
                    break
                except BrokenPipeError:
                    process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()
            if process.poll() is None:
                process.returncode = 0  # it ends by itself; Popen need not warn of that

    def close(self) -> None:
        """Hand over what has happened, and let the process end by itself; what waits is dropped."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._jobs.put(None, timeout=LEAVE_SECONDS)
            self._thread.join(LEAVE_SECONDS)


def _started() -> subprocess.Popen[bytes]:
    root = str(Path(statefs.__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, root],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> None:
    """Be the process: run each command that is read, and log what goes wrong."""
    begin_log()
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        choose_format(job.log_format)
        event = str(job.event["event"])
        env = {
            "STATEFS_EVENT": event,
            "STATEFS_EVENT_JSON": msgspec.json.encode(job.event).decode(),
            "STATEFS_STORE": job.store,
        }
        try:
            run(job.command, Deadline(job.deadline_seconds), env=env)
        except HookFailed as error:
            log.error("a command for %s failed: %s", event, error)
