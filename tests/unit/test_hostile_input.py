"""Requests, settings, documents and archives of any content are taken, or refused in one line."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statefs.archive.headers import END, Member, encode_member
from statefs.archive.importing import Import
from statefs.archive.reading import Archive
from statefs.config import Config, parse_config
from statefs.control.messages import (
    REQUEST_BYTES_MAX,
    ErrorBody,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode,
    error_body,
)
from statefs.control.server import Call, ControlServer
from statefs.errors import CorruptStore, InvalidConfig, StatefsError, UsageError
from statefs.layout import StoreLayout
from statefs.maintenance.commands import _OPERATIONS, Commands
from statefs.maintenance.exporting import PipeWriter
from statefs.maintenance.scrubbing import Scrubber
from statefs.maintenance.store import Store
from statefs.snapshots.documents import SnapshotDocument, decode
from statefs.telemetry.kept import KeptEvents
from tests.harness.tar_mutations import mutated, valid_archives
from tests.unit.engine_store import EngineStore

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
)
"""The same examples each time: whether a change is good must not depend on luck."""
LONG_SECONDS = 60.0
"""A deadline that ends a test which hangs."""
LETTERS = st.characters(codec="utf-8")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=9), inner)
    ),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries(
    {"id": st.integers() | JSON, "op": st.sampled_from(sorted(_OPERATIONS)) | JSON},
    optional={"args": st.dictionaries(st.text(LETTERS, max_size=9), JSON) | JSON, "more": JSON},
)
LINES = st.one_of(
    st.binary(max_size=300),
    REQUESTS.map(lambda request: json.dumps(request).encode()),
    REQUESTS.map(lambda request: json.dumps(request).encode()[:-3]),
)
DEEP = b"[" * 100_000
NASTY_LINES = [
    b'{"id":1,"op":"list","args":{"a":' + DEEP,
    b'{"id":1,"op":"\xff\xfe"}',
    b'{"id":1,"op":"\\ud800"}',
    b'{"id":' + b"9" * 5_000 + b',"op":"list"}',
    b'{"id":1e400,"op":"list"}',
    b"\0" * 4_000,
    b"",
]


@given(LINES)
@REPEATABLE
def test_any_line_is_a_request_or_a_usage_error(line: bytes) -> None:
    """Nothing else may come out of it, since the daemon would end."""
    with suppress(UsageError):
        assert isinstance(decode_request(line), Request)


@pytest.mark.parametrize("line", NASTY_LINES, ids=range(len(NASTY_LINES)))
def test_lines_that_break_parsers_are_refused(line: bytes) -> None:
    """Brackets without end, no UTF-8, half a surrogate, and numbers of no size."""
    with pytest.raises(UsageError, match="cannot be understood"):
        decode_request(line)


async def test_a_server_outlives_whatever_it_is_sent(tmp_path: Path) -> None:
    """Garbage, halves of lines, too long ones, hang-ups: the next one who asks is answered."""
    layout = StoreLayout(tmp_path)
    garbage = [*NASTY_LINES, b"x" * (REQUEST_BYTES_MAX + 5), b'{"id":7,"op":"no text"}']

    async def handle(op: str, _args: dict[str, Any], _call: Call) -> Any:
        if op == "no text":
            raise StatefsError("half \udcff a letter")
        return {"op": op}

    def ask(data: bytes, reads: bool) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LONG_SECONDS)
            connection.connect(str(layout.control_socket))
            try:
                connection.sendall(data)
                return connection.recv(1 << 16) if reads else b""
            except ConnectionError:  # it was refused before it had said everything
                return b""

    with trio.fail_after(LONG_SECONDS):
        async with trio.open_nursery() as nursery:
            control = ControlServer(layout, handle)
            await nursery.start(control.serve)
            for line in garbage:
                for data, reads in ((line + b"\n", True), (line, False), (line + b"\n", False)):
                    said = await trio.to_thread.run_sync(ask, data, reads)
                    if said:
                        assert isinstance(decode_reply(said.splitlines()[0]).error, ErrorBody)
            good = encode(Request(5, "list", {}))
            said = await trio.to_thread.run_sync(ask, good, True)
            assert decode_reply(said.strip()).result == {"op": "list"}
            control.finish()


class Silent:
    """Who asks and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, _progress: dict[str, Any]) -> None:
        """Do nothing."""


@pytest.mark.parametrize("op", sorted(_OPERATIONS))
@pytest.mark.parametrize("wrong", [5, None, {}, [[]], "x"])
def test_arguments_of_a_wrong_type_are_refused(op: str, wrong: Any) -> None:
    """By name, before the operation looks at the store: here there is none."""
    commands = Commands(cast(Store, None))
    names = [
        name
        for name in _OPERATIONS[op].__annotations__
        if name not in ("commands", "call", "_call", "return")
    ]
    arguments = dict.fromkeys(names, wrong)
    if not names or isinstance(wrong, str):
        arguments["no such argument"] = wrong
    with pytest.raises(UsageError, match=f"the operation '{op}' cannot be run so"):
        commands.start(op, arguments, Silent())


def test_an_export_writes_into_a_pipe_only(tmp_path: Path) -> None:
    """Its name comes over the socket, and beside the pipe lies the store's database."""
    (tmp_path / "meta.db").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("meta.db")
    for name in ("meta.db", "link"):
        with pytest.raises(UsageError, match="nobody reads the archive"):
            PipeWriter(str(tmp_path / name), Silent())
    assert (tmp_path / "meta.db").read_bytes() == b"precious"


TOML_PIECES = st.sampled_from(
    ["autosave", "=", "true", "[retention]", "keep_last", "[[volumes]]", "name", '"a"', "\n", "1",
     "9" * 5_000, "1e400", "nan", "[", "]", "{", "}", ".", '"\\u0000"', '"1h"', '"9999999gb"',
     "deadline", "min_free", "path", '"../x"', '"/x"', "2026-01-01", "'''", "#", "\t",
     "before_save"]
)  # fmt: skip
TOML = st.text(LETTERS, max_size=200) | st.lists(TOML_PIECES, max_size=30).map(" ".join)


@given(TOML)
@REPEATABLE
def test_any_text_is_a_config_or_one_clear_refusal(text: str) -> None:
    """Whoever reads it - a mount, a save, the scrubber - knows these two outcomes only."""
    with suppress(InvalidConfig):
        assert isinstance(parse_config(text, "statefs.toml"), Config)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a = " + "[" * 5_000, "not TOML"),
        ("a = " + "{a=" * 5_000, "not TOML"),
        ("autosave_debounce = " + "9" * 5_000, "not TOML"),
        (f'retention.min_free = "{"9" * 400}gb"', "more than any disk holds"),
        (f"retention.min_free = {1 << 63}", "is no size"),
        (f'autosave_debounce = "{"9" * 400}s"', "is no duration"),
        ('volumes = [{name = "a", before_save = [["x\\u0000"]]}]', "no text may hold a NUL"),
        ('retention.keep_labels = ["\\u0000"]', "no text may hold a NUL"),
    ],
)
def test_settings_that_broke_the_reader(text: str, match: str) -> None:
    """Depth, numbers beyond all size, and a NUL, at which starting a program fails."""
    with pytest.raises(InvalidConfig, match=match):
        parse_config(text, "statefs.toml")


def test_a_document_in_brackets_without_end_is_damaged() -> None:
    """As any other damage; the parser gives up in a way of its own."""
    for data in (DEEP, b"\xff", b"", b"{}", b"\0" * 99):
        with pytest.raises(ValueError):
            decode(data, SnapshotDocument)


DAMAGE = [b"", b"\0" * 5_000, b"\xff\xfe", DEEP, b"null", b"[]", b'{"bytes": -1}']


def test_damaged_documents_are_made_anew_or_told(engine: EngineStore) -> None:
    """Verify names them, a scrub's report is forgotten, a store that crashed has them anew."""
    engine.save()
    snapshot, layout = engine.store.catalog.snapshots[-1], engine.store.layout
    document = layout.snapshots / f"{snapshot.name}.json"
    changed = document.with_suffix(".changed")
    before = [path.read_bytes() for path in (layout.index_json, document)]
    for data in DAMAGE:
        for path in (layout.index_json, document, changed, layout.scrub_json):
            path.write_bytes(data)
        told = " ".join(engine.problems())
        for path in (layout.index_json, document, changed):
            assert f"{path.name} cannot be read" in told
        with pytest.raises(CorruptStore, match=r"\.changed is damaged"):
            engine.store.read_changed(snapshot)
        assert Scrubber(engine.store).last is None
    with engine.killed() as opened:
        layout = opened.store.layout
        document = layout.snapshots / document.name
        assert [path.read_bytes() for path in (layout.index_json, document)] == before
        (layout.snapshots / changed.name).unlink()
    changed.unlink()
    engine.store.write_all_documents()


def test_damaged_lines_of_events_are_passed_over(tmp_path: Path) -> None:
    """A daemon reads them when it starts; what follows gets the numbers that follow."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join([*DAMAGE, b'{"number":7}', b'{"number":"8"}', b""]))
    assert KeptEvents(path).newest == 7


def bring_in(folder: Path, data: bytes) -> str:
    """Import an archive into a new current/ in a folder; return how it was refused, or nothing."""
    for name in ("current/files", "current/volumes", "current/runtime", "outside"):
        (folder / name).mkdir(parents=True)
    incoming = Import(folder / "current", None, replace=False)
    try:
        incoming.run(Archive(io.BytesIO(data), "a.tar"), lambda _: None)
    except UsageError as error:
        return str(error)
    except OSError as error:  # what the disk refuses: a device of no kernel, a size of no disk
        return str(error)
    return ""


def test_mutated_archives_are_imported_or_refused(tmp_path: Path) -> None:
    """Nothing outside of current/ is touched, and nothing of a refused one is left in it."""
    archives = valid_archives()
    refusals = 0
    for seed in range(240):
        folder = tmp_path / str(seed)
        refusal = bring_in(folder, mutated(archives[seed % len(archives)], seed))
        assert sorted(os.listdir(folder)) == ["current", "outside"], seed
        assert os.listdir(folder / "outside") == [], seed
        if refusal:
            refusals += 1
            left = sorted(os.listdir(folder / "current"))
            assert left == ["files", "runtime", "volumes"], (seed, refusal)
            assert os.listdir(folder / "current" / "files") == [], (seed, refusal)
    assert 40 < refusals < 220


@given(st.binary(max_size=2_000))
@REPEATABLE
def test_random_bytes_are_no_archive(data: bytes) -> None:
    """Compressed, by their first bytes, or not."""
    for beginning in (b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"):
        with pytest.raises(UsageError, match=r"^a.tar is (damaged|cut off)"):
            list(Archive(io.BytesIO(beginning + data), "a.tar").members())


def header(**fields: Any) -> bytes:
    """Return an archive of one empty file with fields as they are given."""
    info = tarfile.TarInfo("files/a")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + END


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header(uid=-1), "its owner cannot be -1"),
        (header(gid=1 << 40), "its group cannot be"),
        (header(uid=(1 << 32) - 1), "its owner cannot be"),
        (header(type=tarfile.CHRTYPE, devmajor=1 << 40), "its device cannot be"),
        (header(type=tarfile.XHDTYPE, size=1 << 40), "an extended header is too large"),
        (header(type=tarfile.GNUTYPE_LONGNAME, size=1 << 33), "an extended header is too large"),
        (encode_member(Member(b"files/a", stat.S_IFREG))[:0] + header(name="/etc/a"), "absolute"),
    ],
)
def test_numbers_that_no_kernel_knows_are_refused(tmp_path: Path, data: bytes, match: str) -> None:
    """In a line that names what is wrong, not by what the Python library says."""
    assert match in bring_in(tmp_path, data)


def test_a_time_beyond_all_time_is_brought_in_as_the_last(tmp_path: Path) -> None:
    """Also one whose digits alone would fill the memory."""
    record = b"mtime=1e999999\n"
    length = len(record) + 3
    body = b"%d " % length + record
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(body)
    block = head.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")
    data = block + body.ljust(512, b"\0") + header()
    assert bring_in(tmp_path, data) == ""
    assert (tmp_path / "current/files/a").stat().st_mtime > 1e9


def test_a_reply_can_be_sent_whatever_its_message_holds() -> None:
    """The name of a file that is no UTF-8 comes as half a surrogate, which JSON does not know."""
    line = encode(Reply(1, error=error_body(StatefsError("no \udcff"))))
    assert decode_reply(line).error == msgspec.structs.replace(
        error_body(StatefsError("")), message="no \\udcff"
    )
