"""Object files: bytes at offsets, shared descriptors, and what is durable."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statefs.content import objects as objects_module
from statefs.content.objects import FOLDERS, ObjectFiles, Origin
from statefs.ids import ObjectId
from statefs.layout import StoreLayout

ONE = ObjectId(0x413)
TWO = ObjectId(0x514)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ObjectFiles]:
    """An empty objects/ folder, with one object of ten bytes."""
    layout = StoreLayout(tmp_path)
    layout.objects.mkdir()
    for number in range(FOLDERS):
        (layout.objects / f"{number:02x}").mkdir()
    files = ObjectFiles(layout)
    files.create(ONE)
    files.write(ONE, b"0123456789", 0)
    yield files
    files.close()


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_a_number_says_where_the_file_lies(files: ObjectFiles, tmp_path: Path) -> None:
    """In the folder of its last byte, under its hexadecimal number."""
    assert (tmp_path / "objects" / "13" / "413").read_bytes() == b"0123456789"
    assert files.present() == {ONE}


def test_a_number_is_made_once(files: ObjectFiles, tmp_path: Path) -> None:
    """A file that is there already, and that nobody here has made, is not taken over."""
    with pytest.raises(FileExistsError):
        ObjectFiles(StoreLayout(tmp_path)).create(ONE)


def test_pieces_are_read_in_order_and_holes_are_zeros(files: ObjectFiles) -> None:
    """Object 0 is a hole."""
    files.create(TWO)
    files.write(TWO, b"xy", 4)
    assert files.read([(2, 4, ONE), (4, 6, TWO), (6, 8, 0), (8, 10, ONE)]) == b"23xy\0\x0089"


def test_what_lies_behind_the_end_of_an_object_is_an_error(files: ObjectFiles) -> None:
    """Never zeros: an extent covers only bytes that its object has, so some were lost."""
    with pytest.raises(OSError, match="ends at byte 10") as caught:
        files.read([(8, 12, ONE)])
    assert caught.value.errno == errno.EIO


def test_reading_from_memory_gives_all_or_nothing(files: ObjectFiles) -> None:
    """What has just been written is in the host's memory; a short object is not "all"."""
    assert files.read_cached([(0, 10, ONE), (0, 2, 0)]) == b"0123456789\0\0"
    assert files.read_cached([(5, 20, ONE)]) is None


def test_a_write_that_is_taken_in_parts_is_written_whole(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pwrite(2) may write less than it was given."""
    pwrite = os.pwrite

    def three_bytes(fd: int, data: bytes, offset: int) -> int:
        return pwrite(fd, bytes(data)[:3], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", three_bytes)
        files.write(ONE, b"abcdefgh", 1)
    assert files.read([(0, 10, ONE)]) == b"0abcdefgh9"


def test_a_sync_is_owed_from_the_first_write_on(files: ObjectFiles) -> None:
    """Until it is done; truncation is a write, too."""
    assert not files.is_synced(ONE)
    files.sync(ONE)
    assert files.is_synced(ONE)
    files.truncate(ONE, 3)
    assert not files.is_synced(ONE)
    files.sync(ONE)
    assert files.is_synced(ONE)


def test_a_new_objects_folder_is_synced_with_it_once(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its name the bytes would be lost; later syncs need the bytes only."""
    synced: list[Path] = []
    monkeypatch.setattr(objects_module, "sync_folder", synced.append)
    files.sync(ONE)
    files.write(ONE, b"x", 0)
    files.sync(ONE)
    assert [folder.name for folder in synced] == ["13"]


def test_a_write_during_a_sync_is_owed_another(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fdatasync(2) promises nothing of what is written while it runs."""
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        fdatasync(fd)
        files.write(ONE, b"late", 0)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", slow)
        files.sync(ONE)
    assert not files.is_synced(ONE)


def test_a_failed_sync_stays_owed(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error goes to the caller, and the object is not called synced."""

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError, match="broken"):
            files.sync(ONE)
    assert not files.is_synced(ONE)


def test_threads_that_want_the_same_object_synced_share_it(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fdatasync for all who wait."""
    synced: list[int] = []
    together = threading.Barrier(4)
    monkeypatch.setattr(os, "fdatasync", synced.append)

    def sync() -> None:
        together.wait()
        files.sync(ONE)

    threads = [threading.Thread(target=sync) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(synced) == 1


def test_descriptors_are_few_however_many_objects(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest unused are closed; what is in one's hands stays open."""
    monkeypatch.setattr(objects_module, "MAX_DESCRIPTORS", 8)
    before = descriptors()
    for number in range(2000, 2100):
        files.create(ObjectId(number))
        files.write(number, b"%d" % number, 0)
    assert descriptors() - before <= 8
    assert files.read([(0, 4, 2000), (0, 4, 2050), (0, 4, 2099)]) == b"200020502099"


def test_a_removed_object_is_gone_and_owes_nothing(files: ObjectFiles) -> None:
    """Also its descriptor; removing it again is fine."""
    before = descriptors()
    files.remove(ONE)
    files.remove(ONE)
    assert files.present() == set()
    assert files.is_synced(ONE)
    assert descriptors() == before - 1
    with pytest.raises(FileNotFoundError):
        files.read([(0, 1, ONE)])


def test_a_hole_gives_its_space_back(files: ObjectFiles) -> None:
    """The bytes around it stay, and so does the length."""
    files.truncate(ONE, 0)
    files.write(ONE, b"a" * (1 << 20), 0)
    files.sync(ONE)
    before = files.stat(ONE)
    files.punch(ONE, 1 << 16, 1 << 19)
    after = files.stat(ONE)
    assert after.st_size == before.st_size
    assert after.st_blocks < before.st_blocks
    assert files.read([((1 << 16) - 1, (1 << 16) + 1, ONE)]) == b"a\0"
    assert files.read([((1 << 19) - 1, (1 << 19) + 1, ONE)]) == b"\0a"


@pytest.mark.parametrize("call", ["setxattr", "fstat"])
def test_an_object_whose_making_fails_is_not_there(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Nobody would know of the file: verify would complain of it."""

    def refused(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    before = descriptors()
    with monkeypatch.context() as broken:
        broken.setattr(os, "geteuid", lambda: 0)
        broken.setattr(os, call, refused)
        with pytest.raises(OSError, match="broken"):
            files.create(TWO, Origin(1, 1, b"f"))
    assert files.present() == {ONE}
    assert descriptors() == before
    files.create(TWO)
