from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState
from tests.harness.system_calls import errno_of

ATTRIBUTE = "user.statefs.durability"
MODES = ("close", "fsync", "write")


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_carries_its_durability(shared_state: MountedState, mode: str) -> None:
    """The attribute is kept as text and everything below works as before."""
    folder = shared_state.files / mode
    folder.mkdir()
    os.setxattr(folder, ATTRIBUTE, mode.encode())
    assert os.getxattr(folder, ATTRIBUTE) == mode.encode()
    (folder / "sub").mkdir()
    (folder / "sub/f").write_bytes(b"x" * 50_000)
    with open(folder / "sub/f", "ab") as file:
        file.write(b"more")
        os.fsync(file.fileno())
    os.rename(folder / "sub/f", folder / "g")
    assert (folder / "g").read_bytes() == b"x" * 50_000 + b"more"
    os.removexattr(folder, ATTRIBUTE)


def test_an_unknown_durability_is_refused(shared_state: MountedState) -> None:
    """A typing error would silently mean less safety."""
    folder = shared_state.files / "typo"
    folder.mkdir()
    for word in (b"fsnyc", b"", b"close\n"):
        assert errno_of(partial(os.setxattr, folder, ATTRIBUTE, word)) == errno.EINVAL
    assert os.listxattr(folder) == []


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_what_was_acknowledged(own_state: MountedState, mode: str) -> None:
    """After kill -9 of the daemon everything whose system call returned is there."""
    own_state.umount()
    own_state.options = ",".join(filter(None, [own_state.options, f"durability={mode}"]))
    own_state.mount()
    assert own_state.status()["durability"] == mode
    descriptor = os.open(own_state.files / "open", os.O_CREAT | os.O_WRONLY, 0o644)
    for number in range(100):
        os.write(descriptor, b"%05d" % number * 100)
        (own_state.files / f"f{number}").write_bytes(b"%d" % number)
    own_state.kill()
    # The connection is gone: close(2) releases the descriptor and may say so.
    assert errno_of(lambda: os.close(descriptor)) in (0, errno.ENOTCONN, errno.ECONNABORTED)
    own_state.mount()
    wanted = b"".join(b"%05d" % number * 100 for number in range(100))
    assert (own_state.files / "open").read_bytes() == wanted
    for number in range(100):
        assert (own_state.files / f"f{number}").read_bytes() == b"%d" % number


def test_durability_survives_a_remount(own_state: MountedState) -> None:
    """The attribute is part of the tree."""
    folder: Path = own_state.files / "d"
    folder.mkdir()
    os.setxattr(folder, ATTRIBUTE, b"write")
    own_state.remount()
    assert os.getxattr(own_state.files / "d", ATTRIBUTE) == b"write"
