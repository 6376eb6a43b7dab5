"""One file of a deploy state: replaced whole by whoever has its lock, and never by an older one.

It knows nothing of what a state means, only that it is JSON with `lineage` and `serial`: of one
lineage each version has a greater serial. What is replaced stays, as a copy in `backups/` or as a
snapshot of the mounted state it lies in. Each step holds the folder's lock for its own moment, so
that several processes may work on the states of one folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from statefs.clock import Clock, SystemClock
from statefs.durable import sync_folder, write_file
from statefs.errors import NewerStore, OlderState, OperationLocked, StateDamaged, UsageError
from statefs.state.audit import AuditLog
from statefs.state.copies import keep_before
from statefs.state.documents import (
    Form,
    current_text,
    decoded,
    read_bytes,
    read_document,
    write_document,
)
from statefs.state.json_store import AUDIT, LOCK, made_folder
from statefs.state.locks import ProcessLock
from statefs.state.operation_lock import LOCK_FORM, OperationLock, held_text, hold, is_left_behind

LOCK_SUFFIX: Final = ".lock"
TURN_SECONDS: Final = 10.0
"""A step of another process takes as long as two syncs; or a snapshot of a busy state."""
LABEL_BYTES_MAX: Final = 150
"""Of a state's name in the label of a snapshot, which has 255 with serial and time."""

_log = logging.getLogger(__name__)


class Versioned(Protocol):
    """What every state has."""

    lineage: str
    serial: int


class StateFile:
    """A state in a file, with its lock beside it; processes and threads may share the file.

    Args:
        path: of the file; its folder is made, with mode 0700, when something is written.
        form: of its content, which is `Versioned`.
        keep_each: every version that is replaced is kept; else the one that each lock began with.
        clock: for the names of copies and snapshots.
    """

    def __init__(
        self, path: Path, form: Form[Any], *, keep_each: bool = False, clock: Clock | None = None
    ) -> None:
        self.path = path
        self._form = form
        self._keep_each = keep_each
        self._clock = clock or SystemClock()
        self._lock_path = lock_path_of(path)
        self._lock_fd = -1
        self._kept_for: str | None = None

    def read(self) -> bytes | None:
        """Return the state; None where there is none.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return read_bytes(self.path)
        except FileNotFoundError:
            return None

    def write(self, data: bytes, lock_id: str | None) -> None:
        """Put a later version in place of the state; durable when this returns.

        The same bytes once more are no error: whoever has not heard the answer asks again.

        Args:
            data: the file to be.
            lock_id: of the caller's lock; None is refused where somebody has one.

        Raises:
            OperationLocked: another operation has the lock, or has taken it away.
            OlderState: the state is of another lineage, or its serial is not below that of `data`.
            UsageError: `data` is no state.
            StateDamaged, NewerStore: what is to be replaced cannot be understood.
            OSError: the disk refused; the state is as it was.
        """
        new = self._checked(data)
        with turn_in(self.path.parent):
            self._require_right(lock_id)
            before = self.read()
            if before == data:
                return
            if before is not None:
                old = self._parsed(before)
                self._require_later(old, new)
                self._keep(before, old.serial, lock_id)
            write_file(self.path, data)

    def delete(self, lock_id: str | None) -> bool:
        """Delete the state, which is kept as one that is replaced; return whether there was one.

        Raises:
            OperationLocked, OSError: see `write`.
        """
        with turn_in(self.path.parent):
            self._require_right(lock_id)
            before = self.read()
            if before is None:
                return False
            try:
                serial = str(self._parsed(before).serial)
            except (StateDamaged, NewerStore):
                serial = "unknown"
            self._keep(before, serial, lock_id)
            self.path.unlink()
            sync_folder(self.path.parent)
            return True

    def lock(self, lock: OperationLock) -> None:
        """Take the lock; one that a process has left when it ended is taken over, and logged.

        Whoever has it may take it again with the same id.

        Raises:
            OperationLocked: another one has it; the message, and `lock` of the error, say who.
            StateDamaged: the lock's file is broken.
        """
        with turn_in(self.path.parent):
            found = self.holder()
            if found is not None and found.id != lock.id:
                living = self.living_holder()
                if living is not None:
                    raise OperationLocked(f"{self.path} is locked by {held_text(living)}", living)
                _log.warning(
                    "%s: the lock of %s is taken over: its process has ended",
                    self.path,
                    held_text(found),
                )
            try:
                write_document(self._lock_path, lock)
                if lock.process is not None:
                    self._let_go()
                    self._lock_fd = hold(self._lock_path)
            except OSError:
                self._drop_lock()  # else nobody would have it, and nobody get it
                raise

    def unlock(self, lock_id: str) -> bool:
        """Give the lock back; return whether there was one.

        Raises:
            OperationLocked: another operation has it.
        """
        with turn_in(self.path.parent):
            found = self.holder()
            if found is not None and found.id != lock_id:
                raise OperationLocked(f"{self.path} is locked by {held_text(found)}", found)
            self._drop_lock()
            return found is not None

    def force_unlock(self, lock_id: str | None) -> OperationLock | None:
        """Take the lock away from whoever has it; what that one writes later is refused.

        Args:
            lock_id: of the lock that is meant; None takes away any, also one whose file is broken.

        Returns:
            the lock that was there; None where there was none, or its file is broken.

        Raises:
            OperationLocked: the lock has another id.
            StateDamaged: its file is broken, and `lock_id` is not None.
        """
        with turn_in(self.path.parent):
            try:
                found = self.holder()
            except (StateDamaged, NewerStore):
                if lock_id is not None:
                    raise
                found = None
            if found is None and not self._lock_path.exists():
                return None
            if found is not None and lock_id not in (None, found.id):
                raise OperationLocked(f"{self.path} is locked by {held_text(found)}", found)
            said = "one that cannot be read" if found is None else held_text(found)
            with (
                AuditLog(self.path.parent / AUDIT, self._clock) as audit,
                audit.action("force-unlock", path=self.path.name, lock=said),
            ):
                self._drop_lock()
            _log.warning("%s: the lock of %s is taken away by force", self.path, said)
            return found

    def holder(self) -> OperationLock | None:
        """Return the lock; None where there is none.

        Raises:
            StateDamaged, NewerStore: its file cannot be understood.
        """
        try:
            return read_document(self._lock_path, LOCK_FORM)
        except FileNotFoundError:
            return None

    def living_holder(self) -> OperationLock | None:
        """Return the lock; None, too, where its process has left it behind when it ended.

        Raises:
            StateDamaged, NewerStore: its file cannot be understood.
        """
        found = self.holder()
        return None if found is None or is_left_behind(found, self._lock_path) else found

    def _checked(self, data: bytes) -> Versioned:
        try:
            return self._parsed(data)
        except StateDamaged as error:
            problem = str(error).removeprefix(f"{self.path}").lstrip(", ")
        raise UsageError(f"that is no state for {self.path}: {problem}")

    def _parsed(self, data: bytes) -> Versioned:
        text = current_text(data, self.path, self._form).text
        state: Versioned = decoded(text, self.path, self._form.type)
        return state

    def _require_right(self, lock_id: str | None) -> None:
        found = self.holder()
        if found is not None and found.id != lock_id:
            raise OperationLocked(f"{self.path} is locked by {held_text(found)}", found)
        if found is None and lock_id is not None:
            raise OperationLocked(f"the lock {lock_id} of {self.path} has been taken away")

    def _require_later(self, old: Versioned, new: Versioned) -> None:
        if old.lineage != new.lineage:
            raise OlderState(
                f"{self.path} has the lineage {old.lineage}, and what is to be written has "
                f"{new.lineage}: it was made from another state"
            )
        if new.serial <= old.serial:
            raise OlderState(
                f"{self.path} has the serial {old.serial}, and what is to be written has "
                f"{new.serial}: read the state again"
            )

    def _keep(self, before: bytes, serial: int | str, lock_id: str | None) -> None:
        if not self._keep_each and lock_id is not None and lock_id == self._kept_for:
            return
        name = self.path.stem.encode()[:LABEL_BYTES_MAX].decode(errors="ignore")
        keep_before(self.path, before, self._clock, f"{name}-serial-{serial}")
        self._kept_for = lock_id

    def _drop_lock(self) -> None:
        self._let_go()
        try:
            self._lock_path.unlink()
        except FileNotFoundError:
            return
        sync_folder(self.path.parent)

    def _let_go(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = -1


@contextmanager
def turn_in(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder, made where there is none, for the moment of a step.

    Raises:
        StoreLocked: another one is at it for longer than ten seconds.
    """
    made_folder(folder)
    lock = ProcessLock(folder / LOCK)
    lock.acquire(TURN_SECONDS)
    try:
        yield
    finally:
        lock.release()


def lock_path_of(path: Path) -> Path:
    """Return where the lock of a state lies."""
    return path.with_name(f".{path.name}{LOCK_SUFFIX}")


def state_of_lock(lock_path: Path) -> Path | None:
    """Return the state whose lock a file is; None for any other file."""
    name = lock_path.name.removeprefix(".").removesuffix(LOCK_SUFFIX)
    path = lock_path.with_name(name or LOCK_SUFFIX)
    return path if lock_path_of(path) == lock_path else None
