"""Ctrl-C during what takes long: the command ends with 130, the daemon and the state are sound.

The daemon is held until the command has gone, so that it finds a request that nobody waits for any
more. What is given up in the middle is tested without a mount (tests/unit/test_progress.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from statefs.layout import StoreLayout
from tests.harness.mounted_state import END_SECONDS, MountedState, eventually
from tests.harness.trees import Tree, capture, differences

FILES: Final = 10
SNAPSHOTS: Final = 3
BIG_BYTES: Final = 200 << 20
SLICE_SECONDS: Final = 0.005
IDLE_SECONDS: Final = 0.2
"""A daemon that has read nothing for so long does not read any more."""
COMMANDS: Final = {
    "restore": ("first",),
    "undo": (),
    "clone": ("latest", "copy"),
    "prune": (),
    "delete": ("latest",),
    "verify": ("--read-data",),
    "diff": ("first",),
}


@pytest.fixture
def filled(own_state: MountedState) -> MountedState:
    """A state with some snapshots, each of other files, and something to undo."""
    for number in range(SNAPSHOTS):
        for name in range(FILES):
            (own_state.files / f"f{name}").write_bytes(b"%d" % number * 9000)
        (own_state.files / f"only{number}").write_text("x")
        own_state.save(name="first" if not number else f"s{number}")
    own_state.command("restore", own_state.state, "s1")
    return own_state


def begin(state: MountedState, command: str, *words: str) -> subprocess.Popen[bytes]:
    """Begin a command."""
    line = [sys.executable, "-m", "statefs", command, str(state.state), *words, "--json"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextmanager
def held(pid: int) -> Iterator[None]:
    """Stop a process for as long as the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def has_called(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a command has a socket: that to the daemon."""
    folder = Path(f"/proc/{process.pid}/fd")
    for each in os.listdir(folder):
        with suppress(FileNotFoundError):
            if os.readlink(folder / each).startswith("socket:"):
                return True
    return False


def files_of(folder: Path) -> Tree:
    """Return what lies in files/ of current/ or of a snapshot."""
    return capture(folder.resolve() / "files")


def moments(state: MountedState) -> dict[str, Tree]:
    """Return what current/ and each snapshot hold; one may be pruned meanwhile."""
    found = {"current": files_of(state.current)}
    for name in os.listdir(state.snapshots):
        try:
            found[name] = files_of(state.snapshots / name)
        except FileNotFoundError:
            assert name not in os.listdir(state.snapshots)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_request_that_nobody_waits_for_any_more(filled: MountedState, command: str) -> None:
    """It is done as a whole, or not at all; then the daemon does what it is asked for as ever."""
    before, safe = moments(filled), filled.listing()[-1]["name"]
    with held(filled.status()["worker_pid"]):
        if command == "prune":  # not before: the daemon prunes by itself
            StoreLayout(filled.store).config.write_text(
                "[retention]\nkeep_last = 1\nprotect_labelled = false\n"
            )
        with begin(filled, command, *COMMANDS[command]) as process:
            eventually(partial(has_called, process), "the daemon is called")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=END_SECONDS)
        assert (process.returncode, said.strip()) == (130, b"")
    filled.save()  # after what was asked for, as one of them runs at a time
    after = moments(filled)
    changed = {"restore": before["first"], "undo": before[safe]}.get(command, before["current"])
    assert not all(differences(each, after["current"]) for each in (before["current"], changed))
    for name in before.keys() & after.keys() - {"current", "latest"}:
        assert differences(before[name], after[name]) == []
    gone = before.keys() - after.keys()
    assert not gone or command in ("prune", "delete")
    clone = filled.state / "clones" / "copy"
    assert not clone.exists() or differences(before[safe], files_of(clone)) == []
    filled.verify_mounted()
    if command == "clone" and clone.exists():
        clone.rmdir()
    if command != "delete" or len(gone) == 0:
        filled.command(command, filled.state, *COMMANDS[command])
    filled.verify_mounted()


def bytes_read(pid: int) -> int:
    """Return how much a process has read so far, from files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])


def test_reading_everything_is_given_up_in_the_middle(own_state: MountedState) -> None:
    """Command and daemon stop at once; it goes on, and reads everything when asked anew."""
    with open(own_state.files / "big", "wb") as file:
        for _ in range(BIG_BYTES >> 20):
            file.write(os.urandom(1 << 20))
    own_state.command("save", own_state.state, "--wait")
    worker = own_state.status()["worker_pid"]
    before = bytes_read(worker)
    with held(worker), begin(own_state, "verify", "--read-data") as process:
        while bytes_read(worker) - before < BIG_BYTES // 10:  # by slices, as disks may be fast
            os.kill(worker, signal.SIGCONT)
            time.sleep(SLICE_SECONDS)
            os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=END_SECONDS)
        assert process.returncode == 130
    seen = -1
    while seen != (seen := bytes_read(worker)):  # it goes on by steps of some milliseconds
        time.sleep(IDLE_SECONDS)
    assert seen - before < BIG_BYTES // 2
    own_state.save()
    own_state.verify_mounted()
    done = json.loads(own_state.command("verify", own_state.state, "--read-data", "--json"))
    assert done["ok"] and done["read"]["bytes"] == BIG_BYTES
