"""What a mounted state does by itself with its snapshots, and pins, as programs see them."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from statefs.maintenance.pruning import bytes_on_disk
from tests.harness.mounted_state import MountedState, eventually
from tests.harness.system_calls import errno_of

MIB: Final = 1 << 20
DEBOUNCE_SECONDS: Final = 0.4
AUTOSAVE: Final = f"autosave = true\nautosave_debounce = {DEBOUNCE_SECONDS}\n"
QUIET_SECONDS: Final = 4 * DEBOUNCE_SECONDS
"""An autosave that were due would have come by then."""


def settings(state: MountedState, text: str) -> None:
    """Write the store's statefs.toml, and wait until the daemon has certainly read it."""
    (state.store / "statefs.toml").write_text(text)
    time.sleep(1.2)


def reasons(state: MountedState) -> list[str]:
    """Return why each snapshot was taken, oldest first."""
    return [str(each["reason"]) for each in state.listing()]


def stays(state: MountedState, count: int) -> None:
    """Fail when another snapshot is taken."""
    time.sleep(QUIET_SECONDS)
    assert len(state.listing()) == count


def index(state: MountedState) -> Any:
    """Return index.json."""
    return json.loads((state.state / "index.json").read_bytes())


def test_a_change_is_saved_by_itself(own_state: MountedState) -> None:
    """Once, with the change in it; then nothing more until there is another one."""
    settings(own_state, AUTOSAVE)
    stays(own_state, 0)
    (own_state.files / "a").write_text("one")
    eventually(lambda: reasons(own_state) == ["autosave"], "the first change is saved")
    assert (own_state.snapshots / "latest" / "files/a").read_text() == "one"
    stays(own_state, 1)
    (own_state.files / "a").write_text("two")
    eventually(lambda: len(own_state.listing()) == 2, "the second change is saved")


def test_a_busy_tree_is_saved_once_in_a_period(own_state: MountedState) -> None:
    """Writers that never pause neither prevent autosaves nor multiply them."""
    settings(own_state, AUTOSAVE)
    began = time.monotonic()
    while time.monotonic() < began + 3:
        (own_state.files / "a").write_text(str(time.monotonic()))
        time.sleep(0.01)
    took = time.monotonic() - began
    assert 2 <= len(own_state.listing()) <= took / DEBOUNCE_SECONDS
    times = [each["timestamp"] for each in own_state.listing()]
    assert all(a < b for a, b in pairwise(times))


def test_what_changes_nothing_is_not_saved(own_state: MountedState) -> None:
    """Reading, listing, looking at snapshots, and whatever happens in runtime/."""
    (own_state.files / "a").write_text("one")
    own_state.save()
    settings(own_state, AUTOSAVE)
    for _ in range(3):
        assert (own_state.files / "a").read_text() == "one"
        assert list(own_state.files.iterdir()) and list(own_state.snapshots.iterdir())
        assert (own_state.snapshots / "latest" / "files/a").read_text() == "one"
        (own_state.current / "runtime/ports.json.new").write_text("[]")
        os.rename(
            own_state.current / "runtime/ports.json.new", own_state.current / "runtime/ports.json"
        )
    stays(own_state, 1)


def test_without_autosave_nothing_is_saved(own_state: MountedState) -> None:
    """It is off unless it is asked for; also at the end."""
    (own_state.files / "a").write_text("one")
    stays(own_state, 0)
    own_state.remount()
    assert reasons(own_state) == []


def test_an_unmount_saves_what_is_unsaved(own_state: MountedState) -> None:
    """With autosave on; and a second one, with nothing changed, does not."""
    settings(own_state, "autosave = true\nautosave_debounce = '1h'\n")
    path = own_state.files / "mapped"
    path.write_bytes(b"a" * 4096)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        memory[:3] = b"map"  # in the kernel's memory until the unmount
    own_state.remount()
    assert reasons(own_state) == ["shutdown"]
    assert (own_state.snapshots / "latest" / "files/mapped").read_bytes()[:4] == b"mapa"
    own_state.remount()
    assert reasons(own_state) == ["shutdown"]


def test_changes_from_before_a_kill_are_saved(own_state: MountedState) -> None:
    """The next daemon finds out what is unsaved."""
    own_state.save()
    settings(own_state, AUTOSAVE.replace(str(DEBOUNCE_SECONDS), "3600"))
    (own_state.files / "a").write_text("one")
    own_state.kill()
    (own_state.store / "statefs.toml").write_text(AUTOSAVE)
    own_state.mount()
    eventually(lambda: reasons(own_state) == ["manual", "autosave"], "it is saved")


def test_a_signal_takes_a_snapshot(own_state: MountedState) -> None:
    """SIGUSR1, whether or not autosave is on and anything has changed."""
    os.kill(own_state.daemon_pid(), signal.SIGUSR1)
    eventually(lambda: len(own_state.listing()) == 1, "the first signal is obeyed")
    os.kill(own_state.daemon_pid(), signal.SIGUSR1)
    eventually(lambda: len(own_state.listing()) == 2, "the second signal is obeyed")
    told = {(each["reason"], each["message"]) for each in own_state.listing()}
    assert told == {("autosave", "SIGUSR1")}


def test_a_turn_is_a_reason(own_state: MountedState) -> None:
    """For programs that mark the boundaries of their turns."""
    own_state.command("save", own_state.state, "--reason", "turn")
    assert reasons(own_state) == ["turn"]


def test_a_save_is_followed_by_pruning(own_state: MountedState) -> None:
    """By itself; the log tells what went and why, index.json tells the policy."""
    settings(own_state, "[retention]\nmax_snapshots = 2\n")
    saved = [own_state.save() for _ in range(3)]
    eventually(lambda: len(own_state.listing()) == 2, "the oldest goes")
    # The list is shorter first; documents and the log follow.
    eventually(
        lambda: [each["name"] for each in index(own_state)["snapshots"]] == saved[1:],
        "index.json tells of it",
    )
    assert index(own_state)["retentionPolicy"]["maxSnapshots"] == 2
    assert {path.name for path in own_state.snapshots.iterdir()} == {*saved[1:], "latest"}
    said = f"pruned {saved[0]}: over max_snapshots 2"
    eventually(lambda: any(said in line for line in own_state.log_lines()), "the log tells of it")


def test_settings_that_are_wrong_stop_it_and_are_told_once(own_state: MountedState) -> None:
    """The mount goes on; a typing error must not delete snapshots."""
    own_state.expected_log = "no autosave and no pruning until this is put right"
    for _ in range(3):
        own_state.save()
    settings(own_state, f"{AUTOSAVE}[retention]\nmax_snapshot = 1\n")
    (own_state.files / "a").write_text("changed")
    stays(own_state, 3)
    told = [line for line in own_state.log_lines() if own_state.expected_log in line]
    assert len(told) == 1 and "did you mean max_snapshots?" in told[0]
    settings(own_state, "[retention]\nmax_snapshots = 1\n")
    own_state.save()
    eventually(lambda: len(own_state.listing()) == 1, "it goes on when they are right")


def test_a_pinned_snapshot_stays(own_state: MountedState) -> None:
    """Against delete, rmdir and pruning; who looks at its documents sees why."""
    name = own_state.save()
    folder = own_state.snapshots / name
    document = folder / "metadata.json"
    assert json.loads(document.read_bytes())["pin"] is None  # it is in the kernel's cache now
    own_state.command("pin", own_state.state, name, "--reason", "audit")
    assert json.loads(document.read_bytes())["pin"]["reason"] == "audit"
    assert document.stat().st_size == len(document.read_bytes())
    assert index(own_state)["snapshots"][0]["pin"]["reason"] == "audit"
    assert errno_of(folder.rmdir) == errno.EPERM
    refused = own_state.run("delete", own_state.state, name)
    assert refused.returncode == 19 and ": audit;" in refused.stderr
    settings(own_state, "[retention]\nmax_snapshots = 1\n")
    gone, newest = own_state.save(), own_state.save()
    eventually(lambda: not (own_state.snapshots / gone).exists(), "the other one goes")
    assert [each["name"] for each in own_state.listing()] == [name, newest]
    own_state.command("unpin", own_state.state, name)
    assert json.loads(document.read_bytes())["pin"] is None
    folder.rmdir()
    assert not folder.exists()


def test_a_store_that_grows_too_large_loses_its_oldest(own_state: MountedState) -> None:
    """max_store_bytes is kept by itself, and one deletion is waited for before the next."""
    path = own_state.files / "big"
    path.write_bytes(os.urandom(4 * MIB))
    own_state.save()
    eventually(lambda: bytes_on_disk(own_state.store) > 4 * MIB, "the store has it")
    most = bytes_on_disk(own_state.store) + 14 * MIB
    settings(own_state, f"[retention]\nmax_store_bytes = {most}\n")
    for _ in range(6):
        rewrite(path, os.urandom(4 * MIB))
        own_state.save()
    eventually(lambda: bytes_on_disk(own_state.store) <= most, "the store shrinks")
    assert 2 <= len(own_state.listing()) < 7


def rewrite(path: Path, data: bytes) -> None:
    """Write a file's bytes anew, in place."""
    with open(path, "r+b") as file:
        file.write(data)
