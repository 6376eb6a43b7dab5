"""`statefs export` and `statefs import`: what goes out comes in again, and tar agrees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import statefs
from statefs.errors import StoreLocked, UsageError
from statefs.mounts import statefs_mounts
from tests.apps.programs import needs
from tests.harness.mounted_state import (
    END_SECONDS,
    POLL_SECONDS,
    MountedState,
    mounted,
    wait_for_lock,
)
from tests.harness.sample_tree import make_sample_tree
from tests.harness.trees import capture, differences

MIB = 1 << 20
LEFT_OUT = {b"metadata.json", b"runtime"}
RSYNC = ("rsync", "-aHAXn", "--numeric-ids", "--delete", "--checksum", "-i")
TAR = (
    "tar",
    "--acls",
    "--xattrs",
    "--xattrs-include=*",
    "--numeric-owner",
    "--warning=no-timestamp",
)


def fill(state: MountedState) -> None:
    """Put one of everything into files/, but for sockets, which archives cannot hold."""
    make_sample_tree(state.files)
    (state.files / "socket").unlink(missing_ok=True)
    os.utime(state.files, ns=(3, 1_500_000_000_123_456_789))
    (state.current / "volumes" / "db").mkdir(mode=0o710)


def says(*words: str | Path) -> str:
    """Run a program that must succeed and return what it said."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def same_trees(expected: Path, found: Path) -> list[str]:
    """Return what differs between two folders, but for metadata.json and runtime/."""
    first, second = (capture(each.resolve(), leave_out=LEFT_OUT) for each in (expected, found))
    return differences(first, second)


@pytest.fixture
def second(wide_folder: Path, tmp_path: Path) -> MountedState:
    """Return another state to import into; the test mounts it."""
    return MountedState(tmp_path / "other", tmp_path / "other.store")


@needs("tar", "rsync")
def test_gnu_tar_extracts_an_equal_tree(own_state: MountedState, tmp_path: Path) -> None:
    """By its own comparison and by rsync's: names, links, holes, times, owners, xattrs, ACLs."""
    fill(own_state)
    snapshot = own_state.snapshots / own_state.save("one of everything")
    archive, out = tmp_path / "a.tar", tmp_path / "out"
    own_state.command("export", own_state.state, "latest", archive)
    assert not list(own_state.store.glob("*.pipe"))
    out.mkdir()
    says(*TAR, "-xpf", archive, "-C", out)
    assert says(*RSYNC, f"{snapshot}/", f"{out}/") == ""
    assert (out / "metadata.json").read_bytes() == (snapshot / "metadata.json").read_bytes()
    assert os.stat(out / "files" / "sparse").st_blocks * 512 < MIB
    assert archive.stat().st_size < 5 * MIB


def test_a_round_trip_gives_the_same_trees(own_state: MountedState, tmp_path: Path) -> None:
    """Compressed, through pipes, exported while not mounted; how a check ended stays behind."""
    fill(own_state)
    (own_state.current / "kept elsewhere").write_text("at the top")
    labels = {"name": "clean", "ticket": "7", "consistency": "verified"}
    first = own_state.save("for the journey", **labels)
    archive, again = tmp_path / "a.tar.zst", tmp_path / "b.tar"
    own_state.command("export", own_state.state, "clean", archive)
    with mounted(tmp_path) as other:
        said = other.command("import", other.state, archive)
        assert 'name=clean, ticket=7, "for the journey"' in said.replace(
            f"imported-from={first}, ", ""
        )
        before, after = other.listing()
        assert (before["reason"], after["reason"]) == ("before-import", "import")
        assert after["message"] == "for the journey"
        assert after["labels"] == {"name": "clean", "ticket": "7", "imported-from": first}
        assert same_trees(own_state.snapshots / first, other.snapshots / "latest") == []
        assert same_trees(own_state.snapshots / first, other.current) == []
        other.umount()
        exporting = [sys.executable, "-m", "statefs", "export", str(other.state), "latest", "-"]
        with open(again, "wb") as file:
            subprocess.run(exporting, stdout=file, check=True, timeout=60)
        other.mount()
    importing = [sys.executable, "-m", "statefs", "import", str(own_state.state), "-", "--replace"]
    with open(again, "rb") as file:
        subprocess.run(importing, stdin=file, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert same_trees(own_state.snapshots / first, own_state.current) == []
    assert "name" not in own_state.listing()[-1]["labels"]


@needs("tar")
def test_what_gnu_tar_made_is_imported(own_state: MountedState, tmp_path: Path) -> None:
    """Its pax archives, sparse files included; the snapshot says where it is from."""
    source, archive = tmp_path / "source", tmp_path / "a.tar"
    (source / "files").mkdir(parents=True)
    make_sample_tree(source / "files")
    (source / "files" / "socket").unlink(missing_ok=True)
    (source / "volumes").mkdir()
    says(*TAR, "-S", "--format=pax", "-cf", archive, "-C", source, ".")
    own_state.command("import", own_state.state, archive)
    assert same_trees(source, own_state.current) == []
    assert os.stat(own_state.files / "sparse").st_blocks * 512 < MIB
    assert own_state.listing()[-1]["message"] == "import of a.tar"


def test_what_is_in_current_is_not_replaced_unasked(
    own_state: MountedState, tmp_path: Path
) -> None:
    """--into puts it beside, --replace in its place; the snapshot before has what gave way."""
    (own_state.files / "old").write_text("old")
    own_state.save()
    archive = tmp_path / "a.tar"
    own_state.command("export", own_state.state, "latest", archive)
    (own_state.files / "old").write_text("newer")
    (own_state.current / "runtime" / "mine").write_text("the supervisor's")
    refused = own_state.run("import", own_state.state, archive)
    assert (
        refused.returncode == 2 and "--into DIR" in refused.stderr and len(own_state.listing()) == 1
    )
    own_state.command("import", own_state.state, archive, "--into", "files/beside")
    assert (own_state.files / "beside" / "files" / "old").read_text() == "old"
    assert (
        own_state.run("import", own_state.state, archive, "--into", "files/beside").returncode == 2
    )
    assert own_state.run("import", own_state.state, archive, "--into", "../out").returncode == 2
    held = os.open(own_state.files, os.O_RDONLY)
    try:
        own_state.command("import", own_state.state, archive, "--replace")
        assert os.listdir(held) == ["old"]
    finally:
        os.close(held)
    assert (own_state.files / "old").read_text() == "old"
    before = own_state.listing()[-2]
    assert (own_state.snapshots / before["name"] / "files" / "old").read_text() == "newer"
    assert (own_state.current / "runtime" / "mine").read_text() == "the supervisor's"
    assert sorted(os.listdir(own_state.current)) == ["files", "runtime", "volumes"]


def mounts_of(store: Path) -> list[Path]:
    """Return where a store is mounted."""
    return [each.mount_point for each in statefs_mounts() if Path(each.source) == store]


def test_a_state_that_is_not_mounted_is_mounted_for_an_import(
    own_state: MountedState, tmp_path: Path
) -> None:
    """And not longer; the next mount shows what came. A refusal names the state, not that mount."""
    fill(own_state)
    first = own_state.save("for the journey")
    archive = tmp_path / "a.tar"
    own_state.command("export", own_state.state, "latest", archive)
    other = MountedState(tmp_path / "other", tmp_path / "other.store")
    other.command("init", other.state)
    said = other.command("import", other.state, archive, "--json")
    assert json.loads(said)["snapshot"]["labels"] == {"imported-from": first}
    assert mounts_of(other.store) == [] and not other.is_mounted()
    refused = other.run("import", "--store", other.store, archive)
    assert refused.returncode == 2 and f"current/ of {other.store} is not" in refused.stderr
    refused = other.run("import", other.state, archive)
    assert refused.returncode == 2 and f"{other.state}/current is not empty" in refused.stderr
    assert [each["message"] for each in other.listing()][1:] == ["for the journey"]
    other.mount()
    assert same_trees(own_state.snapshots / first, other.current) == []


def test_an_archive_of_any_name_is_imported(own_state: MountedState, tmp_path: Path) -> None:
    """Also one that is no UTF-8: the snapshots' messages name it with escapes."""
    archive = Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xff.tar"))
    with tarfile.open(archive, "w") as made:
        made.add(__file__, "files/\udcfe")
    own_state.command("import", own_state.state, archive)
    assert os.listdir(os.fsencode(own_state.files)) == [b"\xfe"]
    assert [each["message"] for each in own_state.listing()] == [
        "before the import of a\\xff.tar",
        "import of a\\xff.tar",
    ]


def test_the_api_goes_on_with_a_store_after_an_import(tmp_path: Path) -> None:
    """The lock is let go of for the import, and taken again."""
    other = MountedState(tmp_path / "other", tmp_path / "other.store")
    other.command("init", other.state)
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as made:
        made.add(__file__, "files/f")
    with statefs.open(other.state) as opened:
        done = opened.import_(archive)
        assert opened.show().snapshot_id == done["snapshot"].snapshot_id
        with pytest.raises(UsageError):
            opened.import_(archive)
        assert len(opened.list_snapshots()) == 2
        assert other.run("save", other.state).returncode == StoreLocked.exit_code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_import_into_an_unmounted_state_that_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    """No mount stays behind, also after a kill; current is as it was, and a later import works."""
    other = MountedState(tmp_path / "other", tmp_path / "other.store")
    other.command("init", other.state)
    archive, big = tmp_path / "a.tar", tmp_path / "big"
    big.write_bytes(os.urandom(4 * MIB))
    with tarfile.open(archive, "w") as made:
        made.add(big, "files/f")
        made.add(big, "files/g")
    words = command_line("import", other.state, "-")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(archive.read_bytes()[: 6 * MIB])
        process.stdin.flush()
        staged = "current/.statefs-import-*/new/files/f"
        wait_for(lambda: [each for at in mounts_of(other.store) for each in at.glob(staged)])
        process.send_signal(number)
        process.wait(END_SECONDS)
        process.stdin.close()
        assert process.stderr.read().strip() == b""
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    wait_for(lambda: not mounts_of(other.store))
    wait_for_lock(other.store)
    assert len(other.listing()) == (0 if number == signal.SIGINT else 1)
    other.command("import", other.state, archive)
    other.mount()
    assert sorted(os.listdir(other.current)) == ["files", "runtime", "volumes"]
    assert sorted(os.listdir(other.files)) == ["f", "g"]


def wait_for(condition: Callable[[], object]) -> None:
    """Return when `condition` holds."""
    end = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(POLL_SECONDS / 10)


def command_line(*words: str | Path) -> list[str]:
    """Return the words that run `statefs`."""
    return [sys.executable, "-m", "statefs", *map(str, words)]


def test_ctrl_c_ends_an_export_and_leaves_nothing(own_state: MountedState, tmp_path: Path) -> None:
    """In the middle of a file, and while nobody reads standard output."""
    (own_state.files / "big").write_bytes(os.urandom(MIB) * 150)
    own_state.save()
    archive = tmp_path / "out" / "a.tar.zst"
    archive.parent.mkdir()
    words = command_line("export", own_state.state, "latest", archive)
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        wait_for(lambda: os.listdir(archive.parent))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=END_SECONDS)
    assert (process.returncode, said.strip(), os.listdir(archive.parent)) == (130, b"", [])
    words = command_line("export", own_state.state, "latest", "-")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(MIB)
        process.send_signal(signal.SIGINT)
        process.wait(END_SECONDS)
        assert process.stderr.read().strip() == b""
    assert process.returncode == 130
    assert not list(own_state.store.glob("*.pipe"))
    own_state.command("export", own_state.state, "latest", archive)
    own_state.verify_mounted()


def test_ctrl_c_ends_an_import_and_current_is_as_it_was(
    own_state: MountedState, tmp_path: Path
) -> None:
    """With half of the archive in; also what was to be replaced is untouched."""
    fill(own_state)
    (own_state.files / "big").write_bytes(os.urandom(5 * MIB))
    archive = tmp_path / "a.tar"
    own_state.save()
    own_state.command("export", own_state.state, "latest", archive)
    before = capture(own_state.current)
    words = command_line("import", own_state.state, "-", "--replace")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(archive.read_bytes()[: 2 * MIB])
        process.stdin.flush()
        wait_for(lambda: list(own_state.current.glob(".statefs-import-*/new/files")))
        process.send_signal(signal.SIGINT)
        process.wait(END_SECONDS)
        assert process.stderr.read().strip() == b""
        process.stdin.close()
    assert process.returncode == 130
    assert differences(before, capture(own_state.current)) == []
    assert len(own_state.listing()) == 1
    own_state.verify_mounted()


def test_a_killed_import_is_cleared_away_by_the_next(
    own_state: MountedState, tmp_path: Path
) -> None:
    """Its hidden folder goes; the archive comes in as if nothing had been."""
    fill(own_state)
    snapshot = own_state.snapshots / own_state.save()
    archive = tmp_path / "a.tar"
    own_state.command("export", own_state.state, "latest", archive)
    words = command_line("import", own_state.state, "-", "--into", "files/here")
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(archive.read_bytes()[:MIB])
        process.stdin.flush()
        wait_for(lambda: list(own_state.current.glob(".statefs-import-*/new/files")))
        process.kill()
        process.wait(END_SECONDS)
        process.stdin.close()
    assert list(own_state.current.glob(".statefs-import-*"))
    said = own_state.command("import", own_state.state, archive, "--into", "files/here", "--json")
    assert json.loads(said)["members"] > 0
    assert same_trees(snapshot, own_state.files / "here") == []
    assert not list(own_state.current.glob(".statefs-import-*"))


def test_the_snapshot_may_be_deleted_while_it_is_exported(
    own_state: MountedState, tmp_path: Path
) -> None:
    """What is read stays until the export has ended; then its space comes back."""
    content = os.urandom(MIB) * 20
    (own_state.files / "big").write_bytes(content)
    own_state.save()
    (own_state.files / "big").unlink()
    words = command_line("export", own_state.state, "latest", "-")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        begun = process.stdout.read(MIB)
        own_state.delete("latest")
        time.sleep(1.0)  # as long as it would take to free the bytes
        whole = begun + process.stdout.read()
        assert process.wait(END_SECONDS) == 0
    assert content in whole
    objects = own_state.store / "objects"
    wait_for(lambda: not [each for each in objects.glob("*/*") if each.stat().st_size > MIB])
