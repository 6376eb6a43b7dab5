"""A folder of documents seen from outside: what is in it, what is broken, and putting it right.

Works on any folder of a `JsonStore`, without knowing what its program means by the documents.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from statefs.clock import Clock, SystemClock
from statefs.durable import sync_folder, write_file
from statefs.errors import NotInStore, StateDamaged, UsageError
from statefs.state.audit import AuditLog, Unfinished, unfinished_actions
from statefs.state.copies import copies_of, place_aside
from statefs.state.documents import Form, current_text, decoded, read_bytes, read_document
from statefs.state.identifiers import file_name_of, name_of_file
from statefs.state.journal_repair import Salvage, is_broken, salvage_journal
from statefs.state.json_store import AUDIT, LOCK, SUFFIX, Envelope, document_names
from statefs.state.keyring import ENCRYPTED_FORM, KEYRING, KEYRING_FORM
from statefs.state.locks import ProcessLock
from statefs.state.snapshots import mounted_folder

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
SNAPSHOTS_NAMED_MAX: Final = 5
"""Of those that have a good version of a broken document: enough to choose from."""

_ANY_DOCUMENT: Final = Form(Envelope[dict[str, Any]], version=None)


class Entry(NamedTuple):
    """A document in a list.

    Args:
        name: of the document.
        encrypted: so that nobody knows its keys here.
        bytes: of its file.
        changed_ns: when its file was last replaced, since 1970.
        copies: kept in `backups/`.
        keys: it has; None where it is broken or encrypted.
        damage: what is wrong with it; None for a sound one.
    """

    name: str
    encrypted: bool
    bytes: int
    changed_ns: int
    copies: int
    keys: int | None
    damage: str | None


class Problem(NamedTuple):
    """Something in a folder that should not be so.

    Args:
        path: of the file or folder.
        message: on one line, with file and line.
        lost: whether a document cannot be read; else others can read it.
    """

    path: Path
    message: str
    lost: bool


class Repair(NamedTuple):
    """What was done about one problem.

    Args:
        path: of the file or folder.
        done: on one line.
        aside: where the broken file is now; None where nothing was moved.
        source: the copy that took its place; None where there was none.
        snapshots: paths of good versions in the snapshots of the mounted state, the newest first.
        lost: whether something could not be saved.
    """

    path: Path
    done: str
    aside: Path | None = None
    source: Path | None = None
    snapshots: tuple[Path, ...] = ()
    lost: bool = False


def list_documents(folder: Path) -> list[Entry]:
    """Return what documents a folder has, broken ones too, in the order of the alphabet.

    Raises:
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    entries = (_entry(folder, name) for name in document_names(folder))
    return [entry for entry in entries if entry is not None]


def _entry(folder: Path, name: str) -> Entry | None:
    """Return what a list says of a document; None where its program has just removed it."""
    path, keys, damage = folder / file_name_of(name, SUFFIX), None, None
    try:
        status = path.stat()
        values = read_values(path)
        keys = None if values is None else len(values)
    except FileNotFoundError:
        return None
    except StateDamaged as error:
        damage = str(error)
    copies = len(copies_of(path))
    return Entry(
        name, is_encrypted(folder), status.st_size, status.st_mtime_ns, copies, keys, damage
    )


def show_document(folder: Path, name: str, key: str | None = None) -> Any:
    """Return the keys and values of a document, or the value of one key.

    Raises:
        NotInStore: there is no such folder, document or key.
        UsageError: it is encrypted.
        StateDamaged: it is broken; the message names file and line.
    """
    require_folder(folder)
    try:
        values = read_values(folder / file_name_of(name, SUFFIX, "document"))
    except FileNotFoundError:
        known = ", ".join(document_names(folder)) or "none"
        raise NotInStore(f"{folder} has no document '{name}'; there are: {known}") from None
    if values is None:
        raise UsageError(f"{folder} is encrypted: only a program that has its key can show it")
    if key is not None and key not in values:
        raise NotInStore(f"the document '{name}' in {folder} has no key '{key}'")
    return values if key is None else values[key]


def is_encrypted(folder: Path) -> bool:
    """Return whether a folder is one of an `EncryptedJsonStore`."""
    return (folder / KEYRING).exists()


def read_values(path: Path, encrypted: bool | None = None) -> dict[str, Any] | None:
    """Return the values in the file of a document, of whatever version; None of an encrypted one.

    Args:
        path: of the file.
        encrypted: whether it has to be; None looks at the folder it lies in.

    Raises:
        FileNotFoundError: there is none.
        StateDamaged: it is broken.
    """
    if is_encrypted(path.parent) if encrypted is None else encrypted:
        read_document(path, ENCRYPTED_FORM)
        return None
    text = current_text(read_bytes(path), path, _ANY_DOCUMENT).text
    return decoded(text, path, _ANY_DOCUMENT.type).values


def check_documents(folder: Path) -> list[Problem]:
    """Return everything that is wrong in a folder; nothing is changed.

    Raises:
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    found = [*mode_problems(folder, FOLDER_MODE), *audit_problems(folder / AUDIT)]
    if is_encrypted(folder):
        found += _keyring_problems(folder / KEYRING)
    for name in document_names(folder):
        path = folder / file_name_of(name, SUFFIX)
        try:
            found += mode_problems(path, FILE_MODE)
            read_values(path)
        except FileNotFoundError:
            continue  # its program has just removed it
        except StateDamaged as error:
            found.append(Problem(path, str(error), lost=True))
    return found + [
        Problem(path, f"{path}: no document is called so", lost=False)
        for path in sorted(folder.glob(f"*{SUFFIX}"))
        if name_of_file(path.name, SUFFIX) is None and not path.name.startswith(".")
    ]


def _keyring_problems(path: Path) -> Iterator[Problem]:
    yield from mode_problems(path, FILE_MODE)
    try:
        read_document(path, KEYRING_FORM)
    except StateDamaged as error:
        yield Problem(path, str(error), lost=False)


def audit_problems(path: Path) -> Iterator[Problem]:
    """Return that an audit log is broken, where it is."""
    try:
        unfinished_actions(path)
    except StateDamaged as error:
        yield Problem(path, str(error), lost=False)


def unfinished_in(folder: Path) -> list[Unfinished]:
    """Return the actions on a store as a whole that have no end; none of a log that is broken."""
    try:
        return unfinished_actions(folder / AUDIT)
    except StateDamaged:
        return []  # a check has named it


def mode_problems(path: Path, mode: int) -> Iterator[Problem]:
    """Return that others get at a file or folder, where they do. A link has no mode of its own."""
    if path.is_symlink():
        return
    found = stat.S_IMODE(path.stat().st_mode)
    if found & ~mode & 0o077:
        message = f"{path}: its mode is {found:04o}, so that others get at it; {mode:04o} is right"
        yield Problem(path, message, lost=False)


def repair_documents(folder: Path, clock: Clock | None = None) -> list[Repair]:
    """Put right what `check_documents` finds: modes, and broken documents.

    A broken document is moved aside. The newest good copy takes its place; in a mounted state,
    where snapshots stand for copies, those that have it are named instead.

    Raises:
        StoreLocked: a program has the store open.
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    clock = clock or SystemClock()
    with ProcessLock(folder / LOCK):
        if not check_documents(folder):
            return []
        done = mended_audit(folder, clock)
        with AuditLog(folder / AUDIT, clock) as audit:
            read = partial(read_values, encrypted=is_encrypted(folder))
            problems = check_documents(folder)
            return done + [repaired(problem, audit, clock, read) for problem in problems]


def mended_audit(folder: Path, clock: Clock) -> list[Repair]:
    """Put the audit log of a store right, whose lock is held, so that it can be added to."""
    path = folder / AUDIT
    if not path.exists() or not is_broken(path):
        return []
    return [repair_of(salvage_journal(path, clock, older_versions(path)))]


def repair_of(salvage: Salvage) -> Repair:
    """Return what was done to a journal as a repair."""
    source = salvage.source or (None if salvage.lost else salvage.path)
    return Repair(salvage.path, salvage.text(), salvage.aside, source, lost=bool(salvage.lost))


def older_versions(path: Path) -> Iterator[Path]:
    """Return a file as the snapshots of the mounted state have it, the newest first."""
    mounted = mounted_folder(path.parent)
    return iter(()) if mounted is None else mounted.past_of(path.name)


def repaired(
    problem: Problem, audit: AuditLog, clock: Clock, read: Callable[[Path], object]
) -> Repair:
    """Put one problem right, after it was written down.

    Args:
        problem: found by a check.
        audit: of the folder, whose lock is held.
        clock: for the name of what is moved aside.
        read: raises `StateDamaged` for a file that cannot take the place of a lost one.
    """
    path = problem.path
    with audit.action("repair", path=path.name, problem=problem.message):
        if problem.lost:
            return _replaced(path, clock, read)
        mode = FOLDER_MODE if path.is_dir() else FILE_MODE
        is_link = path.is_symlink()  # what it leads to is not ours to change
        if not is_link and stat.S_IMODE(path.stat().st_mode) & ~mode & 0o077:
            os.chmod(path, mode, follow_symlinks=True)
            return Repair(path, f"{path}: its mode is {mode:04o} now")
        return Repair(path, f"{path}: left as it is; move it away, or put back what it was")


def _replaced(path: Path, clock: Clock, read: Callable[[Path], object]) -> Repair:
    """Put a copy in place of a broken file, which is never gone before it lies elsewhere."""
    aside = place_aside(path, clock)
    write_file(aside, read_bytes(path))
    snapshots = tuple(islice(_good_ones(older_versions(path), read), SNAPSHOTS_NAMED_MAX))
    moved = f"{path}: moved to {aside.name}"
    copy = next(_good_ones(copies_of(path), read), None)
    if copy is None:
        path.unlink()
        sync_folder(path.parent)
        return Repair(path, f"{moved}; there is no good copy", aside, None, snapshots)
    write_file(path, read_bytes(copy))
    done = f"{moved}; {copy.parent.name}/{copy.name} has taken its place"
    return Repair(path, done, aside, copy, snapshots)


def _good_ones(paths: Iterable[Path], read: Callable[[Path], object]) -> Iterator[Path]:
    for path in paths:
        try:
            read(path)
        except (StateDamaged, FileNotFoundError):
            continue
        yield path


def require_folder(folder: Path) -> None:
    """Raise NotInStore where there is no such folder."""
    if not folder.is_dir():
        raise NotInStore(f"there is no folder {folder}")
