from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.harness.processes import Child
from tests.harness.system_calls import RawEntry, errno_of, getdents

OLD_ENTRIES = 5_000
SMALL_BUFFER_BYTES = 600
"""Room for about twenty entries, so that a listing takes hundreds of calls."""


def read_all(descriptor: int, size_bytes: int = SMALL_BUFFER_BYTES) -> list[RawEntry]:
    """Return the entries from the descriptor's position to the end."""
    found: list[RawEntry] = []
    while chunk := getdents(descriptor, size_bytes):
        found += chunk
    return found


def names_of(entries: list[RawEntry]) -> list[bytes]:
    """Return the names of a listing without `.` and `..`."""
    return [entry.name for entry in entries if entry.name not in (b".", b"..")]


def test_a_directory_counts_its_subdirectories(place: Path) -> None:
    """st_nlink is 2 and one more for each subdirectory; files do not count."""
    assert os.stat(place).st_nlink == 2
    for name in ("a", "b"):
        (place / name).mkdir()
    (place / "file").touch()
    assert os.stat(place).st_nlink == 4
    (place / "a").rmdir()
    assert os.stat(place).st_nlink == 3


def test_mkdir_and_rmdir_that_are_refused(place: Path) -> None:
    """Existing names, missing parents, full directories and files fail as POSIX says."""
    (place / "full/x").mkdir(parents=True)
    (place / "file").touch()
    assert errno_of(lambda: os.mkdir(place / "full")) == errno.EEXIST
    assert errno_of(lambda: os.mkdir(place / "file")) == errno.EEXIST
    assert errno_of(lambda: os.mkdir(place / "none/x")) == errno.ENOENT
    assert errno_of(lambda: os.rmdir(place / "full")) == errno.ENOTEMPTY
    assert errno_of(lambda: os.rmdir(place / "file")) == errno.ENOTDIR
    assert errno_of(lambda: os.rmdir(place / "none")) == errno.ENOENT
    assert errno_of(lambda: os.rmdir(f"{place}/full/.")) == errno.EINVAL
    assert errno_of(lambda: os.unlink(place / "full")) in (errno.EISDIR, errno.EPERM)


def test_deep_paths(place: Path) -> None:
    """Two hundred levels are made, listed from the bottom and removed."""
    bottom = place
    for number in range(200):
        bottom = bottom / f"d{number}"
    bottom.mkdir(parents=True)
    (bottom / "f").write_text("deep")
    assert (bottom / "f").read_text() == "deep"
    assert os.path.samefile(os.path.join(bottom, *[".."] * 200), place)


def test_a_listing_names_kinds_inodes_and_itself(place: Path) -> None:
    """Each entry has stat's inode and kind; `.` and `..` are there once."""
    (place / "file").touch()
    (place / "folder").mkdir()
    (place / "link").symlink_to("file")
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    entries = read_all(descriptor)
    os.close(descriptor)
    kinds = {entry.name: entry.kind for entry in entries}
    assert (kinds[b"file"], kinds[b"folder"], kinds[b"link"]) == (8, 4, 10)
    assert Counter(entry.name for entry in entries)[b"."] == 1
    assert Counter(entry.name for entry in entries)[b".."] == 1
    for entry in entries:
        if entry.name != b"..":
            assert entry.ino == os.lstat(place / os.fsdecode(entry.name)).st_ino


def test_old_entries_are_listed_once_while_the_directory_grows(place: Path) -> None:
    """Five thousand entries, read in small steps between creations and removals of others."""
    old = {b"old-%05d" % number for number in range(OLD_ENTRIES)}
    for name in sorted(old):
        os.close(os.open(os.fsencode(place) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    listed: Counter[bytes] = Counter()
    step = 0
    while (chunk := getdents(descriptor, SMALL_BUFFER_BYTES)) and step < 2 * OLD_ENTRIES:
        listed.update(names_of(chunk))
        (place / f"new-{step}").touch()
        if step % 3 == 2:
            (place / f"new-{step - 1}").unlink()
        step += 1
    os.close(descriptor)
    assert 100 < step < OLD_ENTRIES, "a listing that grows as it is read never ends"
    assert {name: listed[name] for name in old} == dict.fromkeys(old, 1)
    assert max(listed.values()) == 1


@pytest.mark.parametrize("after_a_save", [False, True], ids=["same-epoch", "after-a-save"])
def test_a_replaced_name_is_listed_once(
    place: Path, on_statefs: bool, after_a_save: bool, request: pytest.FixtureRequest
) -> None:
    """Programs that save by rename do not make their files appear twice in a listing."""
    total = 300
    for number in range(total):
        (place / f"f{number}").write_text("old")
    if on_statefs and after_a_save:
        request.getfixturevalue("shared_state").save()
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    listed = Counter(names_of(getdents(descriptor, SMALL_BUFFER_BYTES)))
    for number in range(total):
        (place / "new").write_text("new")
        os.rename(place / "new", place / f"f{number}")
    listed.update(names_of(read_all(descriptor)))
    os.close(descriptor)
    wanted = {b"f%d" % number: 1 for number in range(total)}
    assert {name: count for name, count in listed.items() if name != b"new"} == wanted


def test_a_listing_while_another_process_creates(place: Path) -> None:
    """Listings beside a busy writer have each old name once, and no name twice."""
    old = {f"old-{number}" for number in range(500)}
    for name in old:
        (place / name).touch()

    def create_and_rename() -> None:
        for number in range(400):
            (place / f"tmp-{number}").touch()
            os.rename(place / f"tmp-{number}", place / f"new-{number}")

    with Child({"create": create_and_rename}) as child:
        child.ask("create")
        for _ in range(20):
            listed = os.listdir(place)
            assert len(listed) == len(set(listed))
            assert old <= set(listed)
        child.answer()
    assert set(os.listdir(place)) == old | {f"new-{number}" for number in range(400)}


def test_removing_while_listing_loses_nothing(place: Path) -> None:
    """Rm -r's way: remove each name as it is read; the directory is empty after one pass."""
    for number in range(1_000):
        (place / f"f{number}").touch()
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    while chunk := getdents(descriptor, SMALL_BUFFER_BYTES):
        for name in names_of(chunk):
            os.unlink(name, dir_fd=descriptor)
    os.close(descriptor)
    assert os.listdir(place) == []


def test_seeking_in_a_directory_continues_there(place: Path) -> None:
    """The cookie of any entry leads to what followed it (telldir and seekdir)."""
    for number in range(200):
        (place / f"f{number:03}").touch()
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    entries = read_all(descriptor)
    for at in (0, 1, 2, 50, 198, 200):
        os.lseek(descriptor, entries[at].next_offset, os.SEEK_SET)
        assert names_of(read_all(descriptor)) == names_of(entries[at + 1 :])
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert read_all(descriptor) == entries
    os.close(descriptor)


def test_cookies_stay_valid_when_their_neighbours_go(place: Path) -> None:
    """Continuing behind a removed entry skips and repeats nothing."""
    for number in range(100):
        (place / f"f{number:03}").touch()
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    entries = read_all(descriptor)
    for at in (20, 21, 22):
        if entries[at].name not in (b".", b".."):
            os.unlink(entries[at].name, dir_fd=descriptor)
    os.lseek(descriptor, entries[21].next_offset, os.SEEK_SET)
    assert names_of(read_all(descriptor)) == names_of(entries[23:])
    os.close(descriptor)


def test_a_rewound_listing_sees_new_names(place: Path) -> None:
    """After lseek to 0 a listing starts anew, with what was made meanwhile."""
    (place / "a").touch()
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    assert names_of(read_all(descriptor)) == [b"a"]
    (place / "b").touch()
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert sorted(names_of(read_all(descriptor))) == [b"a", b"b"]
    os.close(descriptor)


def test_a_large_directory(place: Path) -> None:
    """All names are listed once, found by name, and go away again (more: test_listing_large)."""
    total = 10_000
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(total):
        os.mknod(f"{number:06}", 0o100644, dir_fd=folder)
    listed = Counter(names_of(read_all(folder, 32_768)))
    assert len(listed) == total and max(listed.values()) == 1
    for number in range(0, total, 997):
        assert os.stat(f"{number:06}", dir_fd=folder).st_size == 0
    assert errno_of(lambda: os.stat("010000", dir_fd=folder)) == errno.ENOENT
    for number in range(0, total, 10):
        os.unlink(f"{number:06}", dir_fd=folder)
    os.lseek(folder, 0, os.SEEK_SET)
    assert len(read_all(folder, 32_768)) == total - total // 10 + 2
    os.close(folder)
