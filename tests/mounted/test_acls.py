from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.harness.processes import NOBODY, Person, run_as

pytestmark = [
    pytest.mark.skipif(not shutil.which("setfacl"), reason="setfacl is not installed"),
    pytest.mark.usefixtures("as_root"),
]
OTHER = 12345


def setfacl(*arguments: str | Path) -> None:
    """Change ACLs as a user does."""
    subprocess.run(["setfacl", *map(str, arguments)], check=True, timeout=30)


def getfacl(path: Path) -> list[str]:
    """Return the lines of an ACL, numeric ids, without comments."""
    command = ["getfacl", "--numeric", "--omit-header", "--absolute-names", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return [line.split("\t")[0].strip() for line in done.stdout.splitlines() if line]


def mode_of(path: Path) -> int:
    """Return the permission bits of a name."""
    return stat.S_IMODE(os.stat(path).st_mode)


def test_an_entry_for_a_user_opens_the_file(place: Path) -> None:
    """A file of mode 0600 is read by the one user its ACL names, and by no other."""
    (place / "f").write_bytes(b"secret")
    (place / "f").chmod(0o600)
    setfacl("-m", f"u:{NOBODY}:r", place / "f")
    assert run_as(Person(NOBODY, NOBODY), (place / "f").read_bytes) == b"secret"
    with pytest.raises(PermissionError):
        run_as(Person(OTHER, OTHER), (place / "f").read_bytes)
    with pytest.raises(PermissionError):
        run_as(Person(NOBODY, NOBODY), lambda: os.open(place / "f", os.O_WRONLY))


def test_an_entry_may_deny_what_others_have(place: Path) -> None:
    """A named user without rights is refused a file that everybody else reads."""
    (place / "f").write_bytes(b"x")
    (place / "f").chmod(0o644)
    setfacl("-m", f"u:{NOBODY}:-", place / "f")
    with pytest.raises(PermissionError):
        run_as(Person(NOBODY, NOBODY), (place / "f").read_bytes)
    assert run_as(Person(OTHER, OTHER), (place / "f").read_bytes) == b"x"


def test_an_acl_is_read_back_as_it_was_set(place: Path) -> None:
    """Users, groups and mask of an ACL; the mode's group bits are the mask."""
    (place / "f").touch()
    (place / "f").chmod(0o640)
    setfacl("-m", f"u:{NOBODY}:rw,g:{OTHER}:r,m::rw", place / "f")
    assert getfacl(place / "f") == [
        "user::rw-",
        f"user:{NOBODY}:rw-",
        "group::r--",
        f"group:{OTHER}:r--",
        "mask::rw-",
        "other::---",
    ]
    assert mode_of(place / "f") == 0o660


def test_chmod_changes_the_mask(place: Path) -> None:
    """The group bits of chmod limit what the ACL grants, and widen it again."""
    (place / "f").write_bytes(b"x")
    (place / "f").chmod(0o600)
    setfacl("-m", f"u:{NOBODY}:rw", place / "f")
    (place / "f").chmod(0o600)
    assert "mask::---" in getfacl(place / "f")
    with pytest.raises(PermissionError):
        run_as(Person(NOBODY, NOBODY), (place / "f").read_bytes)
    (place / "f").chmod(0o660)
    assert run_as(Person(NOBODY, NOBODY), (place / "f").read_bytes) == b"x"


def test_an_acl_equal_to_a_mode_becomes_the_mode(place: Path) -> None:
    """Three base entries are stored as mode bits and leave no attribute."""
    (place / "f").touch()
    setfacl("--set", "u::rwx,g::rx,o::x", place / "f")
    assert mode_of(place / "f") == 0o751
    assert os.listxattr(place / "f") == []


def test_removing_an_acl_leaves_the_mode(place: Path) -> None:
    """Setfacl -b takes the named entries away."""
    (place / "f").touch()
    (place / "f").chmod(0o640)
    setfacl("-m", f"u:{NOBODY}:rw", place / "f")
    setfacl("-b", place / "f")
    assert getfacl(place / "f") == ["user::rw-", "group::r--", "other::---"]
    assert os.listxattr(place / "f") == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_default_acl_replaces_the_umask(place: Path, umask: int) -> None:
    """What is created below a default ACL takes its entries, cut by the mode asked for."""
    setfacl("-d", "-m", f"u::rwx,u:{NOBODY}:rwx,g::rx,o::-", place)
    old = os.umask(umask)
    try:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o664))
        os.mkdir(place / "d", 0o775)
    finally:
        os.umask(old)
    assert getfacl(place / "f") == [
        "user::rw-",
        f"user:{NOBODY}:rwx",
        "group::r-x",
        "mask::rw-",
        "other::---",
    ]
    assert mode_of(place / "f") == 0o660
    assert mode_of(place / "d") == 0o770


def test_a_default_acl_passes_down_directories(place: Path) -> None:
    """A new directory has the default ACL as its own and for what is made in it."""
    setfacl("-d", "-m", f"u:{NOBODY}:rx", place)
    (place / "a").mkdir()
    (place / "a/b").mkdir()
    wanted = [line for line in getfacl(place) if line.startswith("default:")]
    assert f"default:user:{NOBODY}:r-x" in wanted
    assert [line for line in getfacl(place / "a/b") if line.startswith("default:")] == wanted
    assert f"user:{NOBODY}:r-x" in getfacl(place / "a/b")


def test_a_default_acl_applies_to_every_way_of_creating(place: Path) -> None:
    """mknod, mkfifo and a Unix socket inherit as open does; a symbolic link has none."""
    setfacl("-d", "-m", f"u:{NOBODY}:r", place)
    os.mknod(place / "node", stat.S_IFREG | 0o640)
    os.mkfifo(place / "pipe", 0o640)
    os.symlink("x", place / "link")
    for name in ("node", "pipe"):
        assert f"user:{NOBODY}:r--" in getfacl(place / name)
    assert os.listxattr(place / "link", follow_symlinks=False) == []


def test_removing_a_default_acl_brings_the_umask_back(place: Path) -> None:
    """Setfacl -k ends the inheritance."""
    setfacl("-d", "-m", f"u:{NOBODY}:r", place)
    setfacl("-k", place)
    old = os.umask(0o027)
    try:
        (place / "f").touch()
    finally:
        os.umask(old)
    assert mode_of(place / "f") == 0o640
    assert os.listxattr(place / "f") == []


def test_a_default_acl_on_a_file_is_refused(place: Path) -> None:
    """Only directories pass anything on."""
    (place / "f").touch()
    done = subprocess.run(
        ["setfacl", "-d", "-m", f"u:{NOBODY}:r", str(place / "f")], capture_output=True, timeout=30
    )
    assert done.returncode != 0


def test_only_the_owner_sets_an_acl(place: Path) -> None:
    """Another user's setxattr of an ACL is EPERM."""
    (place / "f").touch()
    setfacl("-m", f"u:{OTHER}:r", place / "f")
    value = os.getxattr(place / "f", "system.posix_acl_access")
    (place / "g").touch()
    with pytest.raises(PermissionError):
        run_as(
            Person(NOBODY, NOBODY),
            lambda: os.setxattr(place / "g", "system.posix_acl_access", value),
        )


def test_acls_are_copied_by_cp(place: Path) -> None:
    """Cp -a keeps access and default ACLs of a tree."""
    (place / "d").mkdir()
    setfacl("-d", "-m", f"u:{NOBODY}:rx", place / "d")
    (place / "d/f").touch()
    subprocess.run(["cp", "-a", str(place / "d"), str(place / "e")], check=True, timeout=30)
    assert getfacl(place / "e") == getfacl(place / "d")
    assert getfacl(place / "e/f") == getfacl(place / "d/f")
