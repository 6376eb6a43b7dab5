"""What a disk has damaged is not served: programs get EIO, commands one line, the log says it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from statefs.content.blocks import BLOCK_BYTES
from statefs.errors import CorruptStore
from tests.harness.mounted_state import MountedState

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
