"""What a test must not leave behind: mounts, processes, stores. Finds them and takes them away.

Nothing here looks inside a mount: one whose daemon hangs would hang the look.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from statefs.layout import StoreLayout
from statefs.mounts import MountInfo, statefs_mounts

RUN_VARIABLE: Final = "STATEFS_TEST_RUN"
"""Set for the length of a test run and inherited by its processes, which are found by it."""
STORE_DEPTH_MAX: Final = 4
"""Folders below a test's own in which stores are looked for."""
COMMAND_SECONDS: Final = 60.0
END_SECONDS: Final = 10.0
"""A daemon outlives its mount by the time it takes to close the store."""
MEMORY: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where stores are made, if it is there, of which a test watches itself what is synced."""
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")


def mounts_below(folders: Iterable[Path]) -> list[MountInfo]:
    """Return the statefs mounts in any of `folders`, innermost first."""
    places = [Path(os.path.realpath(folder)) for folder in folders]
    found = [
        mount
        for mount in statefs_mounts()
        if any(mount.mount_point.is_relative_to(place) for place in places)
    ]
    return sorted(found, key=lambda mount: len(mount.mount_point.parts), reverse=True)


def abort_connections(mounts: Iterable[MountInfo]) -> None:
    """Make every system call that waits for the daemons of `mounts` fail, now and later."""
    for mount in mounts:
        try:
            (CONNECTIONS / str(mount.device[1]) / "abort").write_text("1")
        except OSError:  # it is gone, or the mount is another user's
            continue


def free_mount(mount: MountInfo) -> str | None:
    """Unmount as a user would, else by force.

    Returns:
        None when the ordinary way worked; else what went wrong with it.
    """
    where = str(mount.mount_point)
    trouble = _failure([sys.executable, "-m", "statefs", "umount", where])
    if trouble is None and not mounts_below([mount.mount_point]):
        return None
    abort_connections([mount])
    for command in (["fusermount3", "-u", where], ["umount", "-l", where]):
        if mounts_below([mount.mount_point]):
            _failure(command)
    return f"{where} could not be unmounted: {trouble or 'it is mounted again'}"


def _failure(command: list[str]) -> str | None:
    """Run a command and return what it complained about, None when it succeeded."""
    try:
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"


def stores_below(folder: Path) -> list[StoreLayout]:
    """Return the stores in `folder`, in which nothing is mounted any more."""
    found = []
    for path, names, files in os.walk(folder):
        layout = StoreLayout(Path(path))
        depth = len(layout.root.relative_to(folder).parts)
        if layout.meta_db.name in files and layout.objects.name in names:
            found.append(layout)
            names.clear()
        elif depth >= STORE_DEPTH_MAX:
            names.clear()
    return sorted(found, key=lambda layout: layout.root)


def verify_store(layout: StoreLayout) -> str | None:
    """Return what `statefs verify` finds wrong with a store, None when it is sound."""
    command = [sys.executable, "-m", "statefs", "verify", "--store", str(layout.root), "--json"]
    done = subprocess.run(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    if done.returncode == 0:
        return None
    return f"{layout.root}: verify exits with {done.returncode}: {done.stdout}{done.stderr}"


def left_running(run: str) -> list[str]:
    """End the processes that inherited `run` and do not end by themselves; return what they were.

    Whatever a test starts counts: daemons, and the servers and programs of applications.
    """
    _, alive = psutil.wait_procs(_processes_of_run(run), timeout=END_SECONDS)
    found = []
    for process in sorted(alive, key=lambda process: process.pid):  # a supervisor, then its worker
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.cmdline()}")
                process.kill()
        except psutil.NoSuchProcess:
            continue  # it has just ended
    return found


def _processes_of_run(run: str) -> list[psutil.Process]:
    """Return the living processes that inherited `run`, without this one and those above it."""
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(RUN_VARIABLE) == run:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def left_on_disk(folder: Path) -> list[Path]:
    """Return what lies in a run's temporary folder, pytest's own part left out, and in memory."""
    here = [path for path in folder.iterdir() if not path.name.startswith("pytest-of-")]
    return sorted(here + left_in_memory(folder.name))


def left_in_memory(run: str) -> list[Path]:
    """Return the folders that `memory_folder` made for `run` and that are still there."""
    return sorted(Path(MEMORY).glob(f"{run}-*")) if MEMORY else []


@contextmanager
def memory_folder(kind: str) -> Iterator[Path]:
    """Make a temporary folder in memory, where there is a filesystem for that.

    Args:
        kind: what it is for, a part of its name; so is the test run, if there is one.
    """
    run = os.environ.get(RUN_VARIABLE, "statefs")
    with tempfile.TemporaryDirectory(prefix=f"{run}-{kind}-", dir=MEMORY) as name:
        yield Path(name)
