"""What every test has: the command line, a mounted state, and a check of what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from statefs.layout import StoreLayout, default_store
from tests.harness.mounted_state import HEALTH
from tests.leftovers import (
    COMMAND_SECONDS,
    RUN_VARIABLE,
    abort_connections,
    free_mount,
    left_in_memory,
    left_on_disk,
    left_running,
    mounts_below,
    stores_below,
    verify_store,
)

TESTS: Final = Path(__file__).parent
MARKS_OF_FOLDERS: Final = {
    "mounted": ("mounted",),
    "apps": ("mounted", "apps"),
    "crash": ("mounted", "crash"),
}
"""The marks that a test gets from the folder it lies in."""
FOLDERS_IN_ORDER: Final = ("", "unit", "project", "model", "mounted", "crash", "apps")
"""Cheap tests first, honest tests last; where several processes test, the long ones first."""
RUN_FOLDER: Final = pytest.StashKey[Path]()
ABORT_SHARE: Final = 0.8
"""The part of a test's time limit after which its mounts are aborted."""
LOG_LINES_SHOWN: Final = 100
LOUD: Final = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback")

Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, skip what cannot mount here, and put all in their order."""
    reason = why_no_mount()
    for item in items:
        for mark in MARKS_OF_FOLDERS.get(folder_of(item), ()):
            item.add_marker(mark)
        if "state" in getattr(item, "fixturenames", ()):
            item.add_marker("mounted")
        if reason and item.get_closest_marker("mounted"):
            item.add_marker(pytest.mark.skip(reason=reason))

    are_beside_others = "PYTEST_XDIST_WORKER" in os.environ  # then none is to be left over alone
    order = FOLDERS_IN_ORDER[::-1] if are_beside_others else FOLDERS_IN_ORDER
    items.sort(key=lambda item: order.index(folder_of(item)))


def folder_of(item: pytest.Item) -> str:
    """Return the folder of tests/ that a test lies in, "" for a test from elsewhere."""
    parts = item.path.relative_to(TESTS).parts if item.path.is_relative_to(TESTS) else ("",)
    return parts[0] if parts[0] in FOLDERS_IN_ORDER else ""


def why_no_mount() -> str | None:
    """Return why this machine cannot mount, None when it can."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"no FUSE mounts here: /dev/fuse: {error.strerror}"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Give the run one temporary folder, in which everything it leaves behind can be found."""
    folder = Path(tempfile.mkdtemp(prefix="statefs-tests-"))
    folder.chmod(0o755)  # servers run by tests as another user pass through it
    config.stash[RUN_FOLDER] = folder
    tempfile.tempdir = str(folder)
    os.environ["TMPDIR"] = str(folder)
    os.environ[RUN_VARIABLE] = folder.name
    os.environ.pop("STATEFS_STATE", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run's folders, unless something is still mounted there."""
    folder = config.stash[RUN_FOLDER]
    for path in left_in_memory(folder.name):
        shutil.rmtree(path)
    if not mounts_below([folder]):
        shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fail the run when it leaves a mount, a process or a temporary store."""
    folder = pytestconfig.stash[RUN_FOLDER]
    yield
    mounts = mounts_below([folder])
    problems = [f"left mounted: {mount.mount_point}" for mount in mounts]
    problems += [trouble for trouble in map(free_mount, mounts) if trouble]
    problems += [f"left running: {process}" for process in left_running(folder.name)]
    problems += [f"left on disk: {path}" for path in left_on_disk(folder)]
    assert not problems, "\n".join(problems)


@pytest.fixture(autouse=True)
def abort_of_hung_mounts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Abort the run's mounts before the time limit of a test that uses them.

    A system call that waits for a hung daemon cannot be interrupted, not even by the end of its
    process. It fails when the connection is aborted, and then the test does, and says where.
    """
    if not request.node.get_closest_marker("mounted"):
        yield
        return
    folder = request.config.stash[RUN_FOLDER]
    limit = request.node.get_closest_marker("timeout")
    seconds = float(limit.args[0] if limit else request.config.getini("timeout"))
    watchdog = threading.Timer(
        seconds * ABORT_SHARE, lambda: abort_connections(mounts_below([folder]))
    )
    watchdog.daemon = True
    watchdog.start()
    yield
    watchdog.cancel()


@pytest.fixture(autouse=True)
def sound_stores(
    request: pytest.FixtureRequest, tmp_path: Path, expected_log: list[str]
) -> Iterator[None]:
    """After each test: its mounts end in the ordinary way, its stores are sound, its logs quiet."""
    yield
    problems = [trouble for trouble in map(free_mount, mounts_below([tmp_path])) if trouble]
    for layout in stores_below(tmp_path):
        problems += unexpected_lines(layout, expected_log)
        if not request.node.get_closest_marker("damages_store"):
            problems += filter(None, [verify_store(layout)])
    assert not problems, "\n".join(problems)


def unexpected_lines(layout: StoreLayout, expected: list[str]) -> list[str]:
    """Return the warnings and errors of a daemon's log that no pattern in `expected` finds.

    Prints the log's end, which pytest shows where the test failed.
    """
    lines = layout.log.read_text(errors="replace").splitlines() if layout.log.exists() else []
    sys.stdout.write("".join(f"{layout.log}: {line}\n" for line in lines[-LOG_LINES_SHOWN:]))
    return [
        f"{layout.log.name}: {line}"
        for line in lines
        if LOUD.search(line)
        and not any(re.search(pattern, line) for pattern in (*expected, HEALTH))
    ]


@pytest.fixture
def expected_log(request: pytest.FixtureRequest) -> list[str]:
    """Patterns of lines the daemon may log; a test appends to it or has the mark of that name."""
    return [str(mark.args[0]) for mark in request.node.iter_markers("expected_log")]


@pytest.fixture(scope="session")
def statefs_cli() -> Cli:
    """Runs `statefs` with the arguments given; `check=False` lets it fail."""

    def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "statefs", *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        if check:
            said = f"{done.stdout}{done.stderr}"
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {said}"
        return done

    return run


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    """Where the store of the `state` fixture lies; for other tests, a place for one."""
    return default_store(tmp_path / "state")


@pytest.fixture
def state(
    request: pytest.FixtureRequest, tmp_path: Path, store_dir: Path, statefs_cli: Cli
) -> Path:
    """A new state, mounted with the options of the mark `mount_options`; `sound_stores` ends it."""
    mount_point = tmp_path / "state"
    mount_point.mkdir()
    mark = request.node.get_closest_marker("mount_options")
    options = ["-o", mark.args[0]] if mark else []
    statefs_cli("mount", mount_point, "--store", store_dir, *options)
    return mount_point


@pytest.fixture(params=["plain", "mounted"])
def plain_or_mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty folder: on the disk, then in a mounted state; both must behave the same."""
    if request.param == "plain":
        folder = tmp_path / "plain"
    else:
        if reason := why_no_mount():
            pytest.skip(reason)
        folder = Path(request.getfixturevalue("state")) / "current" / "files" / "folder"
    folder.mkdir()
    return folder
