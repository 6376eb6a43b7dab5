"""Archives without a mount: headers, hostile members, extraction, and what an import does."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import statefs
from statefs.archive import headers
from statefs.archive.acl_text import from_text, to_text
from statefs.archive.headers import END, Member, encode_document, encode_member, padding
from statefs.archive.importing import Import
from statefs.archive.output import receive
from statefs.archive.placing import STAGING
from statefs.archive.reading import Archive, checked_path
from statefs.errors import NoSuchSnapshot, StatefsError, UsageError
from statefs.maintenance.exporting import PipeWriter
from statefs.volume import acl
from tests.harness.processes import NOBODY, Person, run_as
from tests.harness.sample_tree import acl_for_somebody
from tests.harness.trees import capture, differences
from tests.unit.engine_store import EngineStore

FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777


def archive_of(*parts: bytes) -> bytes:
    """Return a whole archive of encoded members."""
    return b"".join(parts) + END


def file(path: bytes, content: bytes = b"x") -> bytes:
    """Return an encoded member with content."""
    return encode_document(path, content, Member(path, FILE))


def members_of(data: bytes) -> list[Member]:
    """Return the members that are read back."""
    return list(Archive(io.BytesIO(data), "a.tar").members())


ODD = [
    Member(b"plain", FILE, 1000, 1001, 1_700_000_000_123_456_789, 5),
    Member(b"\xff\xfe no text\n", FILE, 3_000_000, 4_000_000_000, -1_500_000_000, 0),
    Member(b"d/" * 100 + b"n" * 255, FILE, mtime_ns=2**62, atime_ns=-1),
    Member(b"n" * 98, FOLDER),
    Member(b"link", LINK, atime_ns=0, target=b"/\xff" + b"x/" * 300),
    Member(b"fifo", stat.S_IFIFO | 0o4640, atime_ns=0),
    Member(b"disk", stat.S_IFBLK | 0o600, atime_ns=0, rdev=(259, 70_000)),
    Member(b"hard", FILE, atime_ns=0, hard_link=b"\xfe" * 200),
    Member(
        b"xattrs", FILE, atime_ns=0,
        xattrs={b"user.a=b%c": b"\0\xff\n=", b"user.\xff": b"", acl.ACCESS: acl_for_somebody()},
    ),
]  # fmt: skip


@pytest.mark.parametrize("member", ODD, ids=lambda member: str(member.path[:8]))
def test_a_member_is_read_as_it_was_written(member: Member) -> None:
    """Names and values of any bytes, times before 1970, ids and lengths beyond the plain block."""
    (found,) = members_of(archive_of(encode_member(member)))
    assert found._replace(atime_ns=member.atime_ns) == member
    assert member.atime_ns is None or found.atime_ns == member.atime_ns


@pytest.mark.parametrize("data", [[], [(0, 5)], [(512, 600), (5_000, 10_000)], [(9_999, 10_000)]])
def test_a_sparse_member_is_read_as_it_was_written(data: list[tuple[int, int]]) -> None:
    """By this program and by the standard library; only its data takes room."""
    content = bytearray(10_000)
    for start, end in data:
        content[start:end] = os.urandom(end - start)
    stored = b"".join(bytes(content[start:end]) for start, end in data)
    member = Member(b"s/\xff", FILE, size=10_000, data=data)
    whole = archive_of(encode_member(member) + stored + padding(len(stored)), file(b"after"))
    archive = Archive(io.BytesIO(whole), "a.tar")
    found = bytearray(10_000)
    reading = archive.members()
    first = next(reading)
    for start, part in archive.content(first):
        found[start : start + len(part)] = part
    assert (first.path, first.size, found) == (b"s/\xff", 10_000, content)
    assert [each.path for each in reading] == [b"after"]
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        read = tar.extractfile(tar.getmembers()[0])
        assert read is not None and read.read() == content


@pytest.mark.parametrize("data", [[(0, 700)], [(512, 1_024), (5_120, 10_000)]])
def test_a_huge_sparse_member_is_read_as_it_was_written(
    data: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it stores does not fit the plain block: its size is in the extended header."""
    monkeypatch.setattr(headers, "_SIZE_LIMIT", 100)
    content = bytearray(10_000)
    for start, end in data:
        content[start:end] = os.urandom(end - start)
    stored = b"".join(bytes(content[start:end]) for start, end in data)
    member = Member(b"huge", FILE, size=10_000, data=data)
    whole = archive_of(encode_member(member) + stored + padding(len(stored)), file(b"after"))
    found = members_of(whole)
    assert [(each.path, each.size) for each in found] == [(b"huge", 10_000), (b"after", 1)]
    assert found[0].data == data
    (tmp_path / "a.tar").write_bytes(whole)
    subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path], check=True, timeout=30)
    assert (tmp_path / "huge").read_bytes() == content


def test_ranges_are_grown_to_whole_blocks() -> None:
    """Those that meet are joined; the last one ends with the file."""
    ranges = [(0, 1), (511, 513), (2_000, 2_100), (9_999, 10_000)]
    assert headers.aligned(ranges, 10_000) == [(0, 1_024), (1_536, 2_560), (9_728, 10_000)]
    assert headers.aligned([], 5) == []


def test_acls_are_text() -> None:
    """As numbers; names, single letters, star's ids and comments are understood."""
    text = to_text(acl_for_somebody())
    assert text == "user::rwx,user:12345:rw-,group::r-x,mask::rwx,other::---"
    assert from_text(text) == acl_for_somebody()
    other = "u::rwx\nu:nobody-here:rw-:12345\t#effective:r--\ng::r-x\nm::rwx\no::---\n"
    assert from_text(other) == acl_for_somebody()
    assert from_text("user::rw-,user:root:r--,group::---,mask::r--,other::---") != b""
    for bad in ("user::rwx,what::r", "user:no such user:rwx", "other:5:rwx", "user::q"):
        with pytest.raises(ValueError, match=r"'"):
            from_text(bad)


@pytest.mark.parametrize(
    "path", [b"/etc/passwd", b"a/../../b", b"..", b"a/..", b"a\0b", b"x" * 256]
)
def test_a_path_that_leads_elsewhere_is_refused(path: bytes) -> None:
    """Whether as a name or as the file that a hard link is of; the complaint names it."""
    with pytest.raises(UsageError, match=r"(refused|such a name)$"):
        checked_path(path)
    if b"\0" not in path:
        with pytest.raises(UsageError, match=r"a member|refused|such a name"):
            members_of(archive_of(encode_member(Member(path, FILE))))
        with pytest.raises(UsageError, match=r"^linked: "):
            members_of(archive_of(encode_member(Member(b"linked", FILE, hard_link=path))))


def test_a_damaged_archive_is_refused() -> None:
    """Cut off anywhere, no archive at all, or with a map of holes that contradicts itself."""
    whole = archive_of(file(b"a", b"y" * 3_000), file(b"b"))
    for length in (0, 100, 1_000, 3_000, len(whole) - len(END), len(whole) - len(END) + 512):
        with pytest.raises(UsageError, match=r"^a.tar is (damaged|cut off)"):
            read_all(whole[:length])
    packed = zstandard.compress(whole)
    read_all(packed)
    with pytest.raises(UsageError, match=r"^a.tar is (damaged|cut off)"):
        read_all(packed[: len(packed) // 2])
    with pytest.raises(UsageError, match=r"^s: the map of its holes"):
        read_all(archive_of(encode_member(Member(b"s", FILE, size=5, data=[(3, 4), (0, 2)]))))


def read_all(data: bytes) -> None:
    """Read every byte of an archive."""
    archive = Archive(io.BytesIO(data), "a.tar")
    for member in archive.members():
        if stat.S_ISREG(member.mode) and member.hard_link is None:
            for _ in archive.content(member):
                pass


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A folder that looks like a fresh current/, beside something that must stay as it is."""
    (tmp_path / "outside").mkdir()
    for name in ("files", "volumes", "runtime"):
        (tmp_path / "current" / name).mkdir(parents=True)
    return tmp_path / "current"


def bring_in(current: Path, data: bytes, into: str | None = None, replace: bool = False) -> Import:
    """Import an archive."""
    incoming = Import(current, into, replace)
    incoming.check_place()
    incoming.run(Archive(io.BytesIO(data), "a.tar"), lambda _: None)
    return incoming


HOSTILE = {
    "through a link": [encode_member(Member(b"files/l", LINK, target=b"../../outside")),
                       file(b"files/l/x")],
    "through an absolute link": [encode_member(Member(b"l", LINK, target=b"/tmp")), file(b"l/x")],
    "a folder over a link": [encode_member(Member(b"l", LINK, target=b"../outside")),
                             encode_member(Member(b"l", FOLDER, mtime_ns=1))],
    "a hard link through a link": [encode_member(Member(b"l", LINK, target=b"../outside")),
                                   encode_member(Member(b"h", FILE, hard_link=b"l/x"))],
    "a hard link to nothing": [encode_member(Member(b"h", FILE, hard_link=b"files/none"))],
    "a file over a folder": [file(b"files/a/b"), file(b"files/a")],
    "a root that is a file": [file(b"./")],
    "upwards": [file(b"files/good"), file(b"files/../../outside/x")],
    "cut off": [file(b"files/good"), file(b"files/x")[:600]],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("replace", [False, True])
def test_a_hostile_archive_changes_nothing(current: Path, name: str, replace: bool) -> None:
    """Neither outside nor inside: what was there is there, with its times, and nothing else."""
    if replace:
        (current / "files" / "old").write_text("old")
    before = capture(current.parent)
    with pytest.raises(UsageError):
        bring_in(current, b"".join(HOSTILE[name]) + END, replace=replace)
    assert differences(before, capture(current.parent)) == []


def test_a_link_is_brought_in_and_not_followed(current: Path) -> None:
    """Wherever it leads; a later member of its name takes its place."""
    (current.parent / "outside" / "kept").write_text("kept")
    link = encode_member(Member(b"files/l", LINK, target=b"../../outside/kept", mtime_ns=7))
    bring_in(current, archive_of(link, encode_member(Member(b"m", LINK, target=b"l")), file(b"m")))
    assert os.readlink(current / "files" / "l") == "../../outside/kept"
    assert (current / "m").read_text() == "x" and not (current / "m").is_symlink()
    assert (current.parent / "outside" / "kept").read_text() == "kept"


@pytest.mark.parametrize("failing", range(1, 9))
def test_an_import_that_fails_while_it_takes_its_place_is_taken_back(
    current: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever rename it is that the disk refuses."""
    for name in ("files/one", "files/two", "volumes/three", "four"):
        (current / name).write_text(name)
    os.utime(current / "files", ns=(1, 2))
    before = capture(current)
    calls = 0
    rename: Callable[..., None] = os.rename

    def refusing(*arguments: object, **keywords: object) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        rename(*arguments, **keywords)

    monkeypatch.setattr(os, "rename", refusing)
    new = archive_of(
        encode_member(Member(b".", stat.S_IFDIR | 0o700, mtime_ns=1)),
        encode_member(Member(b"files", stat.S_IFDIR | 0o711, mtime_ns=1)),
        *(file(path) for path in (b"files/one", b"files/new", b"four", b"volumes/five")),
    )
    with pytest.raises(OSError, match=r"No space left"):
        bring_in(current, new, replace=True)
    assert differences(before, capture(current)) == []
    bring_in(current, new, replace=True)
    assert sorted(os.listdir(current)) == ["files", "four", "runtime", "volumes"]
    assert stat.S_IMODE(os.stat(current).st_mode) == 0o700
    assert os.stat(current / "files").st_mtime_ns == os.stat(current).st_mtime_ns == 1


def test_runtime_is_left_alone_and_folders_need_no_rights(current: Path) -> None:
    """What an archive says of runtime/ is passed over; folders without rights are filled first."""
    (current / "runtime" / "env.json").write_text("{}")
    incoming = bring_in(
        current,
        archive_of(
            file(b"runtime/env.json", b"theirs"),
            encode_member(Member(b"files/closed", stat.S_IFDIR, mtime_ns=5)),
            file(b"files/closed/inside"),
        ),
    )
    assert (current / "runtime" / "env.json").read_text() == "{}"
    closed = os.stat(current / "files" / "closed")
    assert (stat.S_IMODE(closed.st_mode), closed.st_mtime_ns) == (0, 5)
    assert incoming.members == 2 and not list(current.glob(f"{STAGING}*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_imports_what_is_hers(current: Path) -> None:
    """Owners become hers, what only root may make is counted; a failure is cleared away."""
    for folder in (current.parent, *current.iterdir(), current):
        os.chown(folder, NOBODY, NOBODY)
    closed = encode_member(Member(b"files/closed", stat.S_IFDIR, mtime_ns=5))
    parts = [
        file(b"files/closed/inside"),
        closed,
        encode_member(Member(b"files/null", stat.S_IFCHR | 0o600, rdev=(1, 3))),
        encode_member(Member(b"files/t", FILE, 5, 5, xattrs={b"trusted.t": b"x"})),
    ]
    before = capture(current)
    opened = os.open(current, os.O_RDONLY)  # pytest's own folders are closed to her

    def importing(data: bytes, replace: bool = False) -> int:
        os.fchdir(opened)
        return bring_in(Path(), data, replace=replace).left_out

    nobody = Person(NOBODY, NOBODY)
    try:
        with pytest.raises(AssertionError, match=r"UsageError: a\.tar is cut off"):
            run_as(nobody, lambda: importing(b"".join(parts)))
        assert differences(before, capture(current)) == []
        assert run_as(nobody, lambda: importing(archive_of(*parts))) == 2
        found = capture(current / "files")
        assert run_as(nobody, lambda: importing(archive_of(*parts), replace=True)) == 2
    finally:
        os.close(opened)
    assert sorted(found) == [b".", b"closed", b"closed/inside", b"t"]
    assert found[b"closed"].mode == 0 and {each.uid for each in found.values()} == {NOBODY}
    assert differences(found, capture(current / "files"), ignore={"mtime_ns"}) == []
    assert not list(current.glob(f"{STAGING}*"))


def test_a_first_member_that_is_no_snapshots_document_is_refused(current: Path) -> None:
    """It would otherwise be lost; one that is not the first is a file like any other."""
    with pytest.raises(UsageError, match=r"^metadata.json, the first member of a.tar"):
        bring_in(current, archive_of(file(b"metadata.json", b'{"hello": 1}')))
    bring_in(current, archive_of(file(b"files/a"), file(b"metadata.json", b"mine")))
    assert (current / "metadata.json").read_bytes() == b"mine"


def test_an_export_of_a_closed_store(engine: EngineStore, tmp_path: Path) -> None:
    """The same members that tar lists, progress up to the end, no file where it fails."""
    folder = engine.folder("data")
    engine.file("small", b"small", folder)
    content = os.urandom(100_000).ljust(5_000_000, b"\0") + b"end"
    big = engine.file("big", content[:100_000], folder)
    engine.save()  # so that a hole begins where the first object ends, within a block
    engine.data.write(big, 5_000_000, b"end")
    engine.names.link(big, folder, b"again")
    engine.save(name="clean")
    engine.store.close()
    events: list[dict[str, object]] = []
    target = tmp_path / "a.tar"
    try:
        with statefs.open(store=engine.root) as state:
            done = state.export("clean", target, on_progress=events.append)
            with pytest.raises(NoSuchSnapshot):
                state.export("none", tmp_path / "b.tar")
            with pytest.raises(UsageError, match=r"end it in .tar"):
                state.export("clean", tmp_path / "b.tar.gz")
            in_memory = io.BytesIO()
            state.export("clean", in_memory)
    finally:
        engine.store = EngineStore(engine.root).store
    assert os.listdir(tmp_path) == ["a.tar"] and in_memory.getvalue() == target.read_bytes()
    listed = subprocess.run(["tar", "-tf", target], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[:2] == ["metadata.json", "./"]
    assert "data/again" in listed.stdout.splitlines()
    assert len(listed.stdout.splitlines()) == done["members"] + 1
    assert target.stat().st_size < 200_000
    subprocess.run(["tar", "-xf", target, "-C", tmp_path], check=True, timeout=30)
    assert (tmp_path / "data" / "again").read_bytes() == content
    assert events[-1]["done"] == events[-1]["total"] == 5_000_003 + 5 == done["bytes"]


class Asker:
    """A call that nobody waits for."""

    is_wanted = False

    pid = 0

    def report(self, progress: dict[str, object]) -> None:
        """Do nothing."""


def test_an_archive_that_nobody_reads_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody there at all, a reader that closes, a full pipe whose asker has gone."""
    monkeypatch.setattr("statefs.maintenance.exporting.POLL_MS", 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match=r"nobody reads"):
        PipeWriter(str(pipe), Asker())
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with PipeWriter(str(pipe), Asker()) as writer:
        with pytest.raises(StatefsError, match=r"nobody waits"):
            writer.write(bytes(3 << 20))
        os.close(reader)
        with pytest.raises(StatefsError, match=r"nobody reads"):
            writer.write(b"x")


def test_what_the_output_refuses_is_what_is_told(tmp_path: Path) -> None:
    """Not that the pipe broke because of it."""

    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    def ask(name: str) -> None:
        with PipeWriter(str(tmp_path / name), Asker()) as writer:
            for _ in range(100):
                writer.write(bytes(1 << 16))

    with pytest.raises(OSError, match=r"No space left"):
        receive(tmp_path, full, False, ask)
    assert os.listdir(tmp_path) == []


def test_headers_name_the_limits_of_the_plain_block() -> None:
    """A stored size beyond eight gigabytes is in the extended header."""
    head = encode_member(Member(b"huge", FILE, size=9 << 30))
    assert b" size=%d\n" % (9 << 30) in head and len(head) % headers.TAR_BLOCK_BYTES == 0
