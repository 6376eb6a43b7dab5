"""The command line with a daemon at the other end: mounting, asking it, unmounting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statefs.mounts import processes_using
from tests.harness.mounted_state import MountedState, mounted, open_folder
from tests.leftovers import COMMAND_SECONDS, mounts_below

Cli = Callable[..., subprocess.CompletedProcess[str]]

NO_SNAPSHOTS = "no snapshots yet: 'statefs save' takes one\n"


def run_in(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `statefs WORDS...` with `folder` as the working directory."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "statefs", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )


def test_mount_makes_everything_that_is_missing(tmp_path: Path, statefs_cli: Cli) -> None:
    """The folder, the store, the tree; usable when the command returns, gone after umount."""
    state = tmp_path / "new" / "state"
    assert statefs_cli("mount", state).stdout == f"made the store {state}.store\nmounted {state}\n"
    assert sorted(os.listdir(state)) == ["clones", "current", "index.json", "snapshots"]
    (state / "current" / "files" / "a").write_text("kept")
    assert statefs_cli("umount", state).stdout == f"unmounted {state}\n"
    assert os.listdir(state) == []
    assert statefs_cli("mount", state).stdout == f"mounted {state}\n"
    assert (state / "current" / "files" / "a").read_text() == "kept"


def test_mounting_and_unmounting_twice(state: Path, statefs_cli: Cli) -> None:
    """A second mount is harmless; a second umount says that nothing is mounted."""
    again = statefs_cli("mount", state)
    assert again.stdout == f"{state} is already mounted\n"
    statefs_cli("umount", state)
    gone = statefs_cli("umount", state, check=False)
    assert gone.returncode == 4
    assert gone.stderr == f"statefs: error: {state} is not mounted\n"


def test_two_mounts_of_a_state_at_once_are_one(tmp_path: Path, statefs_cli: Cli) -> None:
    """Whoever comes second is told what a mount of a mounted state is told, when it is usable."""
    state = tmp_path / "state"
    command = [sys.executable, "-m", "statefs", "mount", str(state)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=COMMAND_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(each.splitlines()[-1] for each in said) == sorted(
        [f"mounted {state}", f"{state} is already mounted"]
    )
    assert len(mounts_below([tmp_path])) == 1
    statefs_cli("save", state)


def test_a_mounted_state_with_other_options_is_refused(state: Path, statefs_cli: Cli) -> None:
    """The line names each that differs and says what to do; the same ones are harmless."""
    same = ("rw", "durability=close,nosuid", "rw,defaults,nofail", "adopt")
    for text in same:
        assert statefs_cli("mount", state, "-o", text).stdout == f"{state} is already mounted\n"
    refused: list[tuple[tuple[str, ...], str]] = [
        (("-o", "ro"), "rw instead of ro"),
        (("-o", "durability=fsync"), "durability=close instead of durability=fsync"),
        (("-o", "ro", "-o", "allow_other"), "without allow_other and rw instead of ro"),
        (("--app-id", "com.example.shop"), "its application is none, not com.example.shop"),
    ]
    for words, difference in refused:
        done = statefs_cli("mount", state, *words, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1), words
        assert difference in done.stderr and f"'statefs umount {state}' first" in done.stderr


@pytest.mark.mount_options("ro,durability=write")
def test_a_mounted_state_with_the_same_options_is_mounted_already(
    state: Path, statefs_cli: Cli
) -> None:
    """Its status names them; what is not asked for may be as it is."""
    status = json.loads(statefs_cli("status", state, "--json").stdout)
    assert status["mount_options"] == "durability=write,ro"
    repeated: list[tuple[str, ...]] = [
        (),
        ("-o", "ro,durability=write"),
        ("-o", "durability=write"),
    ]
    for words in repeated:
        assert statefs_cli("mount", state, *words).stdout == f"{state} is already mounted\n"
    done = statefs_cli("mount", state, "-o", "rw", check=False)
    assert done.returncode == 5 and "ro instead of rw" in done.stderr


def test_inside_a_mounted_state_no_name_is_needed(state: Path) -> None:
    """Every command finds the state that the working directory lies in."""
    inside = state / "current" / "files"
    name = run_in(inside, "save", "-m", "from inside").stdout.strip()
    assert name in run_in(inside, "list").stdout
    shown = run_in(inside, "show", "latest").stdout
    assert f"Folder       {state}/snapshots/{name}\n" in shown
    assert json.loads(run_in(inside, "status", "--json").stdout)["mount_point"] == str(state)
    assert run_in(inside, "verify").returncode == 0
    assert run_in(inside, "mount").stdout == f"{state} is already mounted\n"
    assert run_in(inside, "delete", "latest").stdout.startswith(f"deleted {name}")


def test_the_environment_names_a_state(state: Path, tmp_path: Path) -> None:
    """STATEFS_STATE is used where no state is named."""
    done = run_in(tmp_path, "save", STATEFS_STATE="state")
    assert done.returncode == 0
    assert done.stdout.strip() in os.listdir(state / "snapshots")


def test_a_daemon_and_the_store_itself_tell_the_same(state: Path, statefs_cli: Cli) -> None:
    """Documents asked of a daemon equal those read with no daemon running."""
    statefs_cli("save", state, "-m", "hello", "--label", "name=v1", "--label", "k=v")
    commands = [("list", state), ("show", state, "v1"), ("verify", state)]
    online = [statefs_cli(*words, "--json").stdout for words in commands]
    status = json.loads(statefs_cli("status", state, "--json").stdout)
    statefs_cli("umount", state)
    assert [statefs_cli(*words, "--json").stdout for words in commands] == online
    offline = json.loads(statefs_cli("status", state, "--json").stdout)
    assert offline.keys() == status.keys()
    assert (status["mounted"], offline["mounted"]) == (True, False)
    same = ("store", "store_id", "app_id", "epoch", "snapshots", "latest", "files", "bytes")
    assert [offline[key] for key in same] == [status[key] for key in same]


@pytest.mark.parametrize("command", ["save", "list", "status", "diff"])
def test_asking_a_daemon_loads_no_engine(state: Path, command: str) -> None:
    """Such commands are called in loops and by shells' prompts, so they start fast."""
    words = [command, str(state), *(["current"] if command == "diff" else [])]
    code = f"""
import sys
from statefs.cli.app import run
exit_code = run({words!r})
loaded = {{"apsw", "pyfuse3", "trio", "psutil", "rich", "statefs.volume"}} & set(sys.modules)
sys.exit(exit_code or sorted(loaded) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert (done.returncode, done.stderr.replace(NO_SNAPSHOTS, "")) == (0, "")


def test_refusals_of_a_daemon_have_their_exit_codes(state: Path, statefs_cli: Cli) -> None:
    """The same as without a daemon."""
    statefs_cli("save", state, "--label", "name=v1")
    statefs_cli("save", state)
    for words, exit_code in (
        (("save", state, "--label", "name=v1"), 15),
        (("save", state, "--label", "name=latest"), 2),
        (("show", state, "nothing"), 7),
        (("delete", state, "2"), 8),
        (("show", state, "@soon"), 2),
    ):
        done = statefs_cli(*words, check=False)
        assert (done.returncode, done.stdout) == (exit_code, "")
        assert done.stderr.startswith("statefs: error: ") and done.stderr.count("\n") == 1


def test_a_store_elsewhere_is_named_once(tmp_path: Path, statefs_cli: Cli) -> None:
    """The option --store leaves the link STATE.store, by which every command finds it again."""
    state, far = tmp_path / "state", tmp_path / "disk" / "app.store"
    statefs_cli("mount", state, "--store", far)
    statefs_cli("umount", "--store", far)
    statefs_cli("save", state)
    statefs_cli("mount", state)
    assert json.loads(statefs_cli("status", state, "--json").stdout)["store"] == str(far)


def test_a_store_has_one_mount(state: Path, tmp_path: Path, statefs_cli: Cli) -> None:
    """A second place for it is refused, and so is a second store for a mounted place."""
    elsewhere = statefs_cli("mount", tmp_path / "other", "--store", f"{state}.store", check=False)
    assert elsewhere.returncode == 5
    assert f"is mounted at {state}" in elsewhere.stderr
    covered = statefs_cli("mount", state, "--store", tmp_path / "other.store", check=False)
    assert covered.returncode == 5
    assert "shows another store" in covered.stderr
    assert mounts_below([tmp_path / "other"]) == []


def test_files_under_the_mount_point_are_not_hidden(tmp_path: Path, statefs_cli: Cli) -> None:
    """They are named, and --adopt brings them into current/."""
    state = tmp_path / "state"
    (state / "current" / "files").mkdir(parents=True)
    (state / "current" / "files" / "early").write_text("bird")
    (state / "note").write_text("hello")
    refused = statefs_cli("mount", state, check=False)
    assert refused.returncode == 10
    assert "(current, note)" in refused.stderr and "--adopt" in refused.stderr
    adopted = statefs_cli("mount", "--adopt", state)
    holders = {each.pid for each in processes_using(state)}
    assert not holders, "the daemon itself keeps the mount busy"
    assert adopted.stdout.endswith(f"brought into {state}/current: files, note\n")
    assert (state / "current" / "files" / "early").read_text() == "bird"
    assert (state / "current" / "note").read_text() == "hello"
    statefs_cli("umount", state)
    assert os.listdir(state) == []
    (state / "note").write_text("another")
    again = statefs_cli("mount", "--adopt", state)
    assert f"as theirs was taken: {state}/current/note.adopted-1" in again.stderr
    assert (state / "current" / "note.adopted-1").read_text() == "another"
    assert (state / "current" / "note").read_text() == "hello"


def test_a_reserved_name_under_the_mount_point_is_told(tmp_path: Path, statefs_cli: Cli) -> None:
    """Before a store is made, with the file's name and what to do about it."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "metadata.json").write_text("{}")
    refused = statefs_cli("mount", "--adopt", state, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (10, 1)
    assert f"{state}/metadata.json cannot be brought into current/" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_stopped_daemon_is_told_from_a_slow_one(own_state: MountedState) -> None:
    """Within seconds, with its pid and what has it go on; it is not waited for."""
    pid = own_state.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        refused = own_state.run("status", own_state.state)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert refused.returncode == 16
    assert f"is stopped and does not answer: 'kill -CONT {pid}'" in refused.stderr
    assert f"Worker      pid {pid}\n" in own_state.command("status", own_state.state)


def test_a_stopped_daemon_is_neither_unmounted_nor_mounted_already(
    own_state: MountedState,
) -> None:
    """It could not be used, or waited for: its processes are named, and what has them go on."""
    pids = sorted([own_state.worker_pid(), own_state.daemon_pid()])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        refusals = [own_state.run(word, own_state.state) for word in ("umount", "mount")]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    for refused in refusals:
        assert (refused.returncode, refused.stderr.count("\n")) == (16, 1)
        assert f"'kill -CONT {pids[0]} {pids[1]}' has it go on" in refused.stderr
    assert (own_state.files / "a").write_text("still mounted")


def test_the_shell_completes_paths_and_clones(own_state: MountedState) -> None:
    """Those of the snapshot that is named; those of current where none can be; folders with /."""
    (own_state.files / "then").touch()
    own_state.command("save", own_state.state)
    (own_state.files / "then").rename(own_state.files / "now")
    own_state.command("clone", own_state.state, "latest", "copy")

    def completed(*words: str) -> list[str]:
        line = f"statefs {words[0]} {own_state.state} {' '.join(words[1:])}".rstrip(" ")
        count = len(words) + 1
        environment = {"_STATEFS_COMPLETE": "bash_complete", "COMP_WORDS": line}
        done = subprocess.run(
            [sys.executable, "-m", "statefs"],
            env=os.environ | environment | {"COMP_CWORD": str(count)},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        return [each.split(",", 1)[1] for each in done.stdout.split()]

    assert completed("cat", "latest", "files/") == ["files/then"]
    assert completed("restore", "latest", "fi") == ["files/"]
    assert completed("log", "files/n") == ["files/now"]
    assert completed("clone", "--delete", "co") == ["copy"]
    own_state.umount()
    assert completed("log", "files/n") == []


def test_cat_shows_what_lies_in_runtime_now(own_state: MountedState) -> None:
    """Snapshots leave it out; current does not."""
    name = "runtime/env.json"
    text = (own_state.current / name).read_text()
    assert own_state.command("cat", own_state.state, "current", name) == text
    own_state.command("save", own_state.state)
    assert own_state.run("cat", own_state.state, "latest", name).returncode == 22


@pytest.fixture
def crashed(own_state: MountedState) -> MountedState:
    """A state whose daemon was killed; its mount is still there and answers to nobody."""
    (own_state.files / "a").write_text("kept")
    own_state.kill_daemon()
    return own_state


def test_a_crash_leaves_a_mount_that_is_named(crashed: MountedState) -> None:
    """A second mount offers the repair, status tells, and a save works all the same."""
    refused = crashed.run("mount", crashed.state)
    assert refused.returncode == 13
    assert f"'statefs mount --repair {crashed.state}'" in refused.stderr
    status = json.loads(crashed.command("status", crashed.state, "--json"))
    assert (status["mounted"], status["stale"]) == (False, True)
    assert "stale" in crashed.command("status", crashed.state)
    crashed.command("save", crashed.state)
    crashed.command("mount", crashed.state, "--repair")
    assert len(crashed.listing()) == 1


def test_repair_mounts_again_after_a_crash(crashed: MountedState) -> None:
    """What was written is there; --repair on a healthy mount does nothing."""
    repaired = crashed.command("mount", crashed.state, "--repair")
    assert repaired == f"mounted {crashed.state}\n"
    assert (crashed.files / "a").read_text() == "kept"
    again = crashed.command("mount", crashed.state, "--repair")
    assert again == f"{crashed.state} is already mounted\n"


def test_umount_frees_what_a_crash_left(crashed: MountedState) -> None:
    """And says that the daemon had crashed."""
    freed = crashed.command("umount", crashed.state)
    assert freed == f"unmounted {crashed.state} (its daemon had crashed)\n"
    assert not crashed.is_mounted()


def test_a_busy_mount_names_who_uses_it(state: Path, statefs_cli: Cli) -> None:
    """The refusal gives the process's name and pid; --lazy detaches all the same."""
    with subprocess.Popen(["sleep", "300"], cwd=state / "current") as user:
        try:
            refused = statefs_cli("umount", state, check=False)
            assert refused.returncode == 14
            assert f"sleep (pid {user.pid})" in refused.stderr and "--lazy" in refused.stderr
            assert statefs_cli("umount", "--lazy", state).stdout == f"unmounted {state}\n"
            assert mounts_below([state]) == []
        finally:
            user.kill()


def test_umount_from_inside_tells_the_shell_to_leave(state: Path) -> None:
    """The command itself is no holder; with no shell around it, it unmounts from inside."""
    statefs = f"{sys.executable} -m statefs umount"
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        ["bash", "-c", f"{statefs}; exit $?"],
        cwd=state / "current",
        env=path,
        stderr=subprocess.PIPE,
        text=True,
    ) as shell:
        _, said = shell.communicate(timeout=COMMAND_SECONDS)
    assert shell.returncode == 14
    assert f": your shell (pid {shell.pid}) stands in it: cd out of it first, or" in said
    assert said.count("pid") == 1
    assert run_in(state / "current", "umount").stdout == f"unmounted {state}\n"


def test_umount_of_no_state_says_so(tmp_path: Path, statefs_cli: Cli) -> None:
    """A folder without mount and store, one that is not there, and the root folder: exit 4."""
    for place in (tmp_path, tmp_path / "nothing", Path("/")):
        done = statefs_cli("umount", place, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (4, 1)
        assert f"{place} is no statefs state: no statefs is mounted there" in done.stderr


def test_the_foreground_serves_until_it_is_interrupted(tmp_path: Path, statefs_cli: Cli) -> None:
    """Ctrl-C unmounts and is a success."""
    state = tmp_path / "state"
    statefs_cli("init", state)
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "statefs", "mount", str(state), "--foreground"],
        env=os.environ | {"STATEFS_READY_FD": str(writer)},
        pass_fds=[writer],
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writer)
        with os.fdopen(reader) as ready:
            assert json.loads(ready.readline()) == {}
        status = json.loads(statefs_cli("status", state, "--json").stdout)
        assert status["supervisor_pid"] == process.pid
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=COMMAND_SECONDS)
    assert process.returncode == 0, said
    assert mounts_below([state]) == []


def test_mount_options_reach_the_kernel(tmp_path: Path, statefs_cli: Cli) -> None:
    """Also several -o, and words that fstab lines have for others; unknown ones are refused."""
    state = tmp_path / "state"
    statefs_cli("mount", state, "-o", "ro,noexec", "-o", "nofail,x-systemd.automount,_netdev")
    assert {"ro", "noexec"} <= mounts_below([state])[0].options
    refused = statefs_cli("mount", tmp_path / "other", "-o", "alow_other", check=False)
    assert refused.returncode == 2
    assert "did you mean allow_other?" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_noticed_before_the_mount(statefs_cli: Cli) -> None:
    """Making a store on a filesystem of 2 MiB fails with one line and leaves nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small filesystem")
    with open_folder("full") as folder:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, timeout=30
        )
        try:
            done = statefs_cli("mount", folder / "state", check=False)
            assert done.returncode == 11
            assert "2.0 MiB free" in done.stderr and "--store DIR" in done.stderr
            assert not (folder / "state.store").exists()
        finally:
            subprocess.run(["umount", folder], check=True, timeout=30)


def test_names_with_spaces_and_letters_of_any_script(tmp_path: Path) -> None:
    """The mount table writes some of them as octal escapes; every command copes."""
    folder = tmp_path / "a b\\c\tü,=#"
    folder.mkdir()
    with mounted(folder) as odd:
        name = odd.save()
        assert run_in(odd.current, "show", "latest", "--json").returncode == 0
        assert odd.listing()[0]["name"] == name
