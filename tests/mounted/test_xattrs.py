from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from tests.harness.processes import NOBODY, Person, run_as
from tests.harness.system_calls import errno_of

NAME_BYTES_MAX = 255
"""Of an attribute's name with its namespace. Source: xattr(7), XATTR_NAME_MAX."""


@pytest.mark.parametrize("value", [b"", b"text", bytes(range(256)), b"v" * 3000])
def test_values_are_kept_byte_by_byte(place: Path, value: bytes) -> None:
    """Empty, binary and long values of files and directories come back as they were set."""
    (place / "f").touch()
    (place / "d").mkdir()
    for name in ("f", "d"):
        os.setxattr(place / name, "user.v", value)
        assert os.getxattr(place / name, "user.v") == value
        assert os.listxattr(place / name) == ["user.v"]


def test_a_value_is_replaced_and_removed(place: Path) -> None:
    """The last value wins; after removal the name is gone, and removing again is ENODATA."""
    (place / "f").touch()
    os.setxattr(place / "f", "user.a", b"long value to be replaced")
    os.setxattr(place / "f", "user.a", b"short")
    assert os.getxattr(place / "f", "user.a") == b"short"
    os.removexattr(place / "f", "user.a")
    assert os.listxattr(place / "f") == []
    assert errno_of(lambda: os.getxattr(place / "f", "user.a")) == errno.ENODATA
    assert errno_of(lambda: os.removexattr(place / "f", "user.a")) == errno.ENODATA


def test_create_and_replace_flags(place: Path) -> None:
    """XATTR_CREATE refuses an existing name, XATTR_REPLACE a missing one."""
    (place / "f").touch()

    def put(flags: int) -> int:
        return errno_of(lambda: os.setxattr(place / "f", "user.a", b"x", flags))

    assert put(os.XATTR_REPLACE) == errno.ENODATA
    assert put(os.XATTR_CREATE) == 0
    assert put(os.XATTR_CREATE) == errno.EEXIST
    assert put(os.XATTR_REPLACE) == 0


def test_many_attributes_of_one_file(place: Path) -> None:
    """A hundred names are all listed and all read."""
    (place / "f").touch()
    for number in range(100):
        os.setxattr(place / "f", f"user.name-{number:03}", b"%d" % number)
    names = sorted(os.listxattr(place / "f"))
    assert names == [f"user.name-{number:03}" for number in range(100)]
    assert [os.getxattr(place / "f", name) for name in names] == [b"%d" % n for n in range(100)]


def test_the_longest_name_and_one_more(place: Path) -> None:
    """255 bytes of name are kept, 256 are ERANGE. Source: xattr(7)."""
    (place / "f").touch()
    longest = "user." + "n" * (NAME_BYTES_MAX - 5)
    os.setxattr(place / "f", longest, b"x")
    assert os.listxattr(place / "f") == [longest]
    assert errno_of(lambda: os.setxattr(place / "f", longest + "n", b"x")) == errno.ERANGE


def test_unknown_namespaces_are_refused(place: Path) -> None:
    """A name without a namespace, or of one nobody knows, is EOPNOTSUPP."""
    (place / "f").touch()
    for name in ("plain", "nowhere.name"):
        assert errno_of(partial(os.setxattr, place / "f", name, b"x")) == errno.EOPNOTSUPP


@pytest.mark.usefixtures("as_root")
def test_privileged_namespaces(place: Path) -> None:
    """Root keeps security and trusted attributes, and they stand beside user ones."""
    (place / "f").touch()
    wanted = {"security.test": b"s", "trusted.test": b"t\0t", "user.test": b"u"}
    for name, value in wanted.items():
        os.setxattr(place / "f", name, value)
    names = os.listxattr(place / "f")
    assert {name: os.getxattr(place / "f", name) for name in names} == wanted


@pytest.mark.usefixtures("as_root")
def test_other_users_and_privileged_namespaces(place: Path) -> None:
    """An ordinary user neither sees nor sets trusted attributes, even of an own file."""
    (place / "f").touch()
    os.chown(place / "f", NOBODY, NOBODY)
    os.setxattr(place / "f", "trusted.test", b"t")
    nobody = Person(NOBODY, NOBODY)
    assert run_as(nobody, lambda: os.listxattr(place / "f")) == []
    for name in ("trusted.test", "security.test"):
        with pytest.raises(PermissionError):
            run_as(nobody, partial(os.setxattr, place / "f", name, b"x"))
    run_as(nobody, lambda: os.setxattr(place / "f", "user.own", b"x"))
    assert os.getxattr(place / "f", "user.own") == b"x"


def test_user_attributes_only_on_files_and_directories(place: Path) -> None:
    """Symbolic links and pipes have no user attributes. Source: xattr(7)."""
    os.symlink("x", place / "l")
    os.mkfifo(place / "p")
    for name in ("l", "p"):
        code = errno_of(partial(os.setxattr, place / name, "user.a", b"x", follow_symlinks=False))
        assert code == errno.EPERM


@pytest.mark.usefixtures("as_root")
def test_symbolic_links_have_trusted_attributes(place: Path) -> None:
    """What root sets on a link itself is not on its target."""
    (place / "f").touch()
    os.symlink("f", place / "l")
    os.setxattr(place / "l", "trusted.a", b"x", follow_symlinks=False)
    assert os.listxattr(place / "l", follow_symlinks=False) == ["trusted.a"]
    assert os.listxattr(place / "f") == []


def test_attributes_follow_the_inode(place: Path) -> None:
    """Hard links share them, a rename keeps them, a copy made by reading does not have them."""
    (place / "a").touch()
    os.setxattr(place / "a", "user.a", b"x")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "c")
    assert os.getxattr(place / "b", "user.a") == os.getxattr(place / "c", "user.a") == b"x"


def test_setting_an_attribute_moves_ctime_only(place: Path) -> None:
    """An attribute is no content."""
    (place / "f").touch()
    os.utime(place / "f", ns=(1, 1))
    before = os.stat(place / "f")
    os.setxattr(place / "f", "user.a", b"x")
    after = os.stat(place / "f")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == 1


def test_missing_attributes_are_not_remembered_wrongly(place: Path) -> None:
    """A name asked for in vain is found as soon as it is set."""
    (place / "f").touch()
    for number in range(3):
        name = f"user.{number}"
        assert errno_of(partial(os.getxattr, place / "f", name)) == errno.ENODATA
        os.setxattr(place / "f", name, b"now")
        assert os.getxattr(place / "f", name) == b"now"
