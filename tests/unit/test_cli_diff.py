"""diff, log, cat and the API under them, on real stores that no daemon has open."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import statefs
from statefs.cli.cat import write_sparse
from statefs.cli.difference_view import text_of
from statefs.cli.options import complete_snapshot, find_moments
from statefs.errors import CorruptStore, NoSuchPath, StatefsError, UsageError
from statefs.ids import TREE_ROOT, ObjectId
from statefs.layout import StoreLayout
from statefs.volume.attributes import AttributeChange
from tests.unit.cli_fakes import call
from tests.unit.engine_store import FILE, ME, EngineStore

Capture = pytest.CaptureFixture[str]
BIG = 20_000
BIG_DIGEST = hashlib.sha256(b"x" * BIG).hexdigest()


@contextmanager
def engine_of(state: Path) -> Iterator[EngineStore]:
    """Open the store of a state for a moment."""
    with EngineStore(Path(f"{state}.store")) as engine:
        yield engine


@pytest.fixture
def state(tmp_path: Path, no_waiting_for_disks: None) -> Path:
    """A state with the snapshot `a`, and one change of each kind since."""
    path = tmp_path / "state"
    path.mkdir()
    with engine_of(path) as engine:
        files = int(engine.names.lookup(TREE_ROOT, b"files").ino)
        text = engine.file("text", b"one\ntwo\n", files)
        chmod = engine.file("chmod", b"x" * BIG, files)
        engine.file("big", b"b" * BIG, files)
        engine.file("inner", b"", engine.folder("moved", files))
        engine.file("removed", b"gone", files)
        engine.save(name="a")
        engine.data.write(text, 4, b"2")
        engine.attributes.set(chmod, AttributeChange(mode=0o600))
        engine.names.rename(files, b"moved", files, b"there")
        engine.names.unlink(files, b"removed")
        engine.names.create(files, b"\xff\x1b[2J", FILE, ME)
    return path


def test_diff_prints_a_line_each(state: Path, capsys: Capture) -> None:
    """A letter, the path, what changed; nothing that a terminal might obey."""
    done = call(capsys, "diff", state, "a")
    assert (done.exit_code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "m  files/chmod (mode)",
        "D  files/removed",
        "M  files/text",
        "R  files/moved/ -> files/there/",
        r"A  files/\xff\x1b[2J",
    ]


def test_diff_the_other_way_round(state: Path, capsys: Capture) -> None:
    """What was added is removed; the same moment differs in nothing."""
    lines = call(capsys, "diff", state, "current", "a").out.splitlines()
    assert [line[0] for line in lines] == ["m", "R", "A", "M", "D"]
    assert call(capsys, "diff", state, "a", "latest").out == ""
    assert call(capsys, "diff", state, "current").out == ""


def test_diff_exit_code(state: Path, capsys: Capture) -> None:
    """Only when it is asked for; errors keep their own."""
    assert call(capsys, "diff", state, "a", "--exit-code").exit_code == 1
    assert call(capsys, "diff", state, "a", "a", "--exit-code").exit_code == 0
    assert call(capsys, "diff", state, "nothing", "--exit-code").exit_code == 7


def test_diff_stat(state: Path, capsys: Capture) -> None:
    """A row for each kind there is, and a line for all."""
    lines = call(capsys, "diff", state, "a", "--stat").out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        "added", "removed", "modified", "renamed", "metadata",
    ]  # fmt: skip
    assert lines[-1] == "5 differences, -4 B"
    assert call(capsys, "diff", state, "a", "a", "--stat").out == "no differences\n"
    document = json.loads(call(capsys, "diff", state, "a", "--stat", "--json").out)
    assert document["stat"]["removed"] == {"count": 1, "bytesBefore": 4, "bytes": 0}
    assert "differences" not in document


def test_diff_json_is_exact(state: Path, capsys: Capture) -> None:
    """Names that are no UTF-8 stand in base64 beside the text."""
    document = json.loads(call(capsys, "diff", state, "a", "--json").out)
    assert document["newer"] == "current" and document["older"].endswith("Z")
    last = document["differences"][-1]
    assert last["path"] == "files/\\xff\x1b[2J"
    assert base64.b64decode(last["rawPath"]) == b"files/\xff\x1b[2J"
    moved = document["differences"][3]
    assert (moved["kind"], moved["pathBefore"], moved["type"]) == (
        "renamed", "files/moved", "folder",
    )  # fmt: skip


def test_diff_content(state: Path, capsys: Capture) -> None:
    """A unified diff of text, of added and removed files, too; a line for what is none or large."""
    with engine_of(state) as engine:
        files = int(engine.names.lookup(TREE_ROOT, b"files").ino)
        text = engine.names.lookup(files, b"text").ino
        engine.data.truncate(text, 7)
        engine.file("binary", b"\0", files)
        engine.data.truncate(engine.file("large", b"", files), 2 << 20)
        engine.file("new", b"1\n", files)
        name = engine.store.catalog.snapshots[-1].name
        engine.save(name="b")
        newer = engine.store.catalog.snapshots[-1].name
        engine.data.write(engine.names.lookup(files, b"binary").ino, 0, b"1")
        engine.data.write(engine.names.lookup(files, b"large").ino, 0, b"1")
    assert call(capsys, "diff", state, "a", "b", "--content").out.splitlines() == [
        "files/binary: binary files differ",
        "files/large: larger than 1.0 MiB, not compared line by line",
        f"--- {name}/files/new",
        f"+++ {newer}/files/new",
        "@@ -0,0 +1 @@",
        "+1",
        f"--- {name}/files/removed",
        f"+++ {newer}/files/removed",
        "@@ -1 +0,0 @@",
        "-gone",
        "\\ No newline at end of file",
        f"--- {name}/files/text",
        f"+++ {newer}/files/text",
        "@@ -1,2 +1,2 @@",
        " one",
        "-two",
        "+2wo",
        "\\ No newline at end of file",
    ]
    assert call(capsys, "diff", state, "b", "--content").out.splitlines() == [
        "files/binary: binary files differ",
        "files/large: larger than 1.0 MiB, not compared line by line",
    ]
    refused = call(capsys, "diff", state, "a", "--content", "--json")
    assert refused.exit_code == 2 and "without --json" in refused.err


def test_diff_of_a_file_that_another_one_was_renamed_over(state: Path, capsys: Capture) -> None:
    """Renamed and removed in the list; the text diff is that of what the path leads to."""
    with engine_of(state) as engine:
        files = int(engine.names.lookup(TREE_ROOT, b"files").ino)
        engine.file("f", b"old\n", files)
        engine.file("tmp", b"new\n", files)
        engine.save(name="b")
        engine.names.rename(files, b"tmp", files, b"f")
        engine.save(name="c")
        older, newer = (each.name for each in engine.store.catalog.snapshots[-2:])
    assert call(capsys, "diff", state, "b", "c").out.splitlines() == [
        "D  files/f",
        "R  files/tmp -> files/f",
    ]
    told = json.loads(call(capsys, "diff", state, "b", "c", "--json").out)["differences"]
    assert [(each["kind"], each["path"], each["pathBefore"]) for each in told] == [
        ("removed", "files/f", None), ("renamed", "files/f", "files/tmp"),
    ]  # fmt: skip
    assert call(capsys, "diff", state, "b", "c", "--content").out.splitlines() == [
        f"--- {older}/files/f", f"+++ {newer}/files/f", "@@ -1 +1 @@", "-old", "+new",
    ]  # fmt: skip
    assert call(capsys, "diff", state, "c", "b", "--content").out.splitlines() == [
        f"--- {newer}/files/f", f"+++ {older}/files/f", "@@ -1 +1 @@", "-new", "+old",
    ]  # fmt: skip
    with engine_of(state) as engine:
        engine.data.write(engine.names.lookup(files, b"f").ino, 0, b"later")
    assert call(capsys, "diff", state, "b", "--content").out.splitlines()[2:] == [
        "@@ -1 +1 @@", "-old", "+later", "\\ No newline at end of file",
    ]  # fmt: skip
    with engine_of(state) as engine:
        engine.data.truncate(engine.names.lookup(files, b"f").ino, 2 << 20)
    assert call(capsys, "diff", state, "b", "--content").out == (
        "files/f: larger than 1.0 MiB, not compared line by line\n"
    )


def test_what_is_text() -> None:
    """UTF-8 without zeros; each line keeps its newline, and carriage returns stay in the line."""
    assert text_of(b"a\r\nb") == ["a\r\n", "b"]
    assert text_of(b"") == [] and text_of(b"\n") == ["\n"]
    assert text_of(b"\xff") is None and text_of(b"a\0") is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("state", "a"), ("state", "a", "current")),
        (("state", "a", "b"), ("state", "a", "b")),
        (("a", "b"), ("state", "a", "b")),
        (("a",), ("state", "a", "current")),
        (("./state", "a"), ("state", "a", "current")),
    ],
)
def test_words_of_diff(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    expected: tuple[str, str, str],
) -> None:
    """Of two words the first is the state if there is such a state."""
    monkeypatch.chdir(state.parent)
    monkeypatch.setenv("STATEFS_STATE", "state")
    target, older, newer = find_moments(words, None)
    assert target.state is not None
    assert (target.state.name, older, newer) == expected


def test_words_that_are_too_many_or_missing(
    state: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says how the command is used."""
    monkeypatch.delenv("STATEFS_STATE", raising=False)
    commands: list[tuple[str | Path, ...]] = [
        ("diff",), ("diff", state), ("diff", state, "a", "b", "c"), ("diff", state, ""),
        ("log",), ("log", state, "a", "b"), ("cat", "a"), ("cat", state, "a", "b", "c"),
        ("cat", state, b"\xff".decode("utf-8", "surrogateescape"), "f"),
        ("diff", state, b"\xff".decode("utf-8", "surrogateescape")),
    ]  # fmt: skip
    for words in commands:
        done = call(capsys, *words)
        assert (done.exit_code, done.out, done.err.count("\n")) == (2, "", 1), words


def test_completion_offers_current(state: Path) -> None:
    """Beside the snapshots, where it can be used."""
    import click

    from statefs.cli.app import statefs as group

    for name, has_current in (("diff", True), ("cat", True), ("show", False)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        context = click.Context(command, info_name=name)
        context.params["words"] = (str(state),)
        offered = [item.value for item in complete_snapshot(context, command.params[0], "")]
        assert "a" in offered and ("current" in offered) == has_current


def test_bash_offers_snapshots_where_the_state_may_be_left_out(state: Path) -> None:
    """With STATEFS_STATE set a state may come, or a snapshot: bash itself shows the latter."""
    script = (
        "compopt() { :; }; complete() { :; }; source <(statefs completion bash);"
        " COMP_WORDS=(statefs show lat); COMP_CWORD=2; _statefs_completion statefs;"
        ' echo "${COMPREPLY[@]}"'
    )
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"STATEFS_STATE": str(state), "PATH": folders},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("latest\n", "")


def test_log_shows_versions(state: Path, capsys: Capture) -> None:
    """Change, mode, size, digest; where nothing is known of a path, exit code 22."""
    lines = call(capsys, "log", state, "files/text").out.splitlines()
    assert lines[0].split() == ["SNAPSHOT", "TAKEN", "CHANGE", "MODE", "SIZE", "SHA256", "PATH"]
    assert lines[1].split()[3:] == [
        "added", "0644", "8", "B", hashlib.sha256(b"one\ntwo\n").hexdigest()[:16], "files/text",
    ]  # fmt: skip
    assert lines[2].startswith("current  ") and "modified (content, mtime)" in lines[2]
    missing = call(capsys, "log", state, "files/nothing")
    assert (missing.exit_code, missing.out) == (22, "")
    assert "'files/nothing'" in missing.err


def test_log_json(state: Path, capsys: Capture) -> None:
    """A removed file ends with the moment from which it is gone."""
    versions = json.loads(call(capsys, "log", state, "files/removed", "--json").out)["versions"]
    assert [each["kind"] for each in versions] == ["added", "removed"]
    assert versions[1]["snapshot"] == "current" and versions[1]["timestamp"] is None
    assert (versions[1]["mode"], versions[1]["size"], versions[1]["sizeBefore"]) == (None, None, 4)


def test_digests_are_taken_while_they_are_cheap(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files, not too many; all of them when asked for, none when not wanted."""
    expected = BIG_DIGEST
    with statefs.open(state) as opened:
        assert [each.sha256 for each in opened.log("files/chmod")] == [expected, expected]
        assert [each.sha256 for each in opened.log("files/chmod", digests=False)] == [None, None]
        monkeypatch.setattr("statefs.snapshots.version_digests.ALL_BYTES_MAX", BIG)
        assert [each.sha256 for each in opened.log("files/chmod")] == [expected, None]
        assert [each.sha256 for each in opened.log("files/chmod", digests=True)] == [expected] * 2


def test_digests_of_sealed_snapshots_are_not_taken_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are stored: of files of any size, and also where none is to be taken."""
    monkeypatch.setattr("statefs.snapshots.version_digests.VERSION_BYTES_MAX", 0)
    stored, taken = (hashlib.sha256(text).hexdigest() for text in (b"one\ntwo\n", b"one\n2wo\n"))
    with statefs.open(state) as opened:
        assert [each.sha256 for each in opened.log("files/text")] == [None, None]
        opened.seal("a")
        for digests, expected in ((None, None), (False, None), (True, taken)):
            versions = opened.log("files/text", digests=digests)
            assert [each.sha256 for each in versions] == [stored, expected]
        assert [each.sha256 for each in opened.log("files", digests=True)] == [None, None]
        assert [each.sha256 for each in opened.log("files/removed")][1] is None


def test_diff_tells_how_far_it_is(state: Path, capsys: Capture) -> None:
    """As lines of JSON on standard error, where the answer is for programs."""
    events = [
        json.loads(line) for line in call(capsys, "diff", state, "a", "--json").err.splitlines()
    ]
    assert {(each["event"], each["what"]) for each in events} == {("progress", "comparing")}


def test_hashing_all_versions_tells_how_far_it_is(state: Path, capsys: Capture) -> None:
    """The bytes of those that have no digest stored, each of which is read."""
    told = call(capsys, "log", state, "files/chmod", "--digest", "--json")
    assert [each["sha256"] for each in json.loads(told.out)["versions"]] == [BIG_DIGEST] * 2
    events = [json.loads(line) for line in told.err.splitlines()]
    assert {(each["what"], each["total"], each["unit"]) for each in events} == {
        ("hashing", 2 * BIG, "bytes")
    }
    assert events[-1]["done"] == 2 * BIG


def test_cat_prints_bytes(state: Path) -> None:
    """Unchanged, of a snapshot and of current, by any name."""
    commands = [("a", "files/text"), ("current", "files/text"), ("a", "files/big")]
    for (moment, path), expected in zip(
        commands, (b"one\ntwo\n", b"one\n2wo\n", b"b" * BIG), strict=True
    ):
        done = subprocess.run(
            [sys.executable, "-m", "statefs", "cat", state, moment, path],
            capture_output=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, expected)


def test_cat_refuses_what_is_no_file(state: Path, capsys: Capture) -> None:
    """And what is not there; one line names the path."""
    for path, exit_code, text in (
        ("files", 2, "'files' is no file but a folder"),
        ("files/nothing", 22, "no file or folder 'files/nothing'"),
        ("files/text/below", 22, "'files/text/below'"),
        ("runtime/env.json", 22, "'runtime/env.json'"),
    ):
        done = call(capsys, "cat", state, "a", path)
        assert (done.exit_code, done.out) == (exit_code, "") and text in done.err


def test_reading_goes_through_large_and_sparse_files_in_pieces(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes are told as such; a file that gets them has as few blocks."""
    monkeypatch.setattr("statefs.snapshots.reading.PART_BYTES", 7000)
    with engine_of(state) as engine:
        ino = engine.file("sparse", b"start" * 4000)
        engine.data.truncate(ino, 50 << 20)
        engine.data.write(ino, 30 << 20, b"middle")
        expected = b"start" * 4000
    with statefs.open(state) as opened:
        parts = list(opened.read_sparse("current", "sparse"))
        assert sum(part for part in parts if isinstance(part, int)) > 49 << 20
        whole = b"".join(opened.read("current", b"sparse"))
        assert whole.startswith(expected) and len(whole) == 50 << 20
        assert whole[30 << 20 :].startswith(b"middle")
        with open(tmp_path / "out", "wb") as out:
            out.write(b"before")
            write_sparse(opened.read_sparse("current", "sparse"), out)
        assert (tmp_path / "out").read_bytes() == b"before" + whole
        assert os.stat(tmp_path / "out").st_blocks < 1000
        memory = io.BytesIO()
        write_sparse(opened.read_sparse("current", "sparse"), memory)
        assert memory.getvalue() == whole


def test_a_file_that_changes_while_it_is_read_is_read_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that was written meanwhile is read anew; one that never rests is refused."""
    with statefs.open(state) as opened:
        door = opened._door
        ask, asked = door.call, []

        def changing(op: str, arguments: dict[str, object], on_progress: object) -> object:
            found = ask(op, arguments, None)
            asked.append(op)
            if 1 < len(asked) <= limit:
                found["pieces"] = [[0, BIG, 12345 + len(asked)]]
            return found

        monkeypatch.setattr(door, "call", changing)
        limit = 2
        assert b"".join(opened.read("a", "files/big")) == b"b" * BIG
        asked.clear()
        limit = 1000
        with pytest.raises(StatefsError, match="is being written"):
            list(opened.read("a", "files/big"))


@pytest.mark.damages_store("an object file is cut, then removed")
def test_a_damaged_object_is_an_error_and_never_zeros(state: Path) -> None:
    """Cut, or missing: what is lost is told, as damage."""
    with engine_of(state) as engine:
        node = engine.names.lookup(engine.names.lookup(TREE_ROOT, b"files").ino, b"big")
        number = engine.data.extents(node)[0].object
    place = StoreLayout(Path(f"{state}.store")).object_path(ObjectId(number))
    with statefs.open(state) as opened:
        os.truncate(place, BIG // 2)
        with pytest.raises(CorruptStore, match=f"ends at byte {BIG // 2}, not at {BIG}"):
            list(opened.read("current", "files/big"))
        place.unlink()
        with pytest.raises(CorruptStore, match="is missing; 'statefs verify --read-data'"):
            list(opened.read("current", "files/big"))


def test_one_path_is_not_a_list_of_letters(state: Path) -> None:
    """A string names one path; nothing but that is restored. An empty one names nothing."""
    with statefs.open(state) as opened:
        told = opened.restore("a", "files/text", dry_run=True)
        assert [each["path"] for each in told["changes"]] == ["files/text"]
        with pytest.raises(StatefsError, match="files/nope"):
            opened.export("a", io.BytesIO(), paths="files/nope")
        with pytest.raises(NoSuchPath, match="'files/nope' is not in the snapshot"):
            opened.restore("a", "files/nope", dry_run=True)
        with pytest.raises(UsageError, match="a path is empty"):
            opened.restore("a", [""], dry_run=True)


def test_the_api_takes_paths_of_any_kind(state: Path) -> None:
    """Text, bytes, Path; errors are those of the command line."""
    with statefs.open(state) as opened:
        for path in ("files/text", b"files/text", Path("files/text"), "/files//text"):
            assert b"".join(opened.read("a", path)) == b"one\ntwo\n"
        assert b"".join(opened.read("current", b"files/\xff\x1b[2J")) == b""
        with pytest.raises(NoSuchPath):
            list(opened.read("a", "nothing"))
        with pytest.raises(UsageError):
            list(opened.read("a", "files"))
        comparison = opened.diff("a")
        assert sum(each.count for each in comparison.stat.values()) == 5
