"""Key-value documents in a folder: settings and the like, in memory, written back on each change.

Each document is one file, replaced whole, so that a reader in another process sees either the old
or the new one. The layout is described in docs/state-stores.md.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

import msgspec

from statefs.clock import Clock, SystemClock
from statefs.durable import make_folder, sync_folder, write_file
from statefs.errors import NotInStore, StateDamaged, UsageError
from statefs.state.copies import keep_before_migration, keep_copy
from statefs.state.documents import Form, Migration, current_text, decoded, json_text, read_bytes
from statefs.state.identifiers import file_name_of, name_of_file
from statefs.state.locks import ProcessLock
from statefs.state.snapshots import mounted_folder

V = TypeVar("V")

SUFFIX: Final = ".json"
LOCK: Final = ".lock"
"""Of a store; no document's file begins with a dot."""
AUDIT: Final = ".audit.log"
"""The journal of what was done to a store as a whole."""

SETTLED_NS: Final = 50_000_000
"""A file that is younger may be followed by one with the same stamp: file times advance in steps of
the kernel's clock, some milliseconds, and inode numbers come back. It is read at each look."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentType:
    """What one document may hold.

    Args:
        values: a msgspec type for all its values, best a Struct with `forbid_unknown_fields`.
        version: of the document, counted up when the type changes.
        migrations: by the version each takes; they get and return the whole document, whose
            `values` are what changes.
    """

    values: Any = dict[str, Any]
    version: int = 1
    migrations: Mapping[int, Migration] = field(default_factory=dict)

    def form(self) -> Form[Any]:
        """Return the form of the file."""
        return Form(Envelope[self.values], self.version, self.migrations)  # type: ignore[name-defined]


class Envelope(msgspec.Struct, Generic[V], forbid_unknown_fields=True):
    """The file of a document."""

    version: int
    values: V


class _Stamp(NamedTuple):
    """What tells one file under a name from the next."""

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Loaded(NamedTuple):
    """A document in memory; never changed, only replaced.

    Args:
        stamp: of the file it was read from; None where there is none.
        lines: of the file, by key: nobody can change what he was given a part of, and a change
            of one key encodes no other one.
    """

    stamp: _Stamp | None
    lines: Mapping[str, bytes]


_NOTHING: Final = _Loaded(None, MappingProxyType({}))


class JsonStore:
    """Documents of keys and values: settings, providers, sessions, mcp-servers, any checked name.

    One process writes, any number read (`read_only`); threads share one object. A change is
    durable when the call returns, and readers, in this process and in others, see it then.

    Args:
        folder: made, with mode 0700, where there is none.
        types: of documents that are to hold something particular; others hold any JSON.
        read_only: change nothing and take no lock.
        clock: for the names of copies.

    Raises:
        StoreLocked: another process writes here.
        NotInStore: `read_only`, and there is no such folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        types: Mapping[str, DocumentType] | None = None,
        *,
        read_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._types = dict(types or {})
        self._clock = clock or SystemClock()
        self._mutex = threading.RLock()
        self._documents: dict[str, _Loaded] = {}
        self._copied: set[str] = set()
        self._lock: ProcessLock | None = None
        self._is_open = True
        if read_only:
            if not self.folder.is_dir():
                raise NotInStore(f"there is no folder {self.folder}")
        else:
            made_folder(self.folder)
            self._lock = ProcessLock(self.folder / LOCK)
            self._lock.acquire()

    def get(self, document: str, key: str, default: Any = None) -> Any:
        """Return the value of a key; `default` where there is none.

        Raises:
            StateDamaged, NewerStore: see `load`.
        """
        line = self._current(document).lines.get(key)
        return default if line is None else _value_of(key, line)

    def all(self, document: str) -> dict[str, Any]:
        """Return all keys and values of a document, in the order they were first set."""
        return _values_of(self._current(document))

    def names(self) -> list[str]:
        """Return the names of the documents there are, in the order of the alphabet."""
        return document_names(self.folder)

    def set(self, document: str, key: str, value: Any) -> None:
        """Give a key a value; it is durable then.

        Raises:
            UsageError: JSON does not hold such a key or value, or the document's type does not.
            OSError: the disk refused; the document is as it was.
        """
        line = _line_of(key, value)
        with self._mutex:
            self._write(document, {**self._current(document).lines, key: line})

    def delete(self, document: str, key: str) -> bool:
        """Remove a key; return whether it was there."""
        with self._mutex:
            lines = self._current(document).lines
            if key not in lines:
                self._require_writable()
                return False
            self._write(document, {each: line for each, line in lines.items() if each != key})
            return True

    def load(self, document: str) -> dict[str, Any]:
        """Read a document from its file, whatever is in memory, and return its values.

        Raises:
            NotInStore: there is no such document.
            StateDamaged: its file is broken; the message names file and line.
            NewerStore: a newer program has written it.
        """
        with self._mutex:
            self._require_open()
            loaded = self._read(document)
        if loaded.stamp is None:
            raise NotInStore(f"{self.folder} has no document '{document}'")
        return _values_of(loaded)

    def save(self, document: str, values: Mapping[str, Any] | None = None) -> None:
        """Write a document out; with `values`, they replace all it had, in one step.

        Raises:
            UsageError, OSError: see `set`.
        """
        with self._mutex:
            lines = self._current(document).lines
            if values is not None:
                lines = {key: _line_of(key, each) for key, each in values.items()}
            self._write(document, lines)

    def remove(self, document: str) -> None:
        """Remove a document; its copies stay.

        Raises:
            NotInStore: there is no such document.
        """
        with self._mutex:
            self._require_writable()
            path = self._path(document)
            try:
                self._copy_once(document, path)
                path.unlink()
            except FileNotFoundError:
                raise NotInStore(f"{self.folder} has no document '{document}'") from None
            sync_folder(self.folder)
            self._documents[document] = _NOTHING

    def close(self) -> None:
        """Let go of the store; nothing is owed to the disk."""
        with self._mutex:
            self._is_open = False
            self._documents.clear()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Return the folder; never a value."""
        return f"{type(self).__name__}({str(self.folder)!r})"

    def _path(self, document: str) -> Path:
        return self.folder / file_name_of(document, SUFFIX, "document")

    def _current(self, document: str) -> _Loaded:
        """Return a document as it is in memory, read anew where its file is another one now."""
        self._require_open()
        loaded = self._documents.get(document)
        if loaded is not None and loaded.stamp == _stamp_of(self._path(document)):
            return loaded
        with self._mutex:
            return self._read(document)

    def _read(self, document: str) -> _Loaded:
        path = self._path(document)
        stamp = _stamp_of(path)
        # The stamp is older than the bytes, if another process replaces the file between the two:
        # then the next look finds it changed, and reads again.
        loaded = _NOTHING if stamp is None else self._parsed(document, path, stamp)
        if stamp is not None and time.time_ns() - stamp.ctime_ns < SETTLED_NS:
            self._documents.pop(document, None)
        else:
            self._documents[document] = loaded
        return loaded

    def _parsed(self, document: str, path: Path, stamp: _Stamp) -> _Loaded:
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            return _NOTHING
        form = self._types.get(document, DocumentType()).form()
        plain = self._opened(document, path, data)
        text, was_version = current_text(plain, path, form)
        lines = _checked_lines(text, path, form)
        if was_version is not None and self._lock is not None:
            keep_before_migration(path, data, self._clock)
            self._copied.add(document)
            write_file(path, self._sealed(document, _document_text(form, lines)))
            _log.info("%s: brought from version %d to %s", path, was_version, form.version)
            stamp = _stamp_of(path) or stamp
        return _Loaded(stamp, MappingProxyType(lines))

    def _write(self, document: str, lines: Mapping[str, bytes]) -> None:
        self._require_writable()
        path, described = self._path(document), self._types.get(document)
        form = (described or DocumentType()).form()
        data = _document_text(form, lines)
        if described is not None:
            _require_type(document, data, form)
        self._copy_once(document, path)
        write_file(path, self._sealed(document, data))
        self._documents[document] = _Loaded(_stamp_of(path), MappingProxyType(dict(lines)))

    def _copy_once(self, document: str, path: Path) -> None:
        """Keep what a document was before this process first changed it; or snapshots do."""
        if document in self._copied:
            return
        if path.exists() and mounted_folder(self.folder) is None:
            keep_copy(path, read_bytes(path), self._clock)
        self._copied.add(document)

    def _require_open(self) -> None:
        if not self._is_open:
            raise UsageError(f"the store {self.folder} has been closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._lock is None:
            raise UsageError(f"the store {self.folder} was opened to be read only")

    def _sealed(self, _document: str, data: bytes) -> bytes:
        """Return what goes into the file; another kind of store encrypts it."""
        return data

    def _opened(self, _document: str, _path: Path, data: bytes) -> bytes:
        """Return the document that a file holds."""
        return data


def document_names(folder: Path) -> list[str]:
    """Return the names of the documents in a folder, in the order of the alphabet."""
    names = (
        name_of_file(each.name, SUFFIX)
        for each in os.scandir(folder)
        if each.is_file(follow_symlinks=False)
    )
    return sorted(name for name in names if name is not None)


def _checked_lines(text: str, path: Path, form: Form[Any]) -> dict[str, bytes]:
    """Return the values of a document as lines of its file, after a look at each of them.

    Raises:
        StateDamaged: the document breaks its form; the message names file and line.
    """
    decoded(text, path, form.type)
    raw = decoded(text, path, Envelope[dict[str, msgspec.Raw]])
    return {key: _head_of(key) + bytes(each) for key, each in raw.values.items()}


def made_folder(folder: Path) -> None:
    """Make the folder of a store, for its owner alone, and those above it that are missing."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        make_folder(each)
        sync_folder(each.parent)


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _head_of(key: str) -> bytes:
    """Return how the line of a key begins."""
    return b"    " + msgspec.json.encode(key) + b": "


def _value_of(key: str, line: bytes) -> Any:
    return msgspec.json.decode(memoryview(line)[len(_head_of(key)) :])


def _values_of(loaded: _Loaded) -> dict[str, Any]:
    return {key: _value_of(key, line) for key, line in loaded.lines.items()}


def _line_of(key: object, value: Any) -> bytes:
    """Return the line of a key in the file.

    Raises:
        UsageError: see `json_text`.
    """
    if not isinstance(key, str):
        raise UsageError(f"a key is a text, not of type {type(key).__name__}")
    json_text(key, "a key")  # what is wrong with it is told before it is put into a line
    return _head_of(key) + json_text(value, "the value of a key").encode()


def _document_text(form: Form[Any], lines: Mapping[str, bytes]) -> bytes:
    """Return the file of a document: one key to a line, so that people can read and compare it."""
    head, end = f'{{\n  "version": {form.version},\n  "values": {{'.encode(), b"}\n}\n"
    if not lines:
        return head + end
    parts = list(lines.values())
    parts[0] = head + b"\n" + parts[0]
    parts[-1] += b"\n  " + end
    return b",\n".join(parts)  # the one copy that is made of all of it


def _require_type(document: str, data: bytes, form: Form[Any]) -> None:
    try:
        decoded(data.decode(), Path(document), form.type)
    except StateDamaged as error:
        problem = str(error).partition(": ")[2]
    else:
        return
    raise UsageError(f"the document '{document}' cannot hold that: {problem}")
