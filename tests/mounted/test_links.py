from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest


def test_hard_links_are_one_file(place: Path) -> None:
    """Both names share the inode, the bytes, the attributes and the count."""
    (place / "a").write_bytes(b"1")
    os.link(place / "a", place / "b")
    (place / "b").write_bytes(b"22")
    (place / "b").chmod(0o640)
    first, second = os.stat(place / "a"), os.stat(place / "b")
    assert first == second
    assert (first.st_nlink, first.st_size) == (2, 2)


def test_removing_a_hard_link_leaves_the_others(place: Path) -> None:
    """The count goes down at once, also as seen through the other name and a descriptor."""
    (place / "a").write_bytes(b"x" * 50_000)
    os.link(place / "a", place / "b")
    with open(place / "b", "rb") as file:
        os.unlink(place / "a")
        assert os.stat(place / "b").st_nlink == os.fstat(file.fileno()).st_nlink == 1
        assert file.read() == b"x" * 50_000


def test_linking_moves_ctime_and_the_parents_mtime_only(place: Path) -> None:
    """A new name changes the file's ctime, not its mtime."""
    (place / "a").touch()
    (place / "d").mkdir()
    os.utime(place / "a", ns=(4, 4))
    os.utime(place / "d", ns=(4, 4))
    before = os.stat(place / "a")
    os.link(place / "a", place / "d/b")
    after = os.stat(place / "a")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == 4
    assert os.stat(place / "d").st_mtime_ns > 4


def test_hard_links_that_are_refused(place: Path) -> None:
    """An existing target, a missing source and a directory cannot be linked."""
    (place / "a").touch()
    (place / "b").touch()
    (place / "d").mkdir()
    for source, target, code in (
        ("a", "b", errno.EEXIST),
        ("missing", "c", errno.ENOENT),
        ("d", "c", errno.EPERM),
        ("a", "missing/c", errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            os.link(place / source, place / target)
        assert caught.value.errno == code, (source, target)


def test_many_hard_links(place: Path) -> None:
    """Five hundred names of one file count right up and down again."""
    (place / "0").touch()
    for number in range(1, 500):
        os.link(place / "0", place / str(number))
    assert os.stat(place / "0").st_nlink == 500
    for number in range(1, 500):
        os.unlink(place / str(number))
    assert os.stat(place / "0").st_nlink == 1


def test_a_symbolic_link_keeps_its_text(place: Path) -> None:
    """Any text but the empty one is kept byte by byte; its length is the link's size."""
    for number, target in enumerate((b"x", b"../a b/\xff\xfe", b"/" + b"y" * 254, b"z/" * 2000)):
        path = os.fsencode(place / str(number))
        os.symlink(target, path)
        assert os.readlink(path) == target
        assert os.lstat(path).st_size == len(target)
    with pytest.raises(FileNotFoundError):
        os.symlink("", place / "empty")


def test_symbolic_links_are_followed(place: Path) -> None:
    """Reading, writing and listing through links works, relative, absolute and chained."""
    (place / "d").mkdir()
    (place / "d/f").write_bytes(b"text")
    (place / "relative").symlink_to("d/f")
    (place / "absolute").symlink_to(place / "d")
    (place / "chain").symlink_to("relative")
    assert (place / "chain").read_bytes() == b"text"
    assert os.listdir(place / "absolute") == ["f"]
    (place / "chain").write_bytes(b"through")
    assert (place / "d/f").read_bytes() == b"through"


def test_replacing_a_symbolic_link_shows_the_new_target(place: Path) -> None:
    """A link swapped by rename leads to its new target at once (no stale cached text)."""
    for name in ("one", "two"):
        (place / name).write_text(name)
    (place / "link").symlink_to("one")
    assert (place / "link").read_text() == "one"
    (place / "next").symlink_to("two")
    os.rename(place / "next", place / "link")
    assert os.readlink(place / "link") == "two"
    assert (place / "link").read_text() == "two"


def test_a_symbolic_link_may_have_hard_links_of_its_own(place: Path) -> None:
    """link(2) without following names the symbolic link itself."""
    (place / "link").symlink_to("nowhere")
    os.link(place / "link", place / "again", follow_symlinks=False)
    assert os.readlink(place / "again") == "nowhere"
    assert os.lstat(place / "link").st_nlink == 2


def test_readlink_of_a_file_is_refused(place: Path) -> None:
    """Only a symbolic link has a target."""
    (place / "f").touch()
    with pytest.raises(OSError) as caught:
        os.readlink(place / "f")
    assert caught.value.errno == errno.EINVAL
