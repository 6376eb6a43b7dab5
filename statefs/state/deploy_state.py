"""What a program has deployed for a project on a target, so that nothing is made twice.

The state is a note of what exists, never its owner: without the file, everything still exists, and
lookups find it again. Owns adoption and URNs; the file, its lock and its earlier versions are a
backend's, of which `state_file` is the local one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from statefs.clock import Clock, SystemClock, iso_time
from statefs.durable import write_file
from statefs.errors import NotInStore, OperationLocked, UsageError
from statefs.state.copies import stamp
from statefs.state.deploy_documents import (
    DEPLOY_FORM,
    DeployDocument,
    Primitive,
    Target,
    Urn,
    checked_part,
    file_of_target,
    urn_of,
)
from statefs.state.documents import current_text, decoded, json_text
from statefs.state.identifiers import checked_id, file_name_of
from statefs.state.operation_lock import OperationLock, lock_of_this_process
from statefs.state.state_file import StateFile, turn_in

GITIGNORE: Final = ".gitignore"
IGNORED: Final = b"# Deploy states hold what nobody should find in a repository.\n*\n"
POLL_SECONDS: Final = 0.05
"""Between two looks at a lock that is waited for."""
_ARTEFACT: Final = re.compile(r"[a-z][a-z0-9-]*-\d{8}T\d{6}\.\d{6}Z\.[a-z0-9]+")

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """An existing resource, as a lookup or its making tells of it.

    Args:
        id: by which its provider knows it.
        attributes: what JSON holds.
    """

    id: str
    attributes: Mapping[str, Any] = {}


class Resource(NamedTuple):
    """A resource that a state knows of; its attributes are the caller's own copy.

    Args:
        urn: of it.
        id: by which its provider knows it.
        attributes: as recorded.
        recorded_at: in ISO 8601.
        adopted: whether a lookup has found it.
    """

    urn: str
    id: str
    attributes: dict[str, Any]
    recorded_at: str
    adopted: bool


Lookup = Callable[[str], Found | None]
"""Asks the provider for the resource of a URN; None where there is none."""
Create = Callable[[str], Found]
"""Makes the resource of a URN; called only where there is none."""


class DeployBackend(Protocol):
    """Where a state lies. `StateFile` says what each of these does and raises."""

    @property
    def path(self) -> Path:
        """What messages call the state."""

    def read(self) -> bytes | None:
        """Return the state; None where there is none."""

    def write(self, data: bytes, lock_id: str) -> None:
        """Put a later version in place; refuse an older one, and one without the lock."""

    def lock(self, lock: OperationLock) -> None:
        """Take the lock, or say who has it."""

    def unlock(self, lock_id: str) -> bool:
        """Give the lock back."""

    def force_unlock(self, lock_id: str | None) -> OperationLock | None:
        """Take the lock away from whoever has it."""

    def holder(self) -> OperationLock | None:
        """Return the lock; None where there is none."""


class DeployState:
    """The resources of one project on one target; threads share one object.

    Reading takes no lock. Each change takes it for itself, unless it is made within `lock`.

    Args:
        folder: of the project's states; made, with mode 0700 and a .gitignore, at the first change.
        project: of all URNs here.
        target: where it is deployed.
        backend: where the state lies; None is a file in `folder`.
        clock: for times and the names of copies.

    Raises:
        UsageError: the project or the target cannot be named so.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        project: str,
        target: Target,
        *,
        backend: DeployBackend | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.project = checked_part(project, "project")
        self.target = target
        self._clock = clock or SystemClock()
        path = self.folder / file_of_target(target)
        self._is_local = backend is None
        self._backend = backend or StateFile(path, DEPLOY_FORM, clock=self._clock)
        self._mutex = threading.RLock()
        self._held: OperationLock | None = None
        self._users = 0
        self._document: DeployDocument | None = None
        self._urn_mutexes: dict[str, threading.RLock] = {}

    def urn(self, type_: str, name: str) -> str:
        """Return the URN of a resource of this project.

        Raises:
            UsageError: the type has a dot, or one of the two is empty.
        """
        return str(Urn(self.project, checked_part(type_, "type"), name))

    def get(self, urn: str) -> Resource | None:
        """Return a resource; None where the state does not know it.

        Raises:
            UsageError: the URN is of another project, or none.
            StateDamaged, NewerStore: the file cannot be understood; the message names it.
        """
        self._require_urn(urn)
        found = self._current().primitives.get(urn)
        return None if found is None else _resource(urn, found)

    def record(self, urn: str, id_: str, attributes: Mapping[str, Any] | None = None) -> Resource:
        """Note a resource that exists, in place of what was noted for its URN; durable then.

        Nothing is written where the state says the same already.

        Raises:
            UsageError: of another project, or JSON does not hold the attributes.
            OperationLocked: another operation has the lock, or has taken it away from this one.
            OlderState: the file was replaced by a later version since it was locked.
            OSError: the disk refused; the state is as it was.
        """
        return self._put(urn, Found(id_, attributes or {}), adopted=False)

    def remove(self, urn: str) -> None:
        """Forget a resource; what it stands for is not touched.

        Raises:
            NotInStore: the state does not know it.
            OperationLocked, OlderState, OSError: see `record`.
        """
        self._require_urn(urn)
        with self.lock("remove"), self._mutex:
            primitives = dict(self._current().primitives)
            if primitives.pop(urn, None) is None:
                raise NotInStore(f"{self._backend.path} has no {urn}")
            self._write(primitives)

    def adopt(self, urn: str, lookup: Lookup) -> Resource | None:
        """Return a resource; one that the state does not know is looked up, and noted.

        That is so where the file is missing, too. Only `lookup` is asked then, and a line is
        logged for what it finds.

        Returns:
            None where the state does not know it and there is none.

        Raises:
            UsageError, OperationLocked, OlderState, OSError: see `record`; or what `lookup` raises.
        """
        self._require_urn(urn)
        with self._urn_turn(urn), self.lock("adopt"):
            known = self.get(urn)
            if known is not None:
                return known
            found = lookup(urn)
            if found is None:
                return None
            adopted = self._put(urn, found, adopted=True)
            _log.info("%s: %s exists as %s and is adopted", self._backend.path, urn, found.id)
            return adopted

    def ensure(self, urn: str, lookup: Lookup, create: Create) -> Resource:
        """Return a resource; one that neither the state nor `lookup` knows is made, and noted.

        A crash between its making and the note costs nothing: the next call's lookup finds it.
        Other threads that ask for it wait, other processes are refused.

        Raises:
            UsageError, OperationLocked, OlderState, OSError: see `adopt`; or what `create` raises.
        """
        self._require_urn(urn)
        with self._urn_turn(urn), self.lock("ensure"):
            return self.adopt(urn, lookup) or self._put(urn, create(urn), adopted=False)

    @contextmanager
    def lock(
        self, operation: str, info: str = "", wait_seconds: float = 0.0
    ) -> Iterator[OperationLock]:
        """Keep every other process away for an operation; threads of this object share the lock.

        A lock whose process has ended is taken over, which is logged.

        Args:
            operation: for whoever is refused meanwhile, such as `deploy`.
            info: likewise; may be empty.
            wait_seconds: for another operation's end.

        Raises:
            OperationLocked: another operation has it; the message says whose, and since when.
        """
        give_up = time.monotonic() + wait_seconds
        while (held := self._taken(operation, info, time.monotonic() >= give_up)) is None:
            time.sleep(POLL_SECONDS)
        try:
            yield held
        finally:
            with self._mutex:
                self._users -= 1
                if self._users == 0:
                    self._held = self._document = None
                    if not self._backend.unlock(held.id):
                        _log.warning(
                            "%s: the lock of '%s' was gone at its end",
                            self._backend.path,
                            operation,
                        )

    def holder(self) -> OperationLock | None:
        """Return the lock that somebody has; None where nobody has one."""
        return self._backend.holder()

    def force_unlock(self, lock_id: str | None = None) -> OperationLock | None:
        """Take the lock away; what its holder writes from then on is refused.

        Args:
            lock_id: of the lock that is meant; None takes away any.

        Returns:
            the lock that was there.

        Raises:
            OperationLocked: another one has the lock than `lock_id` says.
        """
        return self._backend.force_unlock(lock_id)

    def version(self) -> tuple[str, int]:
        """Return lineage and serial; an empty one and 0 where there is no state yet."""
        document = self._current()
        return document.lineage, document.serial

    def keep_artefact(self, kind: str, suffix: str, data: bytes) -> Path:
        """Keep a file with the states, as `<kind>-<time>.<suffix>`, such as a script for a cutover.

        Args:
            kind: small letters, digits and hyphens.
            suffix: without its dot. What ends in `sh` may be executed by its owner.
            data: of the file.

        Returns:
            its path, durable.
        """
        name = f"{kind}-{stamp(self._clock)}.{suffix}"
        if not _ARTEFACT.fullmatch(name):
            raise UsageError(f"'{kind}' and '{suffix}' make no name of an artefact: {name}")
        path = self.folder / file_name_of(name, what="artefact")
        with turn_in(self.folder):
            self._hide_folder()
            write_file(path, data, 0o700 if suffix == "sh" else 0o600)
        return path

    def artefacts(self) -> list[Path]:
        """Return the files kept with the states of this folder, the oldest of each kind first."""
        return artefacts_of(self.folder)

    def list(self) -> list[Resource]:
        """Return all resources, by URN in the order of the alphabet."""
        return [_resource(urn, each) for urn, each in sorted(self._current().primitives.items())]

    def __repr__(self) -> str:
        """Return project and place; no attribute."""
        return f"{type(self).__name__}({self.project!r}, {str(self._backend.path)!r})"

    def _require_urn(self, urn: str) -> None:
        if urn_of(urn).project != self.project:
            raise UsageError(f"the URN '{urn}' is not of the project '{self.project}'")

    @contextmanager
    def _urn_turn(self, urn: str) -> Iterator[None]:
        with self._mutex:
            mutex = self._urn_mutexes.setdefault(urn, threading.RLock())
        with mutex:
            yield

    def _hide_folder(self) -> None:
        """Keep the folder out of repositories, unless somebody has decided about that."""
        if not (self.folder / GITIGNORE).exists():
            write_file(self.folder / GITIGNORE, IGNORED)

    def _taken(self, operation: str, info: str, is_last: bool) -> OperationLock | None:
        """Take the lock, or one more share of it; None where another one has it.

        Raises:
            OperationLocked: another one has it, and this `is_last`.
        """
        with self._mutex:
            if self._held is None:
                if self._is_local:
                    with turn_in(self.folder):
                        self._hide_folder()
                lock = lock_of_this_process(operation, info, self._clock)
                try:
                    self._backend.lock(lock)
                except OperationLocked:
                    if is_last:
                        raise
                    return None
                self._held, self._document = lock, None
            self._users += 1
            return self._held

    def _current(self) -> DeployDocument:
        """Return the state as it is; as it was last written here, while this object has the lock.

        Raises:
            UsageError: the file is of another project or target.
        """
        with self._mutex:
            if self._document is not None:
                return self._document
            document = self._read()
            if self._held is not None:
                self._document = document
            return document

    def _read(self) -> DeployDocument:
        data, path = self._backend.read(), self._backend.path
        if data is None:
            return DeployDocument(lineage="", serial=0, project=self.project, target=self.target)
        text = current_text(data, path, DEPLOY_FORM).text
        document = decoded(text, path, DeployDocument)
        if (document.project, document.target) != (self.project, self.target):
            other = f"{document.target.provider}, {document.target.locator}"
            raise UsageError(
                f"{path} is of the project '{document.project}' on {other}: "
                f"give '{self.project}' a folder of its own"
            )
        return document

    def _put(self, urn: str, found: Found, *, adopted: bool) -> Resource:
        self._require_urn(urn)
        checked = json.loads(json_text(found.attributes, f"the attributes of {urn}"))
        if not isinstance(checked, dict):
            raise UsageError(f"the attributes of {urn} are not by name")
        checked_id(found.id, f"id of {urn}")
        with self.lock("record"), self._mutex:
            primitives = dict(self._current().primitives)
            old = primitives.get(urn)
            if old is not None and _says(old, found.id, checked):
                return _resource(urn, old)
            primitives[urn] = Primitive(
                id=found.id,
                attributes=checked,
                recorded_at=iso_time(self._clock.now_ns()),
                adopted=adopted,
            )
            self._write(primitives)
            return _resource(urn, primitives[urn])

    def _write(self, primitives: dict[str, Primitive]) -> None:
        assert self._held is not None
        before = self._current()
        document = DeployDocument(
            lineage=before.lineage or str(uuid.uuid4()),
            serial=before.serial + 1,
            project=self.project,
            target=self.target,
            primitives=primitives,
        )
        data = msgspec.json.format(msgspec.json.encode(document)) + b"\n"
        self._backend.write(data, self._held.id)
        self._document = document


def artefacts_of(folder: Path) -> list[Path]:
    """Return the artefacts in a folder of states, the oldest of each kind first."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if _ARTEFACT.fullmatch(each.name))


def _says(primitive: Primitive, id_: str, attributes: dict[str, Any]) -> bool:
    """Return whether a note says just that; as JSON, where `true` is not 1."""
    known = json.dumps(primitive.attributes, sort_keys=True)
    return primitive.id == id_ and known == json.dumps(attributes, sort_keys=True)


def _resource(urn: str, found: Primitive) -> Resource:
    attributes = json.loads(msgspec.json.encode(found.attributes))
    return Resource(urn, found.id, attributes, found.recorded_at, found.adopted)
