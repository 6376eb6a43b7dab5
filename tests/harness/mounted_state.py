"""One state of a test: its store, its mount, its daemon, driven through the command line."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statefs.layout import StoreLayout
from statefs.mounts import MountInfo
from tests.harness.system_calls import errno_of
from tests.leftovers import (
    COMMAND_SECONDS,
    abort_connections,
    free_mount,
    mounts_below,
    verify_store,
)

LOUD: Final = (" WARNING", " ERROR", " CRITICAL", "Traceback")
"""What a line of the daemon's log begins with, or holds after its time, when something is wrong."""
HEALTH: Final = " WARNING statefs.telemetry.logged: "
"""What is not well, looked at now and then: its cause has a line of its own, which tests know; and
how full a machine's disk is, is no test's doing."""
LOG_LINES_SHOWN: Final = 60
"""Of the daemon's log, when a test fails: two tracebacks."""
END_SECONDS: Final = 30.0
"""What the daemon does by itself takes a second or two; not done within this, it is never done."""
POLL_SECONDS: Final = 0.05
"""Between two looks at what the daemon does in the background."""


@dataclass
class MountedState:
    """A state that a test mounts, saves, kills and mounts again.

    Args:
        state: the mount point.
        store: the backing store.
        options: what follows `-o`; empty for none.
        expected_log: a pattern of the warnings and errors that the test provokes.
    """

    state: Path
    store: Path
    options: str = ""
    expected_log: str | None = None

    @property
    def current(self) -> Path:
        """The writable tree."""
        return self.state / "current"

    @property
    def files(self) -> Path:
        """The folder of current/ that most tests work in."""
        return self.current / "files"

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots."""
        return self.state / "snapshots"

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one `statefs` command and return what it said, whatever its exit code."""
        return subprocess.run(
            [sys.executable, "-m", "statefs", *map(str, arguments)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )

    def command(self, *arguments: str | Path) -> str:
        """Run one `statefs` command that must succeed and return its standard output."""
        done = self.run(*arguments)
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"statefs {arguments}: exit {done.returncode}: {said}"
        return done.stdout

    def mount(self) -> None:
        """Mount the state; a new store is made where none is."""
        options = ["-o", self.options] if self.options else []
        self.command("mount", self.state, "--store", self.store, *options)

    @contextmanager
    def mounting(self) -> Iterator[subprocess.Popen[bytes]]:
        """Mount the state beside the block; the command has ended, in any way, after it."""
        command = [sys.executable, "-m", "statefs", "mount", str(self.state)]
        options = ["-o", self.options] if self.options else []
        with subprocess.Popen(
            [*command, "--store", str(self.store), *options],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            yield process
            process.wait(COMMAND_SECONDS)

    def umount(self) -> None:
        """Unmount and wait until the daemon has let go of the store."""
        pid = self.daemon_pid()
        self.command("umount", self.state)
        wait_until_gone(pid)

    def remount(self) -> None:
        """Unmount and mount again."""
        self.umount()
        self.mount()

    def kill(self) -> None:
        """Kill the daemon with SIGKILL and take its dead mount away."""
        self.kill_daemon()
        detach(self.state)

    def kill_daemon(self) -> None:
        """Kill supervisor and worker with SIGKILL; nobody answers for the mount any more."""
        status = self.status()
        pids = [status["supervisor_pid"], status["worker_pid"]]
        for pid in pids:  # the supervisor first, or it would start another worker
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_until_gone(pid)

    def daemon_pid(self) -> int:
        """Return the pid of the supervisor, which ends with the mount."""
        return self._pid("supervisor_pid")

    def worker_pid(self) -> int:
        """Return the pid of the process that serves the mount."""
        return self._pid("worker_pid")

    def _pid(self, which: str) -> int:
        pid = self.status()[which]
        assert isinstance(pid, int) and pid > 1, pid
        return pid

    def status(self) -> dict[str, Any]:
        """Return what `status --json` says."""
        answer: dict[str, Any] = json.loads(self._of_store("status", "--json"))
        return answer

    def listing(self) -> list[dict[str, Any]]:
        """Return what `list --json` says about every snapshot, oldest first."""
        answer = json.loads(self._of_store("list", "--json"))
        return list(answer["snapshots"])

    def save(self, message: str = "", **labels: str) -> str:
        """Take a snapshot and return its name."""
        arguments = ["-m", message] if message else []
        for key, value in labels.items():
            arguments += ["--label", f"{key}={value}"]
        return self._of_store("save", *arguments).strip()

    def delete(self, snapshot: str) -> None:
        """Delete a snapshot."""
        self.command("delete", self.state, snapshot, *self._store_option())

    def verify(self) -> None:
        """Fail when `statefs verify` finds anything wrong with the store."""
        trouble = verify_store(StoreLayout(self.store))
        assert trouble is None, trouble

    def verify_mounted(self) -> None:
        """Fail when `statefs verify`, which then asks the daemon, finds anything wrong."""
        self.command("verify", self.state)

    def log_lines(self) -> list[str]:
        """Return what the daemon has logged."""
        log = StoreLayout(self.store).log
        return log.read_text(errors="replace").splitlines() if log.exists() else []

    def loud_lines(self) -> list[str]:
        """Return the warnings and errors in the daemon's log that the test does not expect."""
        loud = [
            line
            for line in self.log_lines()
            if any(word in line for word in LOUD) and HEALTH not in line
        ]
        if self.expected_log is None:
            return loud
        return [line for line in loud if not re.search(self.expected_log, line)]

    def is_mounted(self) -> bool:
        """Return whether the state is mounted, without looking into it."""
        return bool(mounts_below([self.state]))

    def _of_store(self, command: str, *arguments: str) -> str:
        return self.command(command, self.state, *self._store_option(), *arguments)

    def _store_option(self) -> list[str]:
        return [] if self.is_mounted() else ["--store", str(self.store)]

    def dispose(self) -> None:
        """Unmount in the ordinary way, then check that the store is sound and the log quiet."""
        troubles = [free_mount(mount) for mount in mounts_below([self.state])]
        assert not any(troubles), troubles
        self.verify()
        loud = self.loud_lines()
        assert not loud, "\n".join(loud)


@contextmanager
def mounted(
    folder: Path, options: str = "", *, store: Path | None = None
) -> Iterator[MountedState]:
    """Mount a new state in `folder`; afterwards unmount it and check its store."""
    made = MountedState(folder / "state", store or folder / "state.store", options)
    with mounted_as(made):
        yield made


@contextmanager
def mounted_as(made: MountedState) -> Iterator[None]:
    """Mount a new state; afterwards unmount it and check its store."""
    made.state.mkdir()
    try:
        made.mount()
        yield
    except BaseException:
        detach(made.state)
        wait_for_lock(made.store)
        # pytest shows it with the failure; the log itself goes away with the folder.
        print("\n".join(made.log_lines()[-LOG_LINES_SHOWN:]))  # noqa: T201
        raise
    made.dispose()


@contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """Make a folder that every user may pass through (pytest's own is 0700) and remove it."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=f"statefs-{prefix}-")))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        detach(folder)
        shutil.rmtree(folder)


@contextmanager
def aborted_after(seconds: float, folder: Path) -> Iterator[None]:
    """Abort the mounts in `folder` when the block takes longer.

    A system call that waits for a hung daemon cannot be interrupted, it fails when its
    connection is aborted.
    """
    timer = threading.Timer(seconds, lambda: [*map(force_apart, mounts_below([folder]))])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def wait_for_lock(store: Path) -> None:
    """Return when no process has the store open, so that it can be removed."""
    lock = StoreLayout(store).lock
    if not lock.exists():
        return
    with open(lock, "rb") as file:

        def is_free() -> bool:
            return errno_of(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)) == 0

        eventually(is_free, f"{lock} is let go of")


def several_users() -> str:
    """Return the mount options for a test that looks at the mount as several users."""
    return "allow_other,suid,dev" if os.geteuid() == 0 else ""


def detach(folder: Path) -> None:
    """Take away every mount in `folder`, also those whose daemon is dead or hangs."""
    for mount in mounts_below([folder]):
        force_apart(mount)
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        if mounts_below([mount.mount_point]):
            subprocess.run([*command, str(mount.mount_point)], check=True, timeout=COMMAND_SECONDS)


def force_apart(mount: MountInfo) -> None:
    """Make every system call that waits for the daemon of a mount fail.

    umount -f does that even when it cannot unmount, and where fusectl is not mounted.
    """
    abort_connections([mount])
    if os.geteuid() == 0:
        command = ["umount", "-f", str(mount.mount_point)]
        subprocess.run(command, stderr=subprocess.DEVNULL, timeout=COMMAND_SECONDS)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return when `condition` holds; fail, saying `what` was awaited, at the deadline."""
    end = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {END_SECONDS} seconds"
        time.sleep(POLL_SECONDS)


def wait_until_gone(pid: int) -> None:
    """Return when process `pid` has ended; fail when it still runs at the deadline."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        ended = poll.poll(END_SECONDS * 1000)
    finally:
        os.close(descriptor)
    assert ended, f"process {pid} still runs after {END_SECONDS} seconds"
