from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.system_calls import errno_of

NAME_BYTES_MAX = 255
"""Of one name. Source: limits.h, NAME_MAX."""
PATH_BYTES_MAX = 4096
"""Of a path with its end. Source: limits.h, PATH_MAX."""


def test_every_byte_may_stand_in_a_name(place: Path) -> None:
    """All bytes but `/` and NUL, also those that are no UTF-8, name different files."""
    folder = os.fsencode(place)
    names = {b"n" + bytes([byte]) for byte in range(1, 256) if byte != ord("/")}
    for name in names:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name)
    assert set(os.listdir(folder)) == names
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            assert file.read() == name


@pytest.mark.parametrize(
    "name", [b"...", b" ", b"-rf", b".hidden", b"a\nb", b"\xff\xfe", b"*", b"\\"]
)
def test_awkward_names_are_names(place: Path, name: bytes) -> None:
    """Nothing but `.` and `..` has a meaning of its own."""
    path = os.path.join(os.fsencode(place), name)
    os.mkdir(path)
    assert os.listdir(os.fsencode(place)) == [name]
    os.rename(path, path + b"2")
    os.rmdir(path + b"2")
    assert os.listdir(place) == []


def test_names_differ_by_case_and_normalisation(place: Path) -> None:
    """Bytes are compared, nothing is folded."""
    for name in ("a", "A", "\u00e9", "e\u0301"):
        (place / name).write_text(name)
    assert len(os.listdir(place)) == 4
    assert (place / "\u00e9").read_text() == "\u00e9"


def test_the_longest_name(place: Path) -> None:
    """255 bytes work in every operation that takes a name."""
    longest = place / ("x" * NAME_BYTES_MAX)
    other = place / ("\u00e4" * 127 + "y")
    longest.write_text("content")
    os.rename(longest, other)
    os.link(other, longest)
    assert sorted(os.listdir(place)) == sorted([longest.name, other.name])
    os.unlink(other)
    os.symlink("x", other)
    os.unlink(other)
    os.mkdir(other)
    assert longest.read_text() == "content"


TOO_LONG = "x" * (NAME_BYTES_MAX + 1)
CREATORS: dict[str, Callable[[Path], object]] = {
    "open": lambda place: os.open(place / TOO_LONG, os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda place: os.mkdir(place / TOO_LONG),
    "symlink": lambda place: os.symlink("x", place / TOO_LONG),
    "mknod": lambda place: os.mkfifo(place / TOO_LONG),
    "link": lambda place: os.link(place / "f", place / TOO_LONG),
    "rename": lambda place: os.rename(place / "f", place / TOO_LONG),
    "stat": lambda place: os.stat(place / TOO_LONG),
    "unlink": lambda place: os.unlink(place / TOO_LONG),
    "rmdir": lambda place: os.rmdir(place / TOO_LONG),
    "below": lambda place: os.stat(place / TOO_LONG / "x"),
}


@pytest.mark.parametrize("call", CREATORS.values(), ids=CREATORS.keys())
def test_a_longer_name_is_refused(place: Path, call: Callable[[Path], object]) -> None:
    """256 bytes are ENAMETOOLONG everywhere, and nothing is created."""
    (place / "f").touch()
    assert errno_of(lambda: call(place)) == errno.ENAMETOOLONG
    assert os.listdir(place) == ["f"]


def test_a_path_that_is_too_long_is_refused(place: Path) -> None:
    """The kernel's limit on paths is the only one: below it, long paths work by steps."""
    path = str(place) + "/x" * (PATH_BYTES_MAX // 2)
    assert errno_of(lambda: os.stat(path)) == errno.ENAMETOOLONG
    assert errno_of(lambda: os.symlink("y" * PATH_BYTES_MAX, place / "l")) == errno.ENAMETOOLONG
