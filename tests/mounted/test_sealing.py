"""A snapshot gets its digest by itself; any program can compute the same from the files."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from statefs.errors import CorruptStore
from statefs.layout import StoreLayout
from tests.harness.mounted_state import MountedState, eventually
from tests.harness.sample_tree import make_sample_tree

SCRIPT: Final = Path(__file__).parents[2] / "scripts" / "state_digest.py"


def by_script(folder: Path, *options: str) -> str:
    """Return what scripts/state_digest.py, without statefs, says of a folder."""
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(folder), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def metadata(state: MountedState, name: str) -> dict[str, Any]:
    """Return a snapshot's own document, as the mount shows it."""
    document: dict[str, Any] = json.loads((state.snapshots / name / "metadata.json").read_text())
    return document


def is_sealed(state: MountedState, name: str) -> bool:
    """Return whether a snapshot's own document says that it is sealed."""
    return bool(metadata(state, name)["sealed"])


def save_and_wait(state: MountedState) -> dict[str, Any]:
    """Take a snapshot and return its document when it is sealed."""
    document: dict[str, Any] = json.loads(state.command("save", state.state, "--wait", "--json"))
    return document


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and trusted.* need root")
def test_a_program_without_statefs_computes_the_same(own_state: MountedState) -> None:
    """Hard links, holes, attributes, ACLs, fifos, sockets, devices and odd names; twice."""
    make_sample_tree(own_state.files)
    os.mknod(own_state.files / "device", stat.S_IFCHR | 0o600, os.makedev(259, 70_000))
    os.setxattr(own_state.files / "small", "trusted.note", b"\0\xff")
    (own_state.current / "runtime" / "more").write_text("left out")
    volume = own_state.current / "volumes" / "v"
    volume.mkdir()
    make_sample_tree(volume)
    (volume / "metadata.json").write_text("of the volume")
    first = save_and_wait(own_state)
    assert first["sealed"]
    (manifest,) = first["volumeManifests"]
    past = own_state.snapshots / first["name"] / "volumes" / "v"
    assert manifest["digest"] == by_script(past, "--volume") != by_script(past)
    assert first["stateDigest"] == by_script(own_state.snapshots / first["name"])
    assert first["stateDigest"] == by_script(own_state.current), "current is the same by now"
    with open(own_state.files / "large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    (own_state.files / "script").chmod(0o600)
    second = save_and_wait(own_state)
    assert second["stateDigest"] == by_script(own_state.snapshots / second["name"])
    assert second["stateDigest"] != first["stateDigest"]
    own_state.verify_mounted()


def test_documents_tell_the_digest_as_soon_as_it_is_known(own_state: MountedState) -> None:
    """No old metadata.json is served, not even to a program that has read it before."""
    (own_state.files / "f").write_bytes(b"x" * 30_000_000)
    name = own_state.save()
    path = own_state.snapshots / name / "metadata.json"
    seen = [path.read_text()]
    eventually(lambda: json.loads(path.read_text())["sealed"], "sealed")
    seen.append(path.read_text())
    digest = json.loads(seen[-1])["stateDigest"]
    assert digest.startswith("sha256:")
    assert path.stat().st_size == len(seen[-1])
    kept = StoreLayout(own_state.store).snapshots / f"{name}.json"
    eventually(lambda: kept.read_text() == seen[-1], "the store's own file follows")
    index = json.loads((own_state.state / "index.json").read_text())
    assert index["currentStateDigest"] == index["snapshots"][-1]["stateDigest"] == digest


def current_digest(state: MountedState) -> str | None:
    """Return what index.json says that current/ hashed to after the last save or restore."""
    index = json.loads((state.state / "index.json").read_text())
    digest: str | None = index["currentStateDigest"]
    return digest


def test_the_digest_of_current_is_that_of_what_was_restored(own_state: MountedState) -> None:
    """Until the next save; after a restore that makes it like no snapshot, nobody knows.

    After its undo it is as before it.
    """
    make_sample_tree(own_state.files)
    first = save_and_wait(own_state)
    (own_state.files / "small").write_text("other")
    (own_state.files / "new").mkdir()
    second = save_and_wait(own_state)
    assert first["stateDigest"] != second["stateDigest"] == current_digest(own_state)
    own_state.command("restore", own_state.state, first["name"])
    assert current_digest(own_state) == first["stateDigest"] == by_script(own_state.current)
    eventually(partial(is_sealed, own_state, "latest"), "the safety snapshot is sealed")
    own_state.command("delete", own_state.state, first["name"])
    own_state.remount()
    assert current_digest(own_state) == first["stateDigest"] == by_script(own_state.current)
    own_state.verify_mounted()
    own_state.command("restore", own_state.state, second["name"], "files/small")
    assert current_digest(own_state) is None
    own_state.command("undo", own_state.state)
    eventually(lambda: current_digest(own_state) == first["stateDigest"], "as before that restore")
    own_state.verify_mounted()
    third = save_and_wait(own_state)
    assert current_digest(own_state) == third["stateDigest"] == by_script(own_state.current)


def test_a_labelled_snapshot_of_mkdir_is_sealed(own_state: MountedState) -> None:
    """Nobody has to ask for it."""
    (own_state.files / "f").write_text("x")
    (own_state.snapshots / "mine").mkdir()
    eventually(lambda: metadata(own_state, "mine")["sealed"], "sealed")


def test_what_was_saved_without_a_daemon_is_sealed_by_the_next(own_state: MountedState) -> None:
    """Or at once with --wait."""
    (own_state.files / "f").write_bytes(b"x" * 100_000)
    own_state.umount()
    name = own_state.save()
    assert not own_state.listing()[-1]["sealed"]
    own_state.mount()
    eventually(lambda: metadata(own_state, name)["sealed"], "sealed")
    own_state.umount()
    said = own_state.command("save", "--store", own_state.store, "--wait", "--json")
    assert json.loads(said)["stateDigest"] == own_state.listing()[0]["stateDigest"]


def test_a_daemon_killed_while_it_seals_does_so_again(own_state: MountedState) -> None:
    """With many files and a large one, at several moments; the digests are right in the end."""
    for number in range(400):
        (own_state.files / f"f{number}").write_bytes(b"%d" % number * 5000)
    (own_state.files / "large").write_bytes(os.urandom(1 << 20) * 60)
    names = []
    for round_ in range(4):
        (own_state.files / f"f{round_}").write_bytes(b"changed" * round_)
        names.append(own_state.save())
        own_state.kill()
        own_state.mount()
    for name in names:
        eventually(partial(is_sealed, own_state, name), "sealed")
        assert metadata(own_state, name)["stateDigest"] == by_script(own_state.snapshots / name)
    own_state.verify_mounted()


def test_a_snapshot_deleted_while_it_is_sealed_is_gone(own_state: MountedState) -> None:
    """The daemon goes on with the next one."""
    (own_state.files / "large").write_bytes(os.urandom(1 << 20) * 100)
    first = own_state.save()
    second = own_state.save()
    own_state.delete(first)
    eventually(lambda: metadata(own_state, second)["sealed"], "sealed")
    assert [each["name"] for each in own_state.listing()] == [second]


def object_of(state: MountedState, size: int) -> Path:
    """Return the one object file of a size."""
    objects = StoreLayout(state.store).objects
    (found,) = (path for path in objects.glob("*/*") if path.stat().st_size == size)
    return found


@pytest.mark.damages_store("a byte of an object file")
def test_verify_names_the_damaged_bytes(own_state: MountedState) -> None:
    """While it is mounted, with exit code 20; progress comes as JSON lines; the log tells, too."""
    own_state.expected_log = "damage: files/victim: bytes 2097152 to 3145728 are damaged"
    size = 3 << 20
    (own_state.files / "victim").write_bytes(os.urandom(size))
    name = save_and_wait(own_state)["name"]
    done = own_state.run("verify", own_state.state, "--read-data")
    assert done.returncode == 0, done.stdout + done.stderr
    path = object_of(own_state, size)
    with path.open("r+b") as file:
        file.seek((2 << 20) + 5)
        byte = file.read(1)
        file.seek((2 << 20) + 5)
        file.write(bytes([byte[0] ^ 255]))
    done = own_state.run("verify", own_state.state, name, "--read-data", "--json")
    assert done.returncode == 20
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["path"] == "files/victim"
    assert problem["snapshots"] == [name]
    assert problem["ranges"] == [[2 << 20, 3 << 20]]
    said = own_state.run("verify", own_state.state, "--read-data")
    assert f"files/victim: bytes {2 << 20} to {3 << 20} are damaged, in {name}" in said.stdout
    assert "1 problem found" in said.stderr


@pytest.mark.damages_store("object files are cut and removed")
@pytest.mark.parametrize("is_removed", [False, True])
def test_damage_is_never_served_as_good_data(own_state: MountedState, is_removed: bool) -> None:
    """What was lost is EIO in current/ and in the snapshot; what is there is read."""
    own_state.expected_log = 'read failed|Traceback|cannot be sealed|File "|Error|damage: files'
    size = 4 << 20
    (own_state.files / "victim").write_bytes(os.urandom(size))
    name = save_and_wait(own_state)["name"]
    own_state.umount()
    path = object_of(own_state, size)
    kept = path.read_bytes()
    if is_removed:
        path.unlink()
    else:
        os.truncate(path, size // 2)
    own_state.mount()
    for folder in (own_state.files, own_state.snapshots / name / "files"):
        with open(folder / "victim", "rb") as file:
            with pytest.raises(OSError) as caught:
                os.pread(file.fileno(), 4096, size - 4096)
            assert caught.value.errno == errno.EIO
            if not is_removed:
                assert os.pread(file.fileno(), 4096, 0) == kept[:4096]
    copies = (own_state.store.parent / "a.tar", own_state.store.parent / "copy")
    for is_mounted in (True, False):
        if not is_mounted:
            own_state.umount()
        for words in (("export", name, copies[0]), ("restore", name, "--to", copies[1])):
            refused = own_state.run(words[0], "--store", own_state.store, *words[1:])
            assert refused.returncode == CorruptStore.exit_code, refused.stderr
            assert "files/victim" in refused.stderr and refused.stderr.count("\n") == 1
            assert not any(copy.exists() for copy in copies)
    found = own_state.run("verify", "--store", own_state.store).stdout
    assert f"damaged in {name}, current" in found and "(current/files/victim)" in found
    own_state.mount()
    path.write_bytes(kept)


def test_reading_while_a_file_is_cut_and_filled(own_state: MountedState) -> None:
    """No read fails, whatever is read: shorter content is no damage."""
    path = own_state.files / "f"
    path.write_bytes(b"x" * (4 << 20))
    stop = threading.Event()
    failures: list[OSError] = []

    def read() -> None:
        while not stop.is_set():
            try:
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(fd, 4 << 20, 0)
                os.close(fd)
            except OSError as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(150):
        os.truncate(path, number * 1000)
        path.write_bytes(b"y" * (4 << 20))
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []


@pytest.mark.damages_store("a byte of an object file")
def test_a_scrub_finds_damage_and_status_tells(own_state: MountedState) -> None:
    """The daemon reads; the command shows what it found, and so does the next daemon."""
    own_state.expected_log = "damage: files/victim"
    size = 1 << 20
    (own_state.files / "victim").write_bytes(os.urandom(size))
    save_and_wait(own_state)
    assert own_state.status()["damaged"] is None
    said = own_state.command("scrub", own_state.state)
    assert "found no damage" in said
    assert own_state.status()["damaged"] == 0
    path = object_of(own_state, size)
    path.write_bytes(b"\0" * size)
    done = own_state.run("scrub", own_state.state, "--json")
    assert done.returncode == 20
    assert json.loads(done.stdout)["last"]["problems"][0]["path"] == "files/victim"
    own_state.remount()
    assert own_state.status()["damaged"] == 1
    done = own_state.run("scrub", own_state.state, "--status")
    assert done.returncode == 20
    assert "found 1 damaged" in done.stdout


@pytest.mark.damages_store("an object file is taken away, and put back")
def test_a_snapshot_that_cannot_be_read_is_told_of(own_state: MountedState) -> None:
    """In list, show and status, by the file's path; it is sealed when the file is there again."""
    own_state.expected_log = "cannot be sealed: files/victim cannot be read"
    size = 2 << 20
    (own_state.files / "victim").write_bytes(os.urandom(size))
    own_state.umount()
    name = own_state.save()
    path = object_of(own_state, size)
    kept = path.read_bytes()
    path.unlink()
    own_state.mount()
    eventually(lambda: own_state.status()["unsealable"] == 1, "counted")
    [listed] = own_state.listing()
    assert not listed["sealed"] and "files/victim cannot be read" in listed["unsealable"]
    assert "files/victim cannot be read" in own_state.command("list", own_state.state)
    shown = own_state.command("show", own_state.state, name)
    assert "no, it cannot be: files/victim cannot be read" in shown
    assert "1 snapshot, as what they hold" in own_state.command("status", own_state.state)
    done = own_state.run("save", own_state.state, "--wait")
    assert done.returncode == 20 and "files/victim" in done.stderr
    assert own_state.status()["unsealable"] == 2
    path.write_bytes(kept)
    (own_state.files / "other").write_text("x")
    newest = own_state.save()
    for each in own_state.listing():
        eventually(partial(is_sealed, own_state, each["name"]), "sealed")
    assert metadata(own_state, newest)["stateDigest"] == by_script(own_state.current)
    assert metadata(own_state, name)["stateDigest"] == by_script(own_state.snapshots / name)
    assert own_state.status()["unsealable"] == 0
    assert [each["unsealable"] for each in own_state.listing()] == [None] * 3
    own_state.verify_mounted()


def test_a_scrub_that_is_killed_begins_anew(own_state: MountedState) -> None:
    """Nothing runs after it, and what is told is of the last one that came to its end."""
    (own_state.files / "f").write_bytes(os.urandom(4 << 20))
    save_and_wait(own_state)

    def told() -> dict[str, Any]:
        words = () if own_state.is_mounted() else ("--store", own_state.store)
        said = own_state.command("scrub", own_state.state, "--status", "--json", *words)
        document: dict[str, Any] = json.loads(said)
        return document

    def begin() -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "statefs", "scrub", str(own_state.state), "--json"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eventually(lambda: told()["running"], "it runs")
        return process

    config = StoreLayout(own_state.store).config
    for last in (None, "one that ended"):
        config.write_text('[scrub]\nrate = "256KiB"\n')
        before = told()["last"]
        assert (before is None) == (last is None)
        with begin() as process:
            assert told()["last"] == before
            own_state.kill()
            _, said = process.communicate(timeout=60)
        assert process.returncode == 16 and b"during 'scrub'" in said
        assert told() == {"running": False, "last": before}
        own_state.mount()
        assert told() == {"running": False, "last": before}
        assert own_state.status()["damaged"] == (None if before is None else 0)
        config.write_text('[scrub]\nrate = "1GiB"\n')
        own_state.command("scrub", own_state.state)
        after = told()["last"]
        assert after != before and after["bytes"] == 4 << 20
    own_state.verify_mounted()
