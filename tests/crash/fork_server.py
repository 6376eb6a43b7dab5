"""Daemons for crash tests, forked from a process that has imported everything.

A daemon started by the command line spends most of its start importing. One from here is ready in
a tenth of that, so that a minute has many more kills. It is the daemon of the product, a supervisor
and its worker, but for two things: it moves its log into meta.db much more often, and keeps a
marker file while it does. Both processes are one group, and so can be killed at the same instant.

`python -m tests.crash.fork_server` reads requests from standard input, one JSON line each, and
answers each with two lines: the daemon's pid, and what the daemon says of its readiness.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

import apsw
import psutil

from statefs.daemon import tasks, worker
from statefs.daemon.spawning import READY_VARIABLE
from statefs.daemon.supervisor import run_foreground
from statefs.errors import StatefsError
from statefs.layout import StoreLayout
from statefs.maintenance.store import init_store
from statefs.mounts import MountOptions
from tests.harness.mounted_state import MountedState

ROOT: Final = Path(__file__).resolve().parents[2]
LOG_PAGES: Final = 24
"""Log length at which the daemon of a crash test moves it: a few dozen operations."""
LOG_PAGES_RESTART: Final = 96
LOG_PAUSE_SECONDS: Final = 0.01
END_SECONDS: Final = 10.0
DESCRIPTORS_MAX: Final = 1024
"""More than a supervisor has open."""


def marker_of(store: Path) -> Path:
    """Return the file that is there while the daemon of `store` moves its log into meta.db."""
    return store.with_name(f"{store.name}.checkpoint")


class ForkServer:
    """The process that daemons are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.fork_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, state: Path, store: Path, options: str) -> int:
        """Begin to mount and return the daemon's pid; `ready` must be called once after it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(state), str(store), options]) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def ready(self) -> str:
        """Return what keeps the daemon started last from being ready; "" when it is."""
        said = self._line()
        return "" if said == "{}" else said or "the daemon died"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(END_SECONDS)


class ForkedState(MountedState):
    """A state whose daemons are forked.

    Args:
        server: where from.
        state: the mount point.
        store: the backing store.
        options: what follows `-o`.
    """

    def __init__(self, server: ForkServer, state: Path, store: Path, options: str = "") -> None:
        super().__init__(state, store, options)
        self._server = server
        self._group = 0

    def begin_mount(self) -> int:
        """Start a daemon and return its pid; `end_mount` must follow."""
        if not self.store.exists():
            init_store(self.store)
        self._group = self._server.start(self.state, self.store, self.options)
        return self._group

    def end_mount(self) -> str:
        """Return why the daemon does not serve the mount, "" when it does."""
        return self._server.ready()

    def mount(self) -> None:
        """Mount the state; a new store is made where none is."""
        self.begin_mount()
        trouble = self.end_mount()
        assert not trouble, trouble

    def daemon_pid(self) -> int:
        """Return the pid, and process group, of the supervisor started last."""
        return self._group

    def worker_pid(self) -> int:
        """Return the pid of the process that serves the mount."""
        return int(psutil.Process(self._group).children()[0].pid)


class MarkingConnection(apsw.Connection):
    """Keeps a file, named by `marker`, while it moves the log into meta.db."""

    marker = Path()

    def wal_checkpoint(self, *arguments: Any, **named: Any) -> tuple[int, int]:
        """Move the log."""
        self.marker.touch()
        try:
            return super().wal_checkpoint(*arguments, **named)
        finally:
            self.marker.unlink(missing_ok=True)


def _serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # daemons that end leave no zombie
    for line in sys.stdin:
        state, store, options = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _run_daemon(Path(state), Path(store), options, writer)
        os.close(writer)
        _say(str(pid))
        with open(reader) as said:
            _say(said.readline().strip())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fork_worker(end: socket.socket) -> int:
    """Be the worker in a child, in the supervisor's process group, so that both can be killed."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        fd = end.detach()
        os.closerange(3, fd)
        os.closerange(fd + 1, DESCRIPTORS_MAX)
        code = worker.main(socket.socket(fileno=fd))
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run_daemon(state: Path, store: Path, options: str, ready: int) -> None:
    """Be the daemon; end the process with its exit code."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(StoreLayout(store).log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ[READY_VARIABLE] = str(ready)
        MarkingConnection.marker = marker_of(store)
        setattr(apsw, "Connection", MarkingConnection)  # noqa: B010 - mypy: a type is not assigned
        for name, value in (
            ("WAL_PAGES_MAX", LOG_PAGES),
            ("WAL_PAGES_RESTART", LOG_PAGES_RESTART),
            ("CHECKPOINT_PAUSE_SECONDS", LOG_PAUSE_SECONDS),
        ):
            setattr(tasks, name, value)
        run_foreground(state, store, MountOptions.parse(options), _fork_worker)
        code = 0
    except StatefsError as error:
        code = error.exit_code
        sys.stderr.write(f"statefs: error: {error}\n")
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # Daemons must find the engine's modules loaded, the mount's among them.
    import statefs.fuse.operations
    import statefs.fuse.session_loop  # noqa: F401 - imported for the daemons

    _serve()
