"""Bringing an archive into current/, through its mount: all of it, or nothing.

The files are made in a hidden folder of current/, through the mount like any program's, so that
every rule of the filesystem holds and whoever uses the mount sees what is true. Only when all of
them are there they are renamed into place; what stood there before goes into the hidden folder,
and comes back if anything fails. The folders files/ and volumes/ themselves stay: containers may
have them mounted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Protocol

from statefs.archive.extraction import (
    FOLDER_FLAGS,
    PRIVATE_FOLDER,
    Extraction,
    opened_folder,
)
from statefs.archive.headers import Member
from statefs.archive.placing import (
    KEPT,
    NEW,
    Installation,
    is_folder,
    names_in,
    staging_folder,
    uninterrupted,
)
from statefs.archive.reading import NAME_LABEL, Archive, checked_path
from statefs.errors import NoSuchSnapshot, UsageError
from statefs.hooks.results import CONSISTENCY_LABEL
from statefs.layout import RUNTIME
from statefs.snapshots.catalog import MESSAGE_CHARACTERS_MAX
from statefs.snapshots.documents import IMPORTED_LABEL, SnapshotDocument
from statefs.snapshots.reports import path_text
from statefs.target import Target

NOT_TAKEN_OVER: Final = (CONSISTENCY_LABEL, "")
"""Labels that are not an import's: how a check ended, and one without a key, as once could be."""

Document = dict[str, Any]
OnProgress = Callable[[Document], None]


class Saver(Protocol):
    """What an import needs of a state (statefs.api.State)."""

    @property
    def target(self) -> Target:
        """Which state it is."""

    def save(
        self,
        message: str = "",
        reason: str = ...,
        labels: Any = None,
        *,
        operation: Document | None = None,
    ) -> SnapshotDocument:
        """Take a snapshot."""

    def delete(self, snapshot: str) -> SnapshotDocument:
        """Delete a snapshot."""

    def list_snapshots(self) -> Sequence[SnapshotDocument]:
        """Return all snapshots."""


def import_archive(
    state: Saver,
    file: Path | str | IO[bytes],
    into: str | None,
    replace: bool,
    on_progress: OnProgress | None,
) -> Document:
    """Bring an archive in, between two snapshots: `statefs.api.State.import_`."""
    target, mount = state.target, state.target.mount
    assert mount is not None, "files are made through the mount"
    with ExitStack() as open_files:
        if isinstance(file, str | Path):
            source: IO[bytes] = open_files.enter_context(_opened(file))
            name = path_text(os.fsencode(os.path.basename(file)))
        else:
            source, name = file, "the archive"
        named = f"current/ of {target.store}" if target.state is None else f"{target.state}/current"
        incoming = Import(mount.mount_point / "current", into, replace, named)
        incoming.check_place()
        archive = Archive(source, name)
        before = state.save(f"before the import of {name}", "before-import")
        try:
            incoming.run(archive, _reporter(source, on_progress))
        except BaseException:
            with suppress(NoSuchSnapshot):  # pruned, or deleted by somebody
                state.delete(before.name)  # nothing has changed since
            raise
    operation = {"kind": "import", "phase": "after", "other": before.snapshot_id}
    after = _save(state, name, incoming.document, operation)
    return {
        "snapshot": after,
        "before": before,
        "members": incoming.members,
        "left_out": incoming.left_out,
    }


def _opened(file: Path | str) -> IO[bytes]:
    """Open an archive. Raises UsageError: it cannot be read."""
    try:
        return open(file, "rb")
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read ({error.strerror}): name an archive that this user may read"
        ) from error


def _reporter(source: IO[bytes], on_progress: OnProgress | None) -> Callable[[int], None]:
    try:
        status = os.fstat(source.fileno())
        total = status.st_size if stat.S_ISREG(status.st_mode) else None
    except OSError:  # io.UnsupportedOperation: it is no file
        total = None

    def report(done: int) -> None:
        if on_progress is not None:
            unit = {"done": done, "total": total, "unit": "bytes"}
            on_progress({"what": "reading the archive"} | unit)

    return report


def _save(
    state: Saver, name: str, document: SnapshotDocument | None, operation: Document
) -> SnapshotDocument:
    """Take the snapshot after an import, with what the archive's metadata.json says.

    But for how a check ended: nobody has checked what came.
    """
    if document is None:
        return state.save(f"import of {name}", "import", operation=operation)
    kept = {key: value for key, value in document.labels.items() if key not in NOT_TAKEN_OVER}
    labels = kept | {IMPORTED_LABEL: document.name}
    taken = {each.labels.get(NAME_LABEL) for each in state.list_snapshots()}
    if NAME_LABEL in labels and labels[NAME_LABEL] in taken:
        del labels[NAME_LABEL]  # `imported-from` says which it was all the same
    message = document.message[:MESSAGE_CHARACTERS_MAX]
    return state.save(message, "import", labels, operation=operation)


class Import:
    """One archive being brought in.

    Args:
        current: the folder current/ of a mounted state.
        into: a folder relative to it for everything, None for current/ itself.
        replace: whether what is in current/ gives way.
        named: what the folder is called in messages; its path where that is left out.

    Raises:
        UsageError: `into` is no such path.
    """

    def __init__(self, current: Path, into: str | None, replace: bool, named: str = "") -> None:
        self._current = current
        self._named = named or str(current)
        self._into = None if into is None else checked_path(os.fsencode(into))
        self._replace = replace
        if self._into is not None and self._into.split(b"/")[0] in (b".", RUNTIME):
            raise UsageError(f"{into} is no folder to import into: name one such as files/old")
        self.document: SnapshotDocument | None = None
        self.members = 0
        self.left_out = 0

    def check_place(self) -> None:
        """Refuse an import over files that are there, before anything is done.

        Raises:
            UsageError: it says what to type instead.
        """
        with self._opened_root() as root:
            self._check_place(root)

    def _check_place(self, root: int) -> None:
        if self._into is not None:
            self._check_into(root, self._into)
        elif not self._replace and (names := self._names_in_the_way(root)):
            raise UsageError(
                f"{self._named} is not empty ({', '.join(names[:3])}): --into DIR puts the "
                "archive into a new folder of it, --replace puts it in place of all that is there"
            )

    def _check_into(self, root: int, into: bytes) -> None:
        folder, _, _ = into.rpartition(b"/")
        try:
            with opened_folder(folder or b".", root):
                pass
            with opened_folder(into, root) as there:
                if os.listdir(there):
                    raise UsageError(f"{os.fsdecode(into)} is not empty: name a new folder")
        except FileNotFoundError:
            if folder:
                with suppress(FileNotFoundError), opened_folder(folder, root):
                    return
                raise UsageError(f"there is no folder {os.fsdecode(folder)} in current/") from None
        except OSError as error:
            raise UsageError(f"{os.fsdecode(into)}: {error.strerror}") from error

    def _names_in_the_way(self, root: int) -> list[str]:
        found = []
        for name in names_in(root):
            if name in KEPT and is_folder(root, name):
                with opened_folder(name, root) as folder:
                    found += [os.fsdecode(name + b"/" + below) for below in names_in(folder)]
            elif name != RUNTIME:
                found.append(os.fsdecode(name))
        return sorted(found)

    @contextmanager
    def _opened_root(self) -> Iterator[int]:
        fd = os.open(self._current, FOLDER_FLAGS)
        try:
            yield fd
        finally:
            os.close(fd)

    def run(self, archive: Archive, report: Callable[[int], None]) -> None:
        """Bring the archive in; when this raises, current/ is as it was.

        Args:
            archive: at its beginning.
            report: told how many bytes of it have been read.

        Raises:
            UsageError: the archive cannot be brought in. OSError: the disk refused.
        """
        with self._opened_root() as root, staging_folder(self._current, root) as staging:
            os.mkdir(NEW, PRIVATE_FOLDER, dir_fd=staging)
            with opened_folder(NEW, staging) as new:
                root_member = self._extract(archive, new, report)
                self._check_place(root)
                with uninterrupted(), ExitStack() as open_folders:
                    installation = Installation(root, staging, new, open_folders)
                    try:
                        self._install(installation, root_member)
                    except BaseException:
                        installation.undo()
                        raise

    def _extract(self, archive: Archive, new: int, report: Callable[[int], None]) -> Member | None:
        extraction = Extraction(new)
        try:
            for number, member in enumerate(archive.members()):
                if number == 0:
                    self.document = archive.document(member)
                    if self.document is not None:
                        continue
                if self._is_wanted(member):
                    extraction.add(member, archive)
                    self.members += 1
                report(archive.bytes_read)
            extraction.finish()
        finally:
            extraction.close()
        self.left_out = extraction.left_out
        report(archive.bytes_read)
        if extraction.root_member is not None:
            extraction.apply_to_root(extraction.root_member)
        return extraction.root_member

    def _is_wanted(self, member: Member) -> bool:
        """Return whether a member comes in; runtime/ belongs to whoever runs the services."""
        return self._into is not None or member.path.split(b"/")[0] != RUNTIME

    def _install(self, installation: Installation, root_member: Member | None) -> None:
        if self._into is not None:
            installation.place(self._into)
            return
        if self._replace:
            installation.move_old_away()
        installation.move_in(has_root=root_member is not None)
