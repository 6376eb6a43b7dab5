from __future__ import annotations

import errno
import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import StateDamaged
from statefs.state.audit import AuditLog
from statefs.state.journal import Journal, line_of, read_journal
from tests.harness.killed_calls import Acknowledge, each_kill


def values(path: Path) -> list[Any]:
    """Return what a journal holds."""
    return [record.value for record in read_journal(path)]


@pytest.fixture
def journal_path(tmp_path: Path) -> Path:
    """A journal of three records."""
    path = tmp_path / "journal.log"
    with Journal(path) as journal:
        assert [journal.append({"text": f"line {i}\nü"}) for i in range(3)] == [1, 2, 3]
    return path


def test_a_record_is_one_line_that_any_program_can_check(journal_path: Path) -> None:
    """A number, the CRC-32 of number and JSON, JSON."""
    lines = journal_path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        sequence, checksum, text = line.split(" ", 2)
        assert int(sequence) == number
        assert int(checksum, 16) == zlib.crc32(f"{sequence} {text}".encode())
        assert json.loads(text) == {"text": f"line {number - 1}\nü"}
    assert journal_path.stat().st_mode & 0o777 == 0o600


def test_numbers_go_on_in_the_next_process(journal_path: Path) -> None:
    """What was there is read first."""
    with Journal(journal_path) as journal:
        assert journal.cut_bytes == 0
        assert journal.append("four") == 4
        assert [record.sequence for record in journal.records()] == [1, 2, 3, 4]


@pytest.mark.parametrize("tail", [b"4", line_of(4, '"x"')[:-1], b"4 000\0\0\0\0\n", b"\0" * 4096])
def test_a_torn_tail_is_cut_and_said(
    journal_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A record without its newline, or with blocks that were never written."""
    with journal_path.open("ab") as file:
        file.write(tail)
    assert len(values(journal_path)) == 3
    with caplog.at_level(logging.WARNING), Journal(journal_path) as journal:
        assert journal.cut_bytes == len(tail)
        assert f"{len(tail)} bytes of a record that was never finished" in caplog.text
        assert journal.append("new") == 4
    assert values(journal_path)[3:] == ["new"]


@pytest.mark.parametrize(("line", "damage"), [(1, "checksum"), (2, "checksum"), (3, "checksum")])
def test_a_changed_byte_is_an_error_with_file_and_line(
    journal_path: Path, line: int, damage: str
) -> None:
    """In the last record too: it was complete, so it was acknowledged."""
    lines = journal_path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b"line", b"lime")
    journal_path.write_bytes(b"".join(lines))
    for read in (lambda: values(journal_path), lambda: Journal(journal_path)):
        with pytest.raises(StateDamaged, match=f"^{journal_path}, line {line}: .*{damage}"):
            read()


def test_a_record_that_is_missing_or_strange_is_an_error(journal_path: Path) -> None:
    """Numbers have no gaps, zeros in the middle are no tail, and every line is a record."""
    lines = journal_path.read_bytes().splitlines(keepends=True)
    for broken, damage in (
        (lines[:1] + lines[2:], "line 2: it has the number 3"),
        ([lines[0], b"\0" * 20 + b"\n", lines[2]], "line 2: not a record"),
        ([lines[0], b"hello\n", *lines[1:]], "line 2: not a record"),
        ([lines[0], b"\n", *lines[1:]], "line 2: not a record"),
    ):
        journal_path.write_bytes(b"".join(broken))
        with pytest.raises(StateDamaged, match=damage):
            values(journal_path)


def test_an_append_that_fails_leaves_nothing(
    journal_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of a record: the next one finds its place."""
    write = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:20])

    with Journal(journal_path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(OSError, match="No space"):
                journal.append("x" * 30)
        assert journal.append("after") == 4
    assert values(journal_path)[3:] == ["after"]
    with pytest.raises(OSError, match="closed"):
        journal.append("x")


def test_what_json_does_not_hold_is_refused_before_anything_is_written(journal_path: Path) -> None:
    """The journal goes on."""
    with Journal(journal_path) as journal:
        for value in (float("nan"), {1, 2}, b"x"):
            with pytest.raises((TypeError, ValueError)):
                journal.append(value)
        assert journal.append(1) == 4


def test_a_kill_at_every_write_leaves_all_that_was_acknowledged(tmp_path: Path) -> None:
    """And at most the one record more that was under way."""
    path = tmp_path / "journal.log"

    def work(acknowledge: Acknowledge) -> None:
        with Journal(path) as journal:
            for number in range(3):
                journal.append({"number": number})
                acknowledge(str(number))

    for killed in each_kill(work):
        if path.exists():
            with Journal(path) as journal:
                found = [record.value["number"] for record in journal.records()]
        else:
            found = []
        assert found in ([*range(len(killed.acknowledged) + more)] for more in (0, 1)), killed
        path.unlink(missing_ok=True)


def test_an_action_is_written_down_before_it_is_done_and_how_it_ended(tmp_path: Path) -> None:
    """The record is on the disk while the action runs; of an error only the type is kept."""
    path = tmp_path / "audit.log"
    with AuditLog(path) as audit:
        with audit.action("repair", path="a.json") as number:
            [begun] = values(path)
            assert (begun["event"], begun["what"], begun["pid"]) == ("begun", "repair", os.getpid())
            assert begun["details"] == {"path": "a.json"}
        with pytest.raises(ValueError, match="secret"), audit.action("rotate"):
            raise ValueError("the secret is 7")
        assert audit.unfinished() == []
    assert number == 1
    ends = [(each["event"], each.get("of"), each.get("error")) for each in values(path)[1::2]]
    assert ends == [("done", 1, None), ("failed", 3, "ValueError")]
    assert "secret" not in path.read_text()


def test_an_action_that_a_crash_cut_short_is_found(tmp_path: Path) -> None:
    """Killed at each write: what has begun and has no end is listed."""
    path = tmp_path / "audit.log"

    def work(acknowledge: Acknowledge) -> None:
        with AuditLog(path) as audit:
            with audit.action("rotate"):
                acknowledge("begun")
            acknowledge("done")

    seen = set()
    for killed in each_kill(work):
        with AuditLog(path) as audit:
            unfinished = [each.what for each in audit.unfinished()]
        if "done" in killed.acknowledged:
            assert unfinished == []
        elif "begun" in killed.acknowledged:
            assert unfinished in ([], ["rotate"])
        seen.add((tuple(killed.acknowledged), tuple(unfinished)))
        path.unlink()
    assert (("begun",), ("rotate",)) in seen
