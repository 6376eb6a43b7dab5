"""`statefs upgrade`: a running mount goes over to what is installed now."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import statefs
from tests.harness.mounted_state import MountedState, mounted_as, several_users

NEW = "9.9.9"
EXPECTED = (
    r"upgrade is given up|kept ready|worker \d+ died|what is installed cannot serve"
    r"|^Traceback|^  |^ModuleNotFoundError|^NameError"
)


class InstalledState(MountedState):
    """A state of a statefs that is installed in a folder of its own."""

    @property
    def package(self) -> Path:
        """The folder of that statefs."""
        return self.state.with_name("installed") / "statefs"

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one command of it and return what it said, whatever its exit code."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "statefs", *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(self.package.parent)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def install(self, version: str) -> None:
        """Change the version that is installed."""
        source = self.package / "__init__.py"
        source.write_text(source.read_text().replace(statefs.__version__, version))


@pytest.fixture
def installed(wide_folder: Path) -> Iterator[InstalledState]:
    """A state mounted by a copy of this statefs."""
    folder = wide_folder / "upgrade"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = InstalledState(folder / "state", folder / "state.store", several_users(), EXPECTED)
    shutil.copytree(
        Path(statefs.__file__).parent, made.package, ignore=shutil.ignore_patterns("__pycache__")
    )
    with mounted_as(made):
        yield made
    shutil.rmtree(folder)


def test_programs_go_on_through_an_upgrade(installed: InstalledState) -> None:
    """With files open, deleted ones too, and locks; worker and supervisor are the new version."""
    before = installed.status()
    path = installed.files / "f"
    with open(path, "wb", buffering=0) as file, open(installed.files / "gone", "w+b") as gone:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"before ")
        gone.write(b"deleted")
        gone.flush()
        (installed.files / "gone").unlink()
        installed.install(NEW)
        done = json.loads(installed.command("upgrade", installed.state, "--json"))
        file.write(b"after")
        assert gone.seek(0) == 0 and gone.read() == b"deleted"
        with open(path, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert path.read_bytes() == b"before after"
    after = installed.status()
    assert (
        (done["from"], done["to"])
        == (statefs.__version__, NEW)
        == (before["version"], after["version"])
    )
    assert after["worker_pid"] == done["worker_pid"] != before["worker_pid"]
    assert (after["supervisor_pid"], after["since"]) == (before["supervisor_pid"], before["since"])
    command = Path(f"/proc/{after['supervisor_pid']}/cmdline").read_bytes().split(b"\0")
    assert b"--resume" in command
    os.kill(after["worker_pid"], 9)  # the new supervisor knows what to do
    assert path.read_bytes() == b"before after"
    installed.verify_mounted()


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("daemon/worker.py", "import os\n", "import no_such_module\n", "exit code 1"),
        ("daemon/supervisor.py", "import os\n", "import no_such_module\n", "a supervisor ended"),
        ("daemon/supervisor.py", "left = read_", "left = no_such_name_", "a supervisor ended"),
        ("metadata/schema.py", "FORMAT_VERSION: Final = ", "FORMAT_VERSION: Final = 1", "format 1"),
    ],
)
def test_what_cannot_go_on_is_refused(
    name: str, old: str, new: str, why: str, installed: InstalledState
) -> None:
    """A version that does not load, or one of another format; the mount is served as before."""
    before = installed.status()
    source = installed.package / name
    text = source.read_text()
    source.write_text(text.replace(old, new, 1))
    assert source.read_text() != text
    done = installed.run("upgrade", installed.state)
    source.write_text(text)
    assert done.returncode == 1 and why in done.stderr and done.stderr.count("\n") == 1
    assert installed.status()["worker_pid"] == before["worker_pid"]
    assert installed.status()["supervisor_pid"] == before["supervisor_pid"]
    (installed.files / "f").write_text("x")
    assert installed.save()


def wait_for_spare(supervisor: int) -> None:
    """Return when a supervisor has loaded a worker that waits, beside the one that serves."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    give_up = time.monotonic() + 60
    while True:
        pids = children.read_text().split()
        if len(pids) == 2 and all(_is_loaded(int(pid)) for pid in pids):
            return
        assert time.monotonic() < give_up, "no worker waits"
        time.sleep(0.05)


def _is_loaded(pid: int) -> bool:
    """Return whether a worker has all its code: it handles SIGTERM from then on (proc(5))."""
    if b"statefs.daemon.worker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        return False  # still what it was forked from
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("daemon/lifecycle.py", "    state, layout = Path(begin", "    os._exit(7)\n"),
        (
            "fuse/operations.py",
            "        return self._found(parent, name)\n",
            "        os._exit(7)\n",
        ),
    ],
    ids=["does not open the store", "dies of the first request"],
)
def test_a_version_that_dies_leaves_the_mount_to_the_old_one(
    name: str, old: str, new: str, installed: InstalledState
) -> None:
    """The command says so on one line; supervisor and files stay, the next upgrade works."""
    before = installed.status()
    (installed.files / "f").write_text("before")
    wait_for_spare(before["supervisor_pid"])
    source = installed.package / name
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, f"{new}{old}", 1))
    installed.install(NEW)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(installed.run, "upgrade", installed.state)
        for number in itertools.count():
            if asking.done():
                break
            assert not (installed.files / f"no such file {number}").exists()
            assert (installed.files / "f").read_text() == "before"
        done = asking.result()
    source.write_text(text)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "did not serve: a worker of statefs " + statefs.__version__ in done.stderr
    after = installed.status()
    assert after["version"] == statefs.__version__
    assert after["supervisor_pid"] == before["supervisor_pid"]
    assert after["worker_pid"] != before["worker_pid"]
    assert installed.save()
    installed.command("upgrade", installed.state)
    assert installed.status()["version"] == NEW
    assert (installed.files / "f").read_text() == "before"


def test_a_state_that_is_not_mounted_is_not_upgraded(own_state: MountedState) -> None:
    """There is nothing that runs."""
    own_state.umount()
    done = own_state.run("upgrade", own_state.state)
    own_state.mount()
    assert done.returncode != 0 and "is not mounted" in done.stderr
