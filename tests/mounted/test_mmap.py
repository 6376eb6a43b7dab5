from __future__ import annotations

import mmap
import os
from pathlib import Path

from tests.harness.processes import Child

PAGE_BYTES = mmap.PAGESIZE


def test_a_shared_map_reads_the_file(place: Path) -> None:
    """Pages of a map hold the file's bytes, zeros after its end in the last page."""
    content = os.urandom(3 * PAGE_BYTES + 17)
    (place / "f").write_bytes(content)
    with open(place / "f", "rb") as file:
        view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert view[:] == content
        view.close()


def test_what_a_shared_map_writes_is_in_the_file(place: Path) -> None:
    """Bytes stored into a shared map are read by read(2), at once and after it is closed."""
    (place / "f").write_bytes(bytes(4 * PAGE_BYTES))
    with open(place / "f", "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
        view[PAGE_BYTES - 3 : PAGE_BYTES + 3] = b"mapped"
        assert os.pread(file.fileno(), 6, PAGE_BYTES - 3) == b"mapped"
        view.flush()
        view.close()
    content = (place / "f").read_bytes()
    wanted = bytes(PAGE_BYTES - 3) + b"mapped" + bytes(3 * PAGE_BYTES - 3)
    assert content == wanted


def test_writes_by_system_call_show_in_a_map(place: Path) -> None:
    """A map made before a write sees it, also in pages it had read."""
    (place / "f").write_bytes(b"a" * 2 * PAGE_BYTES)
    with open(place / "f", "r+b", buffering=0) as file:
        view = mmap.mmap(file.fileno(), 0)
        assert view[PAGE_BYTES] == ord("a")
        os.pwrite(file.fileno(), b"written", PAGE_BYTES)
        assert view[PAGE_BYTES : PAGE_BYTES + 7] == b"written"
        view.close()


def test_a_private_map_never_writes_the_file(place: Path) -> None:
    """MAP_PRIVATE is a copy of its own."""
    (place / "f").write_bytes(b"original")
    with open(place / "f", "r+b") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        view[:8] = b"changed!"
        view.close()
    assert (place / "f").read_bytes() == b"original"


def test_two_processes_share_a_map(place: Path) -> None:
    """What one process stores in the map the other reads in its own."""
    (place / "f").write_bytes(bytes(PAGE_BYTES))

    def store() -> None:
        with open(place / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[100:105] = b"hello"

    with open(place / "f", "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
        assert view[100:105] == bytes(5)
        with Child({"store": store}) as child:
            child.do("store")
        assert view[100:105] == b"hello"
        view.close()


def test_a_map_outlives_its_descriptor_and_its_name(place: Path) -> None:
    """A map of a closed and unlinked file still reads and writes."""
    (place / "f").write_bytes(b"x" * PAGE_BYTES)
    descriptor = os.open(place / "f", os.O_RDWR)
    view = mmap.mmap(descriptor, PAGE_BYTES)
    os.close(descriptor)
    os.unlink(place / "f")
    view[0:3] = b"abc"
    view.flush()
    assert view[0:4] == b"abcx"
    view.close()


def test_mapped_writes_into_a_hole_fill_it(place: Path) -> None:
    """A page of a sparse file written through a map is there, its neighbours stay zero."""
    with open(place / "f", "w+b") as file:
        file.truncate(10 * PAGE_BYTES)
        view = mmap.mmap(file.fileno(), 0)
        view[5 * PAGE_BYTES] = 7
        view.flush()
        view.close()
    content = (place / "f").read_bytes()
    assert content == bytes(5 * PAGE_BYTES) + b"\x07" + bytes(5 * PAGE_BYTES - 1)


def test_a_mapped_write_moves_mtime(place: Path) -> None:
    """After msync the file's mtime is later than before the store."""
    (place / "f").write_bytes(bytes(PAGE_BYTES))
    os.utime(place / "f", ns=(9, 9))
    with open(place / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0] = 1
        view.flush()
        assert os.fstat(file.fileno()).st_mtime_ns > 9
