from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from statefs.errors import NewerStore, StateDamaged
from statefs.state.copies import KEPT_COPIES, copies_of, keep_copy
from statefs.state.documents import Form, read_document, write_document
from tests.unit.engine_store import SteppingClock


class Task(msgspec.Struct, forbid_unknown_fields=True):
    """A part of the document below."""

    id: str
    done: bool = False


class Tasks(msgspec.Struct, forbid_unknown_fields=True):
    """A document."""

    version: int
    tasks: list[Task] = []
    by_name: dict[str, Task] = {}


TOO_MUCH = "line 1: nested too deeply, or a number of thousands of digits"
FORM = Form(Tasks, 3, {1: lambda old: {"tasks": old["list"]}, 2: lambda old: old})


def damage_of(path: Path, text: str | bytes) -> str:
    """Return what is said about a broken document, without its path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StateDamaged) as caught:
        read_document(path, FORM)
    message = str(caught.value)
    assert message.startswith(f"{path}, line ") and "\n" not in message
    return message.removeprefix(f"{path}, ")


@pytest.mark.parametrize(
    ("text", "damage"),
    [
        ("", "line 1: input data was truncated"),
        ('{"version": 3,\n"tasks": [\n', "line 2: input data was truncated"),
        ('{\n"version": 3,\n"tasks": nul}', "line 3: JSON is malformed: invalid character"),
        ('{\n"version": 3,\n"tasks": []} x', "line 3: JSON is malformed: trailing characters"),
        (b'{"version": 3,\n"tasks": [],\n"\xff": 1}', "line 3: not UTF-8"),
        ('{"version": 3, "tasks": ' + "[" * 100_000, TOO_MUCH),
        (f'{{"version": {"3" * 5000}}}', TOO_MUCH),
        ("[]", "line 1: expected `object`, got `array`"),
        ("{}", "line 1: object missing required field `version`"),
        ('{\n"version": "3"}', "line 2: expected `int`, got `str` at version"),
        (
            '{"version": 3,\n"tasks": [],\n"task": []}',
            "line 3: object contains unknown field `task`",
        ),
        (
            '{"version": 3, "tasks": [\n{"id": "a"},\n{"id": "b",\n"done": "yes"}]}',
            "line 4: expected `bool`, got `str` at tasks[1].done",
        ),
        (
            '{"version": 3, "tasks": [\n{"id": "]}\\"{"},\n{"id": "b",\n\n"doen": 1}]}',
            "line 5: object contains unknown field `doen` at tasks[1]",
        ),
        (
            '{"version": 3, "by_name": {\n"a": {"id": "a"},\n"b": {"id": "b",\n"done": 7}}}',
            "line 4: expected `bool`, got `int` at by_name[...].done",
        ),
        ('{\n\n"version": 0}', "line"),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path: Path, text: str | bytes, damage: str) -> None:
    """Broken JSON, broken UTF-8, unknown fields, wrong types, deep in a document too."""
    if damage == "line":
        (tmp_path / "a.json").write_text(str(text))
        with pytest.raises(StateDamaged, match="version 0, from which nothing leads on"):
            read_document(tmp_path / "a.json", FORM)
    else:
        assert damage_of(tmp_path / "a.json", text) == damage


def test_an_older_document_is_brought_up_to_date_in_memory(tmp_path: Path) -> None:
    """Step by step; reading changes no file."""
    path = tmp_path / "a.json"
    old = json.dumps({"version": 1, "list": [{"id": "ü"}]})
    path.write_text(old)
    assert read_document(path, FORM) == Tasks(3, [Task("ü")])
    assert path.read_text() == old


def test_a_newer_document_is_refused(tmp_path: Path) -> None:
    """With both versions named, whatever else is in it."""
    path = tmp_path / "a.json"
    path.write_text('{"version": 4, "unheard": "of"}')
    with pytest.raises(NewerStore, match="has version 4 and this program knows 3"):
        read_document(path, FORM)


def test_a_document_is_its_owners_alone_and_comes_back(tmp_path: Path) -> None:
    """Mode 0600; another program reads it as JSON."""
    path = tmp_path / "a.json"
    write_document(path, Tasks(3, [Task("a", True)], {"x": Task("b")}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_document(path, FORM) == Tasks(3, [Task("a", True)], {"x": Task("b")})
    read: dict[str, Any] = json.loads(path.read_text())
    assert read["tasks"] == [{"id": "a", "done": True}]
    assert os.listdir(tmp_path) == ["a.json"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Somebody may have put it there."""
    (tmp_path / "b.json").write_text('{"version": 3}')
    (tmp_path / "a.json").symlink_to("b.json")
    with pytest.raises(OSError, match="a symbolic link"):
        read_document(tmp_path / "a.json", FORM)


def test_the_newest_copies_of_a_file_stay(tmp_path: Path) -> None:
    """Ten of each, ordered by time; those of another file are another's."""
    path, clock = tmp_path / "a.json", SteppingClock()
    keep_copy(tmp_path / "a.b.json", b"other", clock)
    made = [keep_copy(path, str(i).encode(), clock) for i in range(KEPT_COPIES + 3)]
    assert copies_of(path) == made[: -KEPT_COPIES - 1 : -1]
    assert copies_of(path)[0].read_bytes() == str(KEPT_COPIES + 2).encode()
    assert len(copies_of(tmp_path / "a.b.json")) == 1
    assert copies_of(tmp_path / "nothing.json") == []
