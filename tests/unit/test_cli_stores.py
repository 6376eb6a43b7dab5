"""Commands on real stores that are not mounted: every one of them opens the store itself."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from statefs import mounts
from statefs.cli import prepare
from statefs.errors import AlreadyMounted
from statefs.layout import StoreLayout
from statefs.locking import StoreLock
from statefs.mounts import MountOptions, attach
from tests.unit.cli_fakes import FakeBackend, call, make_empty_store, pretend_mounts

Capture = pytest.CaptureFixture[str]
NAMELESS = 4_000_000_123
"""The number of a user whom no machine knows by name."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Path:
    """A state with a new store, in the working directory; not mounted."""
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "init", "state", "--app-id", "com.example.shop").exit_code == 0
    return tmp_path / "state"


def test_init_makes_the_folder_and_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """And says where the store is."""
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "init", "new/state")
    assert (done.exit_code, done.out) == (0, f"made the store {tmp_path}/new/state.store\n")
    assert (tmp_path / "new" / "state").is_dir()
    assert (tmp_path / "new" / "state.store" / "meta.db").exists()


def test_init_twice_is_harmless(state: Path, capsys: Capture) -> None:
    """The store stays as it is."""
    name = call(capsys, "save", state).out.strip()
    done = call(capsys, "init", state)
    assert (done.exit_code, done.out) == (0, f"{state} has a store already: {state}.store\n")
    assert name in call(capsys, "list", state).out


def test_init_for_another_application_is_refused(state: Path, capsys: Capture) -> None:
    """The same one is fine; a store that has none is told of, too."""
    assert call(capsys, "init", state, "--app-id", "com.example.shop").exit_code == 0
    done = call(capsys, "init", state, "--app-id", "other")
    assert done.exit_code == 2
    assert "belongs to the application 'com.example.shop', not 'other'" in done.err
    assert call(capsys, "init", state.with_name("second")).exit_code == 0
    done = call(capsys, "init", state.with_name("second"), "--app-id", "other")
    assert done.exit_code == 2 and "second.store has no application, not 'other'" in done.err


def test_init_elsewhere_leaves_a_link(tmp_path: Path, capsys: Capture) -> None:
    """So that --store is needed only once."""
    far = tmp_path / "disk" / "app.store"
    assert call(capsys, "init", tmp_path / "state", "--store", far).exit_code == 0
    assert (tmp_path / "state.store").readlink() == far
    assert json.loads(call(capsys, "status", tmp_path / "state", "--json").out)["store"] == str(far)


@pytest.mark.parametrize("trouble", ["no device", "a file", "no right", "allow_other", "no name"])
def test_a_machine_that_cannot_mount_gets_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, trouble: str
) -> None:
    """FUSE is looked at first: neither folder nor store is left behind, and the cure is named."""
    device, status = Path("/dev/null"), tmp_path / "status"
    status.write_text("CapEff:\t0\n")
    monkeypatch.setattr(attach, "FUSE_NUMBER", device.stat().st_rdev)
    if trouble in ("no device", "a file"):
        device = tmp_path / "fuse"
    if trouble == "a file":
        device.touch()
    monkeypatch.setattr(attach, "FUSE_DEVICE", device)
    monkeypatch.setattr(attach, "PROCESS_STATUS", status)
    monkeypatch.setattr(attach, "FUSE_CONF", tmp_path / "fuse.conf")
    is_user = trouble in ("allow_other", "no name")
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if is_user else 0)
    if trouble == "no name":
        monkeypatch.setattr(os, "getuid", lambda: NAMELESS)
    monkeypatch.setattr("shutil.which", str)
    (tmp_path / "place").mkdir()
    done = call(capsys, "mount", tmp_path / "place" / "state", "-o", "allow_other")
    assert (done.exit_code, done.out, done.err.count("\n")) == (9, "", 1)
    cure = {
        "no device": "modprobe",
        "a file": "mknod",
        "no right": "SYS_ADMIN",
        "allow_other": "user_allow_other",
        "no name": f"uid {NAMELESS}, which has no line in /etc/passwd",
    }
    assert cure[trouble] in done.err
    assert os.listdir(tmp_path / "place") == []


@pytest.mark.parametrize(("user", "warnings"), [(1000, 1), (0, 0)])
def test_an_ordinary_user_is_told_that_suid_and_dev_have_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, user: int, warnings: int
) -> None:
    """One line on standard error; the mount goes on, without them."""
    started: list[MountOptions] = []
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(mounts, "require_fuse", lambda _options: None)

    def start_background(_state: Path, _store: Path, options: MountOptions, _: object) -> str:
        started.append(options)
        return ""

    monkeypatch.setattr("statefs.daemon.background.start_background", start_background)
    done = call(capsys, "mount", tmp_path / "state", "-o", "suid,dev,noexec")
    assert done.exit_code == 0 and done.out.endswith(f"mounted {tmp_path}/state\n")
    assert done.err.count("statefs: warning: suid and dev have no effect") == warnings
    assert done.err.count("\n") == warnings
    assert started == [MountOptions(suid=not user, dev=not user, noexec=True)]


def test_init_over_other_files_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """A folder with files in it does not become a store."""
    (tmp_path / "precious").touch()
    done = call(capsys, "init", tmp_path.parent / "state", "--store", tmp_path)
    assert done.exit_code == 2
    assert "is there and is no store" in done.err
    assert os.listdir(tmp_path) == ["precious"]
    assert not (tmp_path.parent / "state").exists()


@pytest.mark.parametrize("command", ["init", "mount"])
@pytest.mark.parametrize("is_noticed_first", [True, False])
def test_a_full_disk_gets_neither_folder_nor_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    command: str,
    is_noticed_first: bool,
) -> None:
    """Nothing is left of what was made, whether the disk was asked before or refused later."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mounts, "require_fuse", lambda _: None)
    if is_noticed_first:
        monkeypatch.setattr(prepare, "NEW_STORE_FREE_BYTES", 1 << 62)
    else:
        monkeypatch.setattr("statefs.maintenance.store._fill", refused)
    (tmp_path / "there").mkdir()
    words = ("--store", tmp_path / "there" / "disk" / "store")
    done = call(capsys, command, tmp_path / "new" / "state", *words)
    assert (done.exit_code, done.out, done.err.count("\n")) == (11, "", 1)
    assert "free some" in done.err
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_mount_that_another_command_has_just_made_is_a_mounted_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The answer is that of a second mount, when the first one is usable; nothing is refused."""
    state, backend = tmp_path / "state", FakeBackend(mounted=True)
    backend.install(monkeypatch)
    monkeypatch.setattr(mounts, "is_stale", lambda _: False)

    def too_late(*_: object) -> None:
        make_empty_store(tmp_path / "state.store")
        pretend_mounts(monkeypatch, tmp_path / "mounts", {state: tmp_path / "state.store"})
        raise AlreadyMounted("another command was faster")

    monkeypatch.setattr("statefs.cli.mount.prepare", too_late)
    done = call(capsys, "mount", state)
    assert (done.exit_code, done.out) == (0, f"{state} is already mounted\n"), done.err
    assert backend.asked == ["status"]


def test_a_snapshot_goes_through_its_life(state: Path, capsys: Capture) -> None:
    """Saved, listed, shown by each way to name it, deleted."""
    saved = json.loads(call(capsys, "save", state, "--label", "name=v1", "--json").out)
    second = call(capsys, "save", state, "-m", "second").out.strip()
    listed = json.loads(call(capsys, "list", state, "--json").out)["snapshots"]
    assert [each["name"] for each in listed] == [saved["name"], second]
    assert listed[0] == saved | {"unsealable": None}
    for selector in (saved["name"], "v1", "latest~1"):
        shown = json.loads(call(capsys, "show", state, selector, "--json").out)
        assert shown == listed[0]
    assert json.loads(call(capsys, "show", state, "latest", "--json").out)["name"] == second
    assert json.loads(call(capsys, "delete", state, "v1", "--json").out) == saved
    assert call(capsys, "show", state, "v1").exit_code == 7
    assert call(capsys, "delete", state, "latest").out.startswith(f"deleted {second} (0 files")
    assert json.loads(call(capsys, "list", state, "--json").out) == {"snapshots": []}
    assert call(capsys, "verify", state).exit_code == 0


def test_each_failure_has_its_exit_code(state: Path, capsys: Capture, tmp_path: Path) -> None:
    """Those of the engine, seen from the command line."""
    for _ in range(2):
        assert call(capsys, "save", state).exit_code == 0
    assert call(capsys, "save", state, "--label", "name=v1").exit_code == 0
    assert call(capsys, "save", state, "--label", "name=v1").exit_code == 15
    assert call(capsys, "save", state, "--label", "name=a/b").exit_code == 2
    assert call(capsys, "show", state, "2").exit_code == 8
    assert call(capsys, "show", state, "latest~99").exit_code == 7
    assert call(capsys, "show", state, "@yesterday").exit_code == 2
    assert call(capsys, "umount", state).exit_code == 4
    assert call(capsys, "list", tmp_path / "nothing").exit_code == 3


def test_text_that_is_no_utf8_is_refused(state: Path, capsys: Capture) -> None:
    """Documents are UTF-8; the message says so instead of breaking later."""
    for words in (["-m", "bad\udcff"], ["--label", "k=bad\udcff"], ["--label", "bad\udcff=v"]):
        done = call(capsys, "save", state, *words)
        assert done.exit_code == 2
        assert "is not UTF-8" in done.err
    assert call(capsys, "show", state, "bad\udcff").exit_code == 2
    assert json.loads(call(capsys, "list", state, "--json").out) == {"snapshots": []}


def test_a_store_that_another_command_has_open_is_named(
    state: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pid of the process, after waiting for it to end."""
    monkeypatch.setattr("statefs.locking.COMMAND_WAIT_SECONDS", 0.0)
    with StoreLock(StoreLayout(Path(f"{state}.store"))):
        done = call(capsys, "list", state)
    assert done.exit_code == 6
    assert f"locked by pid {os.getpid()}" in done.err
    assert call(capsys, "list", state).exit_code == 0


def test_ctrl_c_ends_a_command_that_waits(state: Path) -> None:
    """With 130, and without a traceback."""
    layout = StoreLayout(Path(f"{state}.store"))
    with StoreLock(layout):
        process = subprocess.Popen(
            [sys.executable, "-m", "statefs", "list", str(state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        await_open_file(process, layout.lock)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (130, "", "")


def await_open_file(process: subprocess.Popen[str], path: Path) -> None:
    """Return when `process` has `path` open; fail when it has ended."""
    ended = os.pidfd_open(process.pid)
    try:
        while str(path) not in open_files(process.pid):
            assert not select.select([ended], [], [], 0.01)[0]
    finally:
        os.close(ended)


def open_files(pid: int) -> list[str]:
    """Return what a process has open; a file may be closed while it is looked at."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return found


def test_errors_name_what_the_user_named(state: Path, capsys: Capture) -> None:
    """Not the file that is made before the one that was asked for is complete."""
    call(capsys, "save", state)
    for words, named in (
        (("export", state, "latest", "missing/x.tar"), "missing/x.tar"),
        (("restore", state, "latest", "--to", "missing/x"), "missing/x"),
    ):
        done = call(capsys, *words)
        assert (done.exit_code, done.out, done.err.count("\n")) == (2, "", 1)
        assert f"error: {named} cannot be made (No such file or directory): " in done.err


def test_a_place_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What to name instead, for a state as for an archive; a folder is no archive."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    call(capsys, "init", tmp_path / "state")
    call(capsys, "save", tmp_path / "state")
    done = call(capsys, "export", tmp_path / "state", "latest", tmp_path)
    assert (done.exit_code, done.out) == (2, "")
    assert f"{tmp_path} is a folder: name a file in it" in done.err
    monkeypatch.setattr(Path, "mkdir", refuse)
    done = call(capsys, "init", tmp_path / "new")
    assert (done.exit_code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "new cannot be made (Permission denied): name a place" in done.err


def test_the_list_of_clones_is_for_people(state: Path, capsys: Capture) -> None:
    """Local times and ages; --json has the time as it is."""
    call(capsys, "save", state)
    call(capsys, "clone", state, "latest", "test")
    lines = call(capsys, "clone", "--list", state).out.splitlines()
    assert lines[0].split() == ["CLONE", "MADE", "OF", "MADE", "AGE"]
    assert lines[1].startswith("test ") and lines[1].endswith(("now", "ago"))
    (told,) = json.loads(call(capsys, "clone", "--list", state, "--json").out)["clones"]
    assert told["created"].endswith("Z") and told["created"] not in lines[1]
