"""The checks that end every test and every run find what they are for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.harness.mounted_state import eventually
from tests.leftovers import mounts_below

ROOT: Final = Path(__file__).parents[2]
HEAD: Final = """
import os, subprocess, sys, tempfile
from pathlib import Path
import pytest
"""

InnerRun = Callable[[str], subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.mounted


@pytest.fixture
def inner_run(tmp_path: Path) -> InnerRun:
    """Runs tests given as text, in a pytest of their own with this project's fixtures."""

    def run(text: str) -> subprocess.CompletedProcess[str]:
        module = tmp_path / "test_inner.py"
        module.write_text(HEAD + text)
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
        command += ["-p", "tests.conftest", "-p", "no:cacheprovider", str(module)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert mounts_below([Path(os.environ["TMPDIR"])]) == [], done.stdout
        return done

    return run


def test_a_mounted_state_ends_with_its_test(inner_run: InnerRun) -> None:
    """The `state` fixture mounts, the end of the test unmounts and verifies, nothing complains."""
    done = inner_run("""
def test_it(state):
    (state / "current" / "files" / "note").write_text("hello")

def test_both(plain_or_mounted):
    (plain_or_mounted / "note").write_text("hello")

@pytest.mark.mount_options("ro")
def test_options(state):
    with pytest.raises(OSError, match="Read-only"):
        (state / "current" / "files" / "note").write_text("hello")
""")
    assert "4 passed" in done.stdout and done.returncode == 0, done.stdout


def test_a_mount_outside_of_a_test_is_found(inner_run: InnerRun) -> None:
    """A state mounted in another temporary folder fails the run, and is unmounted."""
    done = inner_run("""
def test_it(statefs_cli):
    statefs_cli("mount", Path(tempfile.mkdtemp()) / "state")
""")
    assert "1 passed, 1 error" in done.stdout, done.stdout
    assert "left mounted: " in done.stdout and "left on disk: " in done.stdout


def test_a_mount_in_use_is_found_and_freed(inner_run: InnerRun) -> None:
    """A process that a test leaves in the mount fails the test; the mount ends all the same."""
    done = inner_run("""
children = []

def test_it(state):
    children.append(subprocess.Popen(["sleep", "60"], cwd=state / "current"))

def test_the_child_ends():
    children[0].kill()
    children[0].wait()
""")
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "could not be unmounted" in done.stdout


def test_a_loud_log_is_found(inner_run: InnerRun) -> None:
    """A warning in a daemon's log fails the test that did not declare it."""
    done = inner_run("""
def speak(store_dir):
    with (store_dir / "statefs.log").open("a") as log:
        log.write("12:00:00 WARNING statefs.example: the sky is low\\\\n")

def test_it(state, store_dir):
    speak(store_dir)

@pytest.mark.expected_log("the sky is low")
def test_declared(state, store_dir):
    speak(store_dir)
""")
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "the sky is low" in done.stdout


def test_a_damaged_store_is_found(inner_run: InnerRun) -> None:
    """A store that is damaged fails its test, unless the test says that it breaks stores."""
    done = inner_run("""
def break_store(statefs_cli, state, store_dir):
    statefs_cli("umount", state)
    with (store_dir / "meta.db").open("r+b") as database:
        database.write(b"not a database")

def test_it(statefs_cli, state, store_dir):
    break_store(statefs_cli, state, store_dir)

@pytest.mark.damages_store("to see it told apart")
def test_declared(statefs_cli, state, store_dir):
    break_store(statefs_cli, state, store_dir)
""")
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "verify exits with " in done.stdout


def test_what_still_runs_is_found_and_ended(inner_run: InnerRun) -> None:
    """A daemon whose mount was taken away in use, and any program, fail the run; so do folders.

    Stores that tests make in memory are looked for by the name of the run.
    """
    done = inner_run("""
from tests.leftovers import memory_folder, mounts_below

left = [memory_folder("kept")]

def test_it(statefs_cli):
    state = Path(tempfile.mkdtemp()) / "state"
    statefs_cli("mount", state)
    os.open(state / "current" / "files", os.O_RDONLY)  # open to the end of the run
    as_root = os.geteuid() == 0
    subprocess.run([*(["umount", "-l"] if as_root else ["fusermount3", "-uz"]), state], check=True)
    assert mounts_below([state]) == []
    left.append(subprocess.Popen(["sleep", "100"]))
    left[0].__enter__()
""")
    assert "1 passed, 1 error" in done.stdout, done.stdout
    for words in ("'statefs.daemon', ", "'statefs.daemon.worker', ", "['sleep', '100']"):
        assert re.search(f"left running: .*{re.escape(words)}", done.stdout), done.stdout
    pids = set(map(int, re.findall("left running: ([0-9]+) ", done.stdout)))
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "their end")
    kept = re.search(r"left on disk: (.*-kept-.*)", done.stdout)
    assert kept and not Path(kept[1]).exists(), done.stdout
