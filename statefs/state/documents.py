"""JSON documents with a version: read strictly, brought up to date, written durably.

Whatever is wrong with one is told with its file and line. Knows nothing of what documents mean.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from json.decoder import JSONDecoder
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from statefs.durable import open_plain, write_file
from statefs.errors import NewerStore, StateDamaged, UsageError

T = TypeVar("T")
Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the document of one version into that of the next; changes nothing else."""

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_BYTE: Final = re.compile(r" \(byte (\d+)\)$")
_AT: Final = re.compile(r" - at `\$(.*)`$")
_STEP: Final = re.compile(r"\[(\d+)\]|(\[\.\.\.\])|\.([^.\[]+)")
_QUOTED: Final = re.compile(r"(?<=alue) '.*'(?=$| - at `)", re.DOTALL)
"""What msgspec quotes of the content, which may be a secret: "Invalid enum value '...'"."""
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`$")
_LIMITS: Final = (RecursionError, ValueError)
"""What Python raises for JSON that is nested too deeply, or has a number of too many digits."""
_ANY: Final = "[...]"
"""How msgspec names a member of a dict: it does not say which."""


class NoMigration(StateDamaged):
    """A document is older than the program, which has nothing to bring it up to date with."""


@dataclass(frozen=True)
class Form(Generic[T]):
    """What a kind of document looks like, and how older ones become that.

    Args:
        type: of the whole document, a msgspec type whose JSON has the field `version`.
        version: the newest; None takes any version as it is.
        migrations: by the version that each takes; without gaps up to `version`.
    """

    type: type[T]
    version: int | None = 1
    migrations: Mapping[int, Migration] = field(default_factory=dict)


class Current(NamedTuple):
    """A document's text, in the newest version.

    Args:
        text: JSON.
        was_version: what it was migrated from; None where it was not.
    """

    text: str
    was_version: int | None


class _Head(msgspec.Struct):
    version: int


def read_document(path: Path, form: Form[T]) -> T:
    """Return a document, migrated in memory where it is older; the file stays as it is.

    Raises:
        FileNotFoundError: there is none.
        StateDamaged: it breaks its form; the message names file and line.
        NewerStore: a newer program has written it.
    """
    current = current_text(read_bytes(path), path, form)
    return decoded(current.text, path, form.type)


def write_document(path: Path, document: msgspec.Struct) -> None:
    """Put a document in place of a file, whole or not at all, durable when this returns."""
    write_file(path, msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def encoded(document: msgspec.Struct, what: str) -> bytes:
    """Return the JSON of a Struct, after a look at whether it can be read again.

    Args:
        document: whose type says what may be in it.
        what: it is, for the message.

    Raises:
        UsageError: something in it has a wrong type.
    """
    try:
        data = msgspec.json.encode(document)
        msgspec.json.decode(data, type=type(document))
    except (msgspec.MsgspecError, TypeError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(f"{what} cannot be saved: {error}") from None
    return data


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file; no link is followed, no pipe waited for.

    Raises:
        OSError: it cannot be read, FileNotFoundError among them.
    """
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        return file.read()


def current_text(data: bytes, path: Path, form: Form[Any]) -> Current:
    """Return the text of a document in the version of its form.

    Args:
        data: the file's bytes.
        path: of the file, for messages.
        form: whose version and migrations are used; its type is not looked at.

    Raises:
        StateDamaged: no JSON object with a version, or a version that nothing leads from.
        NewerStore: the version is beyond the form's.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        wrong_at = error.start
    else:
        wrong_at = -1
    # Raised here, so that no error is carried along that has the content in it.
    if wrong_at >= 0:
        raise StateDamaged(f"{path}, line {data.count(10, 0, wrong_at) + 1}: not UTF-8")
    version = decoded(text, path, _Head).version
    if form.version is None or version == form.version:
        return Current(text, None)
    if version > form.version:
        raise NewerStore(
            f"{path} has version {version} and this program knows {form.version}: use a newer one"
        )
    document = json.loads(text)
    for step in range(version, form.version):
        migration = form.migrations.get(step)
        if migration is None:
            kind = StateDamaged if step < 1 else NoMigration
            raise kind(f"{path} has version {step}, from which nothing leads on")
        document = migration(document) | {"version": step + 1}
    return Current(json.dumps(document, ensure_ascii=False), version)


def decoded(text: str, path: Path, type_: type[T]) -> T:
    """Return what a text says, strictly.

    Raises:
        StateDamaged: it is no JSON, or not of that type; the message names file and line.
    """
    try:
        return msgspec.json.decode(text, type=type_)
    except (msgspec.DecodeError, *_LIMITS) as error:
        message, offset = _placed_mistake(text, type_, error)
    line = text.count("\n", 0, offset) + 1
    if not message.startswith("JSON"):
        message = f"{message[:1].lower()}{message[1:]}"
    raise StateDamaged(f"{path}, line {line}: {message}")


def json_text(value: Any, what: str) -> str:
    """Return a value as JSON on one line; msgspec Structs, datetimes and UUIDs as msgspec has them.

    Args:
        value: of the caller.
        what: it is, for the message.

    Raises:
        UsageError: JSON does not hold it; the message does not quote it, for it may be a secret.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=msgspec.to_builtins)
        text.encode()
    except RecursionError:
        problem = "it contains itself"
    except TypeError:
        problem = f"JSON has nothing for the type {type(value).__name__} or for what is in it"
    except UnicodeEncodeError:
        problem = "there is text in it that is not UTF-8"
    except ValueError:
        problem = "JSON has no NaN or infinity, and nothing may contain itself"
    else:
        return text
    # Raised here, so that the error does not carry the one that has the value in it.
    raise UsageError(f"{what} cannot be stored: {problem}")


def converted(value: Any, type_: Any, path: Path, line: int) -> Any:
    """Return the value of one line of a file as something typed, strictly.

    Raises:
        StateDamaged: it is not of that type; the message names file and line.
    """
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        message = mismatch_text(error)
    raise StateDamaged(f"{path}, line {line}: {message}")


def mismatch_text(error: msgspec.ValidationError) -> str:
    """Return why a value is not of a type, and where in it; nothing of the value is quoted."""
    message = _QUOTED.sub("", str(error))
    hit = _AT.search(message)
    message = message if hit is None else _placed(message, hit)
    return message[:1].lower() + message[1:]


def _placed_mistake(text: str, type_: Any, error: Exception) -> tuple[str, int]:
    """Return what is wrong and where in the text; the place is not known beyond Python's limits."""
    if isinstance(error, msgspec.DecodeError):
        with suppress(*_LIMITS):
            return _explained(text, type_, error)
    return "nested too deeply, or a number of thousands of digits", 0


def _explained(text: str, type_: Any, error: msgspec.DecodeError) -> tuple[str, int]:
    """Return what is wrong and where in the text, counted in characters."""
    message = _QUOTED.sub("", str(error))
    if not isinstance(error, msgspec.ValidationError):
        hit = _BYTE.search(message)
        if hit is None:
            return message, len(text.rstrip())
        return message[: hit.start()], len(text.encode()[: int(hit[1])].decode(errors="ignore"))
    hit = _AT.search(message)
    steps: list[str | int] = []
    if hit is not None:
        message = _placed(message, hit)
        steps = [int(one) if one else each or key for one, each, key in _STEP.findall(hit[1])]
    unknown = _UNKNOWN.search(message.partition(" at ")[0])
    if unknown is not None:
        steps.append(unknown[1])
    return message, _offset_of(text, steps, type_)


def _placed(message: str, hit: re.Match[str]) -> str:
    """Return msgspec's message with the place in the document in our words."""
    return f"{message[: hit.start()]} at {hit[1].lstrip('.')}"


def _offset_of(text: str, steps: Sequence[str | int], type_: Any) -> int:
    """Return where the value at a path begins; where a step leads nowhere, the one around it."""
    at = _after_blanks(text, 0)
    for step in steps:
        for member in _members(text, at):
            is_it = _is_guilty(text, at, member, type_) if step == _ANY else member.key == step
            if is_it:
                at = member.begin
                break
        else:
            return at
    return at


class _Member(NamedTuple):
    key: str | int
    begin: int
    end: int


def _members(text: str, at: int) -> Iterator[_Member]:
    """Return the members of the array or object that begins at `at`; of anything else, none."""
    if text[at : at + 1] not in ("[", "{"):
        return
    is_object, decoder, count = text[at] == "{", JSONDecoder(), 0
    at = _after_blanks(text, at + 1)
    while text[at] not in "]}":
        key: str | int = count
        if is_object:
            key, at = decoder.raw_decode(text, at)
            at = _after_blanks(text, _after_blanks(text, at) + 1)
        _, end = decoder.raw_decode(text, at)
        yield _Member(key, at, end)
        at, count = _after_blanks(text, end), count + 1
        if text[at] == ",":
            at = _after_blanks(text, at + 1)


def _is_guilty(text: str, at: int, member: _Member, type_: Any) -> bool:
    """Return whether the document is wrong with this member alone in the object at `at`."""
    _, end = JSONDecoder().raw_decode(text, at)
    alone = f"{{{json.dumps(member.key)}: {text[member.begin : member.end]}}}"
    try:
        msgspec.json.decode(text[:at] + alone + text[end:], type=type_)
    except msgspec.DecodeError:
        return True
    return False


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()
