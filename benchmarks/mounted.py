"""A store that a benchmark mounts, with the CPU and memory of the process that serves it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from benchmarks.counters import Counters
from statefs.daemon.background import start_daemon
from statefs.layout import StoreLayout
from statefs.maintenance.store import init_store
from statefs.mounts import find_mount, unmount

Mode = Literal["plain", "uncounted", "count", "profile", "steps", "write-back"]
ROOT: Final = Path(__file__).parents[1]
END_SECONDS: Final = 60.0
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_CPU_OF_PROCESS: Final = 2
"""The low bits of a clock id that mean "CPU of a process" (clock_getcpuclockid(3))."""


@dataclass(frozen=True)
class Mounted:
    """A mounted state and its daemon."""

    state: Path
    process: subprocess.Popen[bytes]
    counters: Counters | None

    @property
    def worker_pid(self) -> int:
        """The process that answers the kernel; the daemon itself sleeps."""
        return int(psutil.Process(self.process.pid).children()[0].pid)

    @property
    def files(self) -> Path:
        """Where programs would write."""
        return self.state / "current" / "files"

    def cpu_ns(self) -> int:
        """Return the CPU that the worker has taken, all threads, user and system.

        The same as utime + stime of /proc/PID/stat, but to the nanosecond.
        """
        return time.clock_gettime_ns((~self.worker_pid << 3) | _CPU_OF_PROCESS)

    def resident_bytes(self) -> int:
        """Return how much memory the worker has."""
        return int(psutil.Process(self.worker_pid).memory_info().rss)


@contextmanager
def mounted(
    folder: Path, options: str = "", mode: Mode = "plain", store: Path | None = None
) -> Iterator[Mounted]:
    """Mount a store below `folder`, a new one unless one is given, and leave no mount behind.

    Args:
        options: what `-o` takes.
        mode: what benchmarks.daemon is to watch.
    """
    state = folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    if store is None:
        store = folder / "state.store"
        init_store(store)
    watched = folder / f"{mode}.out"
    process = start(state, store, options, mode, watched)
    try:
        yield Mounted(state, process, Counters(watched) if mode == "count" else None)
    finally:
        end(state, process)


def start(
    state: Path, store: Path, options: str, mode: Mode, watched: Path
) -> subprocess.Popen[bytes]:
    """Start a daemon and return when it says that the mount is usable."""
    words = (mode, state, store, options, watched)
    command = [sys.executable, "-m", "benchmarks.daemon", *map(str, words)]
    process, _ = start_daemon(command, StoreLayout(store))
    return process


def end(state: Path, process: subprocess.Popen[bytes]) -> None:
    """Unmount and wait for the daemon; abort the connection if it does not end."""
    mount = find_mount(state)
    try:
        if mount is not None:
            unmount(state)
        process.wait(END_SECONDS)
    except BaseException:
        if mount is not None:
            (CONNECTIONS / str(mount.device[1]) / "abort").write_text("1")
            unmount(state, lazy=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        raise


def drop_kernel_caches() -> bool:
    """Make the kernel forget names and attributes; return whether that was allowed."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
    except OSError:
        return False
    return True
