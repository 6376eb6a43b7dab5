"""What a disk has damaged is not served: programs get EIO, commands one line, the log says it."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from statefs.content.blocks import BLOCK_BYTES
from statefs.errors import AlreadyMounted, CorruptStore
from statefs.layout import StoreLayout
from statefs.maintenance.backups import copies, problems_of
from tests.harness.mounted_state import MountedState, eventually

SIZE: Final = 2 * BLOCK_BYTES + 77
DATA: Final = random.Random(3).randbytes(SIZE)
DAMAGED: Final = BLOCK_BYTES + 5


def error_of(action: Callable[[], object]) -> int:
    """Return the errno of an action that fails."""
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno is not None
    return caught.value.errno


def damage(store: Path) -> None:
    """Change one byte of the only large object of a store."""
    (path,) = (each for each in store.glob("objects/*/*") if each.stat().st_size == SIZE)
    with path.open("r+b") as file:
        file.seek(DAMAGED)
        file.write(bytes([DATA[DAMAGED] ^ 4]))


@pytest.fixture
def damaged(own_state: MountedState) -> str:
    """A sealed snapshot with a damaged file, mounted anew; its name."""
    own_state.expected_log = " ERROR .*damage: files/large: bytes 1048576 to 2097152 are damaged"
    (own_state.files / "large").write_bytes(DATA)
    (own_state.files / "small").write_bytes(b"small")
    own_state.command("save", own_state.state, "--wait", "-m", "first")
    own_state.umount()
    damage(own_state.store)
    own_state.mount()
    return str(own_state.listing()[0]["name"])


def test_programs_get_eio_and_the_rest(own_state: MountedState, damaged: str) -> None:
    """From current, the snapshot and a clone of it; what is around the damage can be read."""
    own_state.command("clone", own_state.state, "latest", "copy")
    folders = (
        own_state.files,
        own_state.snapshots / damaged / "files",
        own_state.state / "clones" / "copy" / "files",
    )
    for folder in folders:
        assert error_of((folder / "large").read_bytes) == errno.EIO
        assert (folder / "small").read_bytes() == b"small"
        fd = os.open(folder / "large", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            assert os.pread(fd, 100, 0) == DATA[:100]
            assert os.pread(fd, 100, 2 * BLOCK_BYTES) == DATA[2 * BLOCK_BYTES :]
            assert error_of(partial(os.pread, fd, 1, DAMAGED)) == errno.EIO
        finally:
            os.close(fd)
    told = [line for line in own_state.log_lines() if "damage:" in line]
    assert len(told) == 1, told


def test_commands_say_what_is_damaged(
    own_state: MountedState, damaged: str, tmp_path: Path
) -> None:
    """cat, export and restore --to end with one line, and leave nothing half done."""
    archive, folder = tmp_path / "out.tar", tmp_path / "out"
    for words in (
        ("cat", own_state.state, damaged, "files/large"),
        ("cat", own_state.state, "current", "files/large"),
        ("export", own_state.state, damaged, archive),
        ("restore", own_state.state, damaged, "--to", folder),
    ):
        done = own_state.run(*words)
        assert done.returncode == CorruptStore.exit_code, done.stderr
        if words[0] != "restore":  # that is cp, which has its own words for EIO
            assert "files/large: bytes 1048576 to 2097152 are damaged" in done.stderr
    assert not archive.exists() and not folder.exists()
    own_state.umount()
    store = ("--store", own_state.store)
    done = own_state.run("restore", own_state.state, damaged, "--to", folder, *store)
    assert done.returncode == CorruptStore.exit_code, done.stderr
    assert not folder.exists()


def test_writing_anew_heals(own_state: MountedState, damaged: str) -> None:
    """A program that replaces the file has a good one; the next snapshot can be sealed."""
    (own_state.files / "large").write_bytes(DATA[::-1])
    assert (own_state.files / "large").read_bytes() == DATA[::-1]
    own_state.command("save", own_state.state, "--wait")
    snapshots = own_state.listing()
    assert all(each["sealed"] for each in snapshots)


def is_there_a_copy_beside(layout: StoreLayout, known: list[Path]) -> bool:
    """Return whether the newest copy of a database is another than the one that is known."""
    return [copy.path for copy in copies(layout)][:1] != known


def test_a_mounted_state_copies_its_database(own_state: MountedState) -> None:
    """When that is due, in the background; no more copies than are wanted, and none for nothing."""
    settings = "[backups]\ninterval = 0.5\ncount = 2\n"
    (own_state.store / "statefs.toml").write_text(settings)
    own_state.remount()  # it would look at the settings again in half a minute
    layout = StoreLayout(own_state.store)
    for number in range(3):
        (own_state.files / str(number)).write_bytes(b"x")
        newest = [copy.path for copy in copies(layout)][:1]
        eventually(partial(is_there_a_copy_beside, layout, newest), "a copy")
    # The new copy is there a moment before the one too many goes.
    eventually(lambda: len(copies(layout)) == 2, "two copies")
    assert problems_of(copies(layout)[0].path) == []


def test_a_damaged_database_is_repaired(own_state: MountedState) -> None:
    """A mounted state is not; the mount of a damaged one names the command that helps."""
    (own_state.files / "large").write_bytes(DATA)
    (own_state.files / "small").write_bytes(b"small")
    name = own_state.save()
    done = own_state.run("repair", own_state.state)
    assert done.returncode == AlreadyMounted.exit_code and "umount" in done.stderr
    own_state.umount()
    with (own_state.store / "meta.db").open("r+b") as file:
        file.write(bytes(4096))
    done = own_state.run("mount", own_state.state, "--store", own_state.store)
    assert done.returncode == CorruptStore.exit_code and "statefs repair" in done.stderr
    done = own_state.run("repair", "--store", own_state.store, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["losses"], report["problems"]) == (0, [], []), report
    assert report["source"] == "salvage" and report["troubles"]
    own_state.mount()
    for folder in (own_state.files, own_state.snapshots / name / "files"):
        assert (folder / "large").read_bytes() == DATA
        assert (folder / "small").read_bytes() == b"small"


def test_a_lost_database_is_repaired(own_state: MountedState) -> None:
    """Without any copy large files come back by their objects; what is lost is told."""
    (own_state.files / "large").write_bytes(DATA)
    (own_state.files / "small").write_bytes(b"small")
    name = own_state.save()
    own_state.umount()
    (own_state.store / "meta.db").unlink()
    done = own_state.run("list", own_state.state, "--store", own_state.store)
    assert done.returncode == CorruptStore.exit_code and "statefs repair" in done.stderr
    done = own_state.run("repair", own_state.state, "--store", own_state.store)
    assert done.returncode == CorruptStore.exit_code, done.stderr
    assert "meta.db: meta.db is missing" in done.stdout
    assert "what is left: lost+found/files/large" in done.stdout
    assert f"lost: a snapshot is lost, in {name}" in done.stdout
    own_state.mount()
    assert (own_state.current / "lost+found" / "files" / "large").read_bytes() == DATA
