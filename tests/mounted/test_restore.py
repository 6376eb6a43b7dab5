"""A restore on a mount: programs see it at once, through names, open files and memory maps."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import statefs
from statefs.api import State
from statefs.archive.extraction import Extraction
from statefs.archive.headers import Member
from statefs.archive.reading import Archive
from statefs.cli import app
from statefs.errors import FilesInUse, NoSuchSnapshot, UsageError
from statefs.snapshots.documents import SnapshotDocument
from tests.harness.mounted_state import MountedState
from tests.harness.sample_tree import make_sample_tree
from tests.harness.trees import capture, differences

BIG = 300_000
HOLDER = "import sys; file = open(sys.argv[1], 'a'); print(1, flush=True); input()"


def test_everything_comes_back(own_state: MountedState) -> None:
    """Content, names, modes and links, though the kernel had all of it cached."""
    files = own_state.files
    (files / "small").write_text("one")
    (files / "big").write_bytes(b"1" * BIG)
    (files / "gone").write_text("gone")
    (files / "folder").mkdir()
    (files / "folder/inner").write_text("inner")
    os.link(files / "small", files / "link")
    name = own_state.save()
    (files / "small").write_text("two, longer")
    with open(files / "big", "r+b") as file:
        file.write(b"2" * 5000)
    (files / "gone").unlink()
    (files / "new").write_text("new")
    os.rename(files / "folder", files / "renamed")
    os.chmod(files / "big", 0o600)
    for each in ("small", "big", "gone", "new", "folder", "renamed", "link"):
        (files / each).exists()  # names, and their absence, are in the kernel's cache
    with statefs.open(own_state.state) as opened:
        told = opened.restore(name)
        assert told["restored"] == name
        saved = opened.show(told["saved"])
        assert saved.reason == "before-restore" and saved.message == f"before restore of {name}"
    assert sorted(os.listdir(files)) == ["big", "folder", "gone", "link", "small"]
    assert (files / "small").read_text() == (files / "link").read_text() == "one"
    assert (files / "big").read_bytes() == b"1" * BIG
    assert os.stat(files / "big").st_mode & 0o777 == 0o644
    assert (files / "folder/inner").read_text() == "inner"
    assert not (files / "new").exists() and not (files / "renamed").exists()
    assert os.stat(files / "small").st_nlink == 2


def test_undo_brings_back_what_a_restore_replaced(own_state: MountedState) -> None:
    """And undo again restores once more; what was changed elsewhere meanwhile stays."""
    (own_state.files / "a").write_text("one")
    name = own_state.save()
    (own_state.files / "a").write_text("two")
    with statefs.open(own_state.state) as opened:
        opened.restore(name)
        (own_state.files / "b").write_text("since")
        assert (own_state.files / "a").read_text() == "one"
        opened.undo()
        assert (own_state.files / "a").read_text() == "two"
        assert (own_state.files / "b").read_text() == "since"
        opened.undo()
        assert (own_state.files / "a").read_text() == "one"
        assert (own_state.files / "b").read_text() == "since"


def test_a_link_that_a_command_removed_is_a_link_again(own_state: MountedState) -> None:
    """After an undo, and after a restore of its path: the kernel shows one file with two names."""
    one, other = own_state.files / "a", own_state.files / "b"
    one.write_text("one")
    os.link(one, other)
    name = own_state.save()
    for words in (["undo", own_state.state], ["restore", own_state.state, name, "files/b"]):
        run("try", own_state.state, "--", "rm", other)
        assert os.stat(one).st_nlink == 1
        run(*words)
        assert os.path.samefile(one, other) and os.stat(one).st_nlink == 2
    other.write_text("two")
    assert one.read_text() == "two"


def test_there_is_nothing_to_undo(own_state: MountedState) -> None:
    """Before any restore."""
    with statefs.open(own_state.state) as opened, pytest.raises(NoSuchSnapshot, match="nothing to"):
        opened.undo()


def test_open_files_and_maps_see_what_was_restored(own_state: MountedState) -> None:
    """A descriptor opened before reads, and a shared map shows, the restored bytes."""
    path = own_state.files / "f"
    path.write_bytes(b"old " * 5000)
    name = own_state.save()
    with open(path, "r+b") as file:
        file.write(b"new ")
    with open(path, "rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as shown:
        assert shown[:4] == b"new " and os.pread(reader.fileno(), 4, 0) == b"new "
        with statefs.open(own_state.state) as opened:
            opened.restore(name, ["files/f"])
        assert os.pread(reader.fileno(), 4, 0) == b"old "
        assert shown[:4] == b"old "


def test_an_appender_goes_on_at_the_restored_end(own_state: MountedState) -> None:
    """The size that the kernel remembers for O_APPEND is the restored one."""
    path = own_state.files / "log"
    path.write_text("one\n")
    name = own_state.save()
    with open(path, "a") as log:
        log.write("two\n")
        log.flush()
        with statefs.open(own_state.state) as opened:
            opened.restore(name, force=True)
        log.write("three\n")
        log.flush()
        assert path.read_text() == "one\nthree\n"


def test_a_working_folder_stays_one(own_state: MountedState) -> None:
    """A program that stands in a folder that a restore leaves in place finds its way."""
    folder = own_state.files / "folder"
    folder.mkdir()
    (folder / "f").write_text("one")
    name = own_state.save()
    (folder / "f").write_text("two")
    with subprocess.Popen(
        [sys.executable, "-c", "input(); import os; print(os.getcwd(), open('f').read())"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        with statefs.open(own_state.state) as opened:
            opened.restore(name)
        out, _ = program.communicate("\n", timeout=20)
    assert out.strip() == f"{folder} one"


def test_programs_that_write_are_named(
    own_state: MountedState, capsys: pytest.CaptureFixture[str]
) -> None:
    """The restore refuses, and says who; --force goes on, and other paths are free."""
    (own_state.files / "used").write_text("one")
    (own_state.files / "free").write_text("one")
    name = own_state.save()
    (own_state.files / "used").write_text("two")
    (own_state.files / "free").write_text("two")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, own_state.files / "used"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        program.stdout.readline()
        with statefs.open(own_state.state) as opened:
            with pytest.raises(FilesInUse, match=rf"\(pid {program.pid}\) has files/used open"):
                opened.restore(name)
            assert (own_state.files / "used").read_text() == "two"
            beforehand = opened.restore(name, dry_run=True)
            assert opened.restore(name, ["files/free"], dry_run=True)["overridden"] == []
            assert app.run(["restore", str(own_state.state), name, "--dry-run"]) == 0
            shown = capsys.readouterr().err
            assert (
                "without --force" in shown and f"(pid {program.pid}) has files/used open" in shown
            )
            told = opened.restore(name, ["files/free"])
            assert (own_state.files / "free").read_text() == "one"
            message = f"before restore of {name}: files/free"
            assert opened.show(told["saved"]).message == message
            told = opened.restore(name, force=True)
            assert told["overridden"] == beforehand["overridden"] == [
                {"name": Path(f"/proc/{program.pid}/comm").read_text().strip(),
                 "pid": program.pid, "path": "files/used"},
            ]  # fmt: skip
            assert (own_state.files / "used").read_text() == "one"
        program.communicate("\n", timeout=20)
    # The command's own output is no other program's.
    words = [own_state.files / "used", sys.executable, "-m", "statefs", "restore", own_state.state]
    subprocess.run(["sh", "-c", 'exec "$@" > "$0"', *map(str, words), name], check=True)


@pytest.mark.parametrize("setup", ["true", 'umount -l "$1"'], ids=["sees it", "sees it no more"])
def test_a_writer_in_another_mount_namespace_is_named(own_state: MountedState, setup: str) -> None:
    """Its descriptor is of the mount it was inherited from, not of one that it sees itself."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a mount namespace")
    path = own_state.files / "used"
    path.write_text("one")
    name = own_state.save()
    path.write_text("two")
    script = f"{setup} && echo && read -r _"
    with path.open("a") as file:
        program = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", own_state.state],
            pass_fds=[file.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    with program, statefs.open(own_state.state) as opened:
        assert program.stdout is not None
        assert program.stdout.readline() == "\n"
        with pytest.raises(FilesInUse, match=rf"\(pid {program.pid}\) has files/used open"):
            opened.restore(name)
        program.communicate("\n", timeout=20)
        opened.restore(name)
    assert path.read_text() == "one"


def test_a_dry_run_changes_nothing(own_state: MountedState) -> None:
    """It says what would become of each path, and takes no snapshot."""
    (own_state.files / "a").write_text("one")
    name = own_state.save()
    (own_state.files / "a").write_text("two")
    (own_state.files / "b").write_text("new")
    with statefs.open(own_state.state) as opened:
        told = opened.restore(name, dry_run=True)
        assert {each["path"]: each["what"] for each in told["changes"]} == {
            "files": "changed", "files/a": "changed", "files/b": "removed",
        }  # fmt: skip
        assert told["saved"] is None and len(opened.list_snapshots()) == 1
    assert (own_state.files / "a").read_text() == "two"


def test_runtime_is_never_restored(own_state: MountedState) -> None:
    """Nor can it be asked for."""
    env = own_state.state / "current/runtime/env.json"
    name = own_state.save()
    env.write_text('{"later": true}')
    (own_state.files / "f").write_text("x")
    with statefs.open(own_state.state) as opened:
        opened.restore(name)
        assert env.read_text() == '{"later": true}'
        assert not (own_state.files / "f").exists()
        with pytest.raises(UsageError, match="runtime/"):
            opened.restore(name, ["current/runtime"])


def test_a_removed_folder_comes_back_for_one_path(own_state: MountedState) -> None:
    """With the folders above it, and nothing else of what they held."""
    deep = own_state.files / "a/b/c"
    deep.mkdir(parents=True)
    (deep / "wanted").write_text("wanted")
    (deep / "other").write_text("other")
    name = own_state.save()
    subprocess.run(["rm", "-r", own_state.files / "a"], check=True)
    with statefs.open(own_state.state) as opened:
        opened.restore(name, ["files/a/b/c/wanted"])
    assert os.listdir(deep) == ["wanted"]
    assert (deep / "wanted").read_text() == "wanted"


def test_restores_under_load_harm_nobody(own_state: MountedState) -> None:
    """Programs write and list while the state goes back and forth; each tree is whole."""
    (own_state.files / "kept").write_bytes(b"k" * BIG)
    for number in range(50):
        (own_state.files / f"f{number}").write_text("one")
    first = own_state.save()
    for number in range(50):
        (own_state.files / f"f{number}").write_text("two")
    second = own_state.save()
    is_over = threading.Event()
    failures: list[BaseException] = []

    def work(place: Path) -> None:
        count = 0
        try:
            while not is_over.is_set():
                count += 1
                path = place / f"n{count % 7}"
                path.write_bytes(b"x" * (count % 20_000))
                os.rename(path, place / f"m{count % 5}")
                os.listdir(own_state.files)
        except BaseException as error:
            failures.append(error)

    elsewhere = own_state.state / "current/elsewhere"
    elsewhere.mkdir()
    thread = threading.Thread(target=work, args=(elsewhere,))
    thread.start()
    try:
        with statefs.open(own_state.state) as opened:
            for turn in range(10):
                name, word = ((first, "one"), (second, "two"))[turn % 2]
                opened.restore(name, ["files"], force=True)
                assert {(own_state.files / f"f{n}").read_text() for n in range(50)} == {word}
                assert (own_state.files / "kept").read_bytes() == b"k" * BIG
    finally:
        is_over.set()
        thread.join()
    assert failures == []


def test_a_store_that_is_not_mounted_is_restored_too(own_state: MountedState) -> None:
    """The next mount shows it."""
    (own_state.files / "f").write_text("one")
    name = own_state.save()
    (own_state.files / "f").write_text("two")
    own_state.umount()
    with statefs.open(own_state.state) as opened:
        opened.restore(name)
    own_state.mount()
    assert (own_state.files / "f").read_text() == "one"


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `statefs WORDS...`."""
    done = subprocess.run(
        [sys.executable, "-m", "statefs", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_a_command_that_fails_is_rolled_back(own_state: MountedState) -> None:
    """Just what it changed; what others changed meanwhile, and the exit code, stay."""
    files = own_state.files
    (files / "a").write_text("one")
    script = f"echo two > {files}/a; echo new > {files}/b; exit 3"
    done = run("try", own_state.state, "--on-failure", "rollback", "--", "sh", "-c", script,
               check=False)  # fmt: skip
    assert done.returncode == 3
    assert "failed with 3" in done.stderr and "put back what it changed: 3 paths" in done.stderr
    assert (files / "a").read_text() == "one" and not (files / "b").exists()


def test_a_rollback_names_the_programs_it_overrides(own_state: MountedState) -> None:
    """One that the command left behind still writes there: it is said who, and where."""
    files = own_state.files
    (files / "a").write_text("one")
    stays = f"exec 3>>{files}/a; echo two >&3; sleep 60 <&- >&- 2>&- & echo $!; exit 3"
    done = run("try", own_state.state, "--on-failure", "rollback", "--", "sh", "-c", stays,
               check=False)  # fmt: skip
    try:
        assert done.returncode == 3 and (files / "a").read_text() == "one"
        assert "put back what it changed: 1 path\n" in done.stderr
        assert re.search(rf"may write over.*sleep \(pid {done.stdout.strip()}\)", done.stderr)
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_an_import_is_undone(own_state: MountedState, tmp_path: Path) -> None:
    """Not the restore before it; once its snapshot is gone undo refuses, and says what it can."""
    files, archive = own_state.files, tmp_path / "a.tar"
    (files / "a").write_text("one")
    first = own_state.save()
    own_state.command("export", own_state.state, first, archive)
    (files / "a").write_text("two")
    own_state.command("restore", own_state.state, first)
    (files / "b").write_text("b")
    own_state.command("import", own_state.state, archive, "--replace")
    _, safety, before, after = own_state.listing()
    assert before["operation"]["other"] == after["snapshotId"]
    own_state.command("undo", own_state.state)
    assert (files / "b").read_text() == "b" and (files / "a").read_text() == "one"
    own_state.command("delete", own_state.state, "latest")
    refused = own_state.run("undo", own_state.state)
    assert refused.returncode == NoSuchSnapshot.exit_code
    assert f"an undo, and {own_state.listing()[-1]['name']}" not in refused.stderr
    assert f"'statefs undo --of {after['name']}' undoes an import" in refused.stderr
    own_state.command("undo", own_state.state, "--of", safety["name"], "--force")
    assert (files / "a").read_text() == "two" and (files / "b").read_text() == "b"


def test_a_rollback_is_of_its_own_command(
    own_state: MountedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore and another command come between its second snapshot and the rollback."""
    files = own_state.files
    for name in ("mine", "theirs", "restored"):
        (files / name).write_text("old")
    first = own_state.save()
    really_save = State.save

    def save_and_be_overtaken(self: State, *words: Any, **named: Any) -> SnapshotDocument:
        saved = really_save(self, *words, **named)
        if named.get("operation", {}).get("phase") == "after":
            (files / "restored").write_text("new")
            run("restore", own_state.state, first, "files/restored")
            run("try", own_state.state, "--", "sh", "-c", f"echo new > {files}/theirs")
        return saved

    monkeypatch.setattr(State, "save", save_and_be_overtaken)
    words = ["try", str(own_state.state), "--on-failure", "rollback", "--"]
    assert app.run([*words, "sh", "-c", f"echo new > {files}/mine; exit 3"]) == 3
    assert (files / "mine").read_text() == "old"
    assert (files / "theirs").read_text() == "new\n"
    assert (files / "restored").read_text() == "old"


def test_a_command_is_undone_later(own_state: MountedState) -> None:
    """Though other files have been written since; the pair is linked in metadata.json."""
    files = own_state.files
    (files / "a").write_text("one")
    done = run("try", own_state.state, "-m", "turn", "--", "sh", "-c", f"echo two > {files}/a")
    assert f"'statefs undo {own_state.state}' puts it back" in done.stderr
    (files / "other").write_text("kept")
    with statefs.open(own_state.state) as opened:
        before, after = opened.list_snapshots()
        assert (before.message, after.message) == ("turn", "turn")
        assert (before.reason, after.reason) == ("before-try", "try")
    shown = own_state.snapshots / before.name / "metadata.json"
    for each, other in ((before, after), (after, before)):
        assert each.operation is not None and each.operation.other == other.snapshot_id
    assert json.loads(shown.read_text())["operation"]["other"] == after.snapshot_id
    assert "1 path" in run("undo", own_state.state).stdout.replace("2 paths", "1 path")
    assert (files / "a").read_text() == "one"
    assert (files / "other").read_text() == "kept"


def test_paths_as_other_programs_write_them(own_state: MountedState) -> None:
    """Each command takes a file by its path in current/, or in any snapshot."""
    file = own_state.files / "a"
    file.write_text("one")
    name = own_state.save()
    file.write_text("two")
    assert run("cat", own_state.state, name, file).stdout == "one"
    then = own_state.snapshots / name / "files" / "a"
    assert run("log", then).stdout == run("log", own_state.state, "files/a").stdout
    run("restore", own_state.state, name, file)
    assert file.read_text() == "one"
    run("clone", own_state.state, name, own_state.files, "copy")
    assert (own_state.state / "clones/copy/a").read_text() == "one"
    run("clone", "--delete", own_state.state, "copy")


def test_a_command_that_is_not_there(own_state: MountedState) -> None:
    """Exits as a shell would; without a command at all it is a usage error."""
    done = run("try", own_state.state, "--", "no-such-program", check=False)
    assert done.returncode == 127 and own_state.listing() == []
    assert done.stderr == "statefs: error: no-such-program: command not found\n"
    own_state.files.joinpath("script").touch(0o644)
    done = run("try", own_state.state, "--", own_state.files / "script", check=False)
    assert done.returncode == 126 and "permission denied" in done.stderr
    assert run("try", own_state.state, check=False).returncode == 2


def test_a_copy_goes_elsewhere(own_state: MountedState, tmp_path: Path) -> None:
    """All of a snapshot, or one path; current/ stays, an existing folder is refused."""
    (own_state.files / "a").write_text("one")
    (own_state.files / "b").write_text("b")
    os.link(own_state.files / "a", own_state.files / "link")
    name = own_state.save()
    (own_state.files / "a").write_text("two")
    run("restore", own_state.state, name, "--to", tmp_path / "all")
    run("restore", own_state.state, name, "files/b", "--to", tmp_path / "one")
    assert sorted(os.listdir(tmp_path / "all")) == ["files", "volumes"]
    assert (tmp_path / "all/files/a").read_text() == "one"
    assert os.stat(tmp_path / "all/files/a").st_nlink == 2
    assert os.listdir(tmp_path / "one/files") == ["b"]
    assert (own_state.files / "a").read_text() == "two"
    refused = run("restore", own_state.state, name, "--to", tmp_path / "one", check=False)
    assert refused.returncode == 2 and "exists" in refused.stderr
    refused = run("restore", own_state.state, name, "--to", tmp_path / "a/b/c", check=False)
    way = f"there is no folder {tmp_path}/a; 'mkdir -p {tmp_path}/a/b' makes it"
    assert refused.returncode == 2 and way in refused.stderr


@pytest.mark.parametrize("paths", [(), ("files/linked", "volumes")])
def test_a_copy_is_the_same_without_a_mount(
    own_state: MountedState, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    """Links, holes, extended attributes, ACLs, owners and nanoseconds, as through the mount."""
    make_sample_tree(own_state.files)
    (own_state.files / "socket").unlink(missing_ok=True)
    (own_state.current / "volumes" / "db").mkdir(mode=0o710)
    (own_state.files / "linked").mkdir(mode=0o750)
    (own_state.files / "linked" / "one").write_bytes(b"1" * 20_000)
    os.link(own_state.files / "linked" / "one", own_state.files / "linked" / "two")
    os.link(own_state.files / "linked" / "one", own_state.files / "a first name elsewhere")
    os.utime(own_state.files / "linked", ns=(3, 1_500_000_000_123_456_789))
    name = own_state.save()
    run("restore", own_state.state, name, *paths, "--to", tmp_path / "mounted")
    own_state.umount()
    store = ("--store", own_state.store)
    done = run("restore", *store, name, *paths, "--to", tmp_path / "offline")
    assert done.stdout == f"copied {name} to {tmp_path / 'offline'}\n"
    expected, found = (capture(tmp_path / each) for each in ("mounted", "offline"))
    for tree in (expected, found):
        del tree[b"."]  # the new folder itself is nobody's copy
    assert differences(expected, found) == []
    for path in (tmp_path / "mounted").rglob("*"):
        there = tmp_path / "offline" / path.relative_to(tmp_path / "mounted")
        assert os.lstat(there).st_blocks <= os.lstat(path).st_blocks + 8
    missing = run("restore", *store, name, "files/none", "--to", tmp_path / "no", check=False)
    assert missing.returncode == 2 and "'files/none' is not in the snapshot" in missing.stderr
    again = run("restore", *store, name, "--to", tmp_path / "offline", check=False)
    assert again.returncode == 2 and "exists" in again.stderr
    assert sorted(os.listdir(tmp_path)) == ["mounted", "offline"]


def test_a_copy_that_fails_leaves_nothing(
    own_state: MountedState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that of the disk, not of the pipe in between."""
    for number in range(40):
        (own_state.files / f"f{number}").write_bytes(os.urandom(50_000))
    name = own_state.save()
    own_state.umount()
    made = Extraction.add
    added: list[bytes] = []

    def refuse(self: Extraction, member: Member, archive: Archive) -> None:
        added.append(member.path)
        if len(added) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        made(self, member, archive)

    monkeypatch.setattr(Extraction, "add", refuse)
    (tmp_path / "place").mkdir()
    with (
        statefs.open(own_state.state, store=own_state.store) as state,
        pytest.raises(OSError, match="No space left"),
    ):
        state.copy_out(name, tmp_path / "place" / "copy")
    assert os.listdir(tmp_path / "place") == []


def test_the_command_line_restores(own_state: MountedState) -> None:
    """As documented: a dry run, the restore, and what it says."""
    (own_state.files / "a").write_text("one")
    name = own_state.save()
    (own_state.files / "a").write_text("two")
    shown = run("restore", own_state.state, name, "--dry-run").stdout
    assert "changed  files/a" in shown and f"would change 1 path, back to {name}" in shown
    assert f"restored {name}: 1 path changed" in run("restore", own_state.state, name).stdout
    assert "nothing to do" in run("restore", own_state.state, name).stdout
    assert (own_state.files / "a").read_text() == "one"
