from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.processes import NOBODY, Person, run_as

OTHER = 12345
"""A user and group that own nothing else."""
NET_RAW_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""A security.capability value: version 2, effective, CAP_NET_RAW. Source: linux/capability.h."""


def mode_of(path: Path) -> int:
    """Return the permission bits of a name."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def owned_file(place: Path, mode: int, uid: int = NOBODY, gid: int = NOBODY) -> Path:
    """Return a file of `uid` with `mode`, in a folder that belongs to that user."""
    os.chown(place, uid, gid)
    path = place / "f"
    path.write_bytes(b"#!/bin/true\n")
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o000, 0o777, 0o644, 0o1755, 0o2750, 0o4711, 0o7777])
def test_chmod_keeps_every_bit(place: Path, mode: int) -> None:
    """All twelve permission bits of a file and of a directory are as set."""
    (place / "f").touch()
    (place / "d").mkdir()
    for name in ("f", "d"):
        (place / name).chmod(mode)
        assert mode_of(place / name) == mode


def test_chmod_moves_ctime_only(place: Path) -> None:
    """A change of mode is no change of content."""
    (place / "f").touch()
    os.utime(place / "f", ns=(6, 6))
    before = os.stat(place / "f")
    (place / "f").chmod(0o600)
    after = os.stat(place / "f")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == 6


def test_the_umask_applies_to_everything_created(place: Path) -> None:
    """Files, directories and pipes lose the bits of the umask."""
    old = os.umask(0o077)
    try:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)
        os.mkfifo(place / "p", 0o666)
    finally:
        os.umask(old)
    assert [mode_of(place / name) for name in "fdp"] == [0o600, 0o700, 0o600]


@pytest.mark.usefixtures("as_root")
def test_chown_changes_what_it_is_asked_for(place: Path) -> None:
    """-1 leaves an owner or group as it is; symbolic links are changed themselves."""
    (place / "f").touch()
    (place / "l").symlink_to("f")
    os.chown(place / "f", OTHER, -1)
    os.chown(place / "f", -1, OTHER + 1)
    os.lchown(place / "l", 7, 8)
    status, link = os.stat(place / "f"), os.lstat(place / "l")
    assert (status.st_uid, status.st_gid) == (OTHER, OTHER + 1)
    assert (link.st_uid, link.st_gid) == (7, 8)


@pytest.mark.usefixtures("as_root")
def test_new_files_belong_to_their_maker(place: Path) -> None:
    """Owner and group of a new file are those of the process."""
    place.chmod(0o777)
    run_as(Person(NOBODY, OTHER), (place / "f").touch)
    run_as(Person(NOBODY, OTHER), (place / "d").mkdir)
    for name in ("f", "d"):
        status = os.stat(place / name)
        assert (status.st_uid, status.st_gid) == (NOBODY, OTHER)


@pytest.mark.usefixtures("as_root")
def test_only_the_owner_may_change_the_mode(place: Path) -> None:
    """Chmod and utime by another user are EPERM, chown by an ordinary user too."""
    (place / "f").touch()
    nobody = Person(NOBODY, NOBODY)
    for attempt in (
        lambda: (place / "f").chmod(0o777),
        lambda: os.utime(place / "f", ns=(1, 1)),
        lambda: os.chown(place / "f", NOBODY, NOBODY),
    ):
        with pytest.raises(PermissionError):
            run_as(nobody, attempt)


def overwrite(path: Path) -> None:
    """Write one byte into an existing file."""
    with open(path, "r+b", buffering=0) as file:
        file.write(b"#")


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        lambda path: os.truncate(path, 1),
        lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    ],
    ids=["write", "truncate", "open-truncating"],
)
@pytest.mark.parametrize("size", [12, 100_000])
def test_changing_content_clears_setuid_and_setgid(
    place: Path, change: Callable[[Path], None], size: int
) -> None:
    """An ordinary user's write takes both bits from an executable, whatever its size."""
    path = owned_file(place, 0o777)
    os.truncate(path, size)
    path.chmod(0o6777)
    run_as(Person(NOBODY, NOBODY), lambda: change(path))
    assert mode_of(path) == 0o777


@pytest.mark.usefixtures("as_root")
def test_changing_the_owner_clears_setuid_and_setgid(place: Path) -> None:
    """Chown takes both bits from an executable, even when root does it."""
    path = owned_file(place, 0o6755)
    os.chown(path, OTHER, OTHER)
    assert mode_of(path) == 0o755


@pytest.mark.usefixtures("as_root")
def test_changing_the_owner_of_a_directory_keeps_its_bits(place: Path) -> None:
    """Setgid on a directory is inheritance, not privilege: chown leaves it."""
    (place / "d").mkdir()
    (place / "d").chmod(0o2755)
    os.chown(place / "d", OTHER, OTHER)
    assert mode_of(place / "d") == 0o2755


@pytest.mark.usefixtures("as_root")
def test_an_owner_outside_the_group_cannot_set_setgid(place: Path) -> None:
    """Chmod g+s by an owner who is not in the file's group succeeds without the bit."""
    path = owned_file(place, 0o755, NOBODY, OTHER)
    run_as(Person(NOBODY, NOBODY), lambda: path.chmod(0o2755))
    assert mode_of(path) == 0o755


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "change",
    [overwrite, lambda path: os.truncate(path, 1), lambda path: os.chown(path, OTHER, -1)],
    ids=["write", "truncate", "chown"],
)
def test_file_capabilities_go_when_the_file_changes(
    place: Path, change: Callable[[Path], None]
) -> None:
    """security.capability is dropped by a write, a truncation and a change of owner."""
    (place / "f").write_bytes(b"program")
    os.setxattr(place / "f", "security.capability", NET_RAW_CAPABILITY)
    assert os.getxattr(place / "f", "security.capability") == NET_RAW_CAPABILITY
    change(place / "f")
    assert "security.capability" not in os.listxattr(place / "f")


@pytest.mark.usefixtures("as_root")
def test_a_setgid_directory_passes_its_group_on(place: Path) -> None:
    """Files take the group, directories the group and the bit, whoever makes them."""
    (place / "d").mkdir()
    os.chown(place / "d", 0, OTHER)
    (place / "d").chmod(0o2777)
    maker = Person(NOBODY, NOBODY)
    run_as(maker, (place / "d/f").touch)
    run_as(maker, (place / "d/sub").mkdir)
    run_as(maker, lambda: os.symlink("x", place / "d/link"))
    for name in ("f", "sub", "link"):
        assert os.lstat(place / "d" / name).st_gid == OTHER
    assert mode_of(place / "d/sub") & stat.S_ISGID
    assert not mode_of(place / "d/f") & stat.S_ISGID


@pytest.mark.usefixtures("as_root")
def test_in_a_sticky_directory_only_owners_remove(place: Path) -> None:
    """Neither unlink nor rename of another's file; one's own goes."""
    place.chmod(0o1777)
    (place / "roots").touch()
    nobody = Person(NOBODY, NOBODY)
    run_as(nobody, (place / "own").touch)
    with pytest.raises(PermissionError):
        run_as(nobody, (place / "roots").unlink)
    with pytest.raises(PermissionError):
        run_as(nobody, lambda: os.rename(place / "roots", place / "taken"))
    run_as(nobody, (place / "own").unlink)
    assert os.listdir(place) == ["roots"]


@pytest.mark.usefixtures("as_root")
def test_group_membership_counts(place: Path) -> None:
    """A further group of the process opens what the group may read."""
    path = owned_file(place, 0o640, 0, OTHER)
    assert run_as(Person(NOBODY, NOBODY, (OTHER,)), path.read_bytes) == b"#!/bin/true\n"
    with pytest.raises(PermissionError):
        run_as(Person(NOBODY, NOBODY), path.read_bytes)


def test_programs_in_the_tree_can_be_executed(place: Path) -> None:
    """A script with the execute bit runs; access(2) tells who may."""
    (place / "script").write_text("#!/bin/sh\nexit 7\n")
    assert not os.access(place / "script", os.X_OK)
    (place / "script").chmod(0o755)
    assert os.access(place / "script", os.X_OK)
    assert os.waitstatus_to_exitcode(os.system(str(place / "script"))) == 7
