"""Bringing an archive into a mounted current/: all of it, or nothing.

The files are made in a hidden folder of current/, through the mount like any program's, so that
every rule of the filesystem holds and whoever uses the mount sees what is true. Only when all of
them are there they are renamed into place; what stood there before goes into the hidden folder,
and comes back if anything fails. The folders files/ and volumes/ themselves stay: containers may
have them mounted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Protocol

from statefs.archive.extraction import (
    FOLDER_FLAGS,
    PRIVATE_FOLDER,
    Extraction,
    attributes_of,
    opened_folder,
    set_attributes,
)
from statefs.archive.headers import Member
from statefs.archive.reading import NAME_LABEL, Archive, checked_path
from statefs.errors import NoSuchSnapshot, NotMounted, UsageError
from statefs.layout import RUNTIME
from statefs.snapshots.catalog import MESSAGE_CHARACTERS_MAX
from statefs.snapshots.documents import SnapshotDocument
from statefs.target import Target

STAGING: Final = ".statefs-import-"
"""What the name of the hidden folder begins with."""
NEW: Final = b"new"
OLD: Final = b"old"
"""Inside it: what comes, and what it takes the place of."""
KEPT: Final = (b"files", b"volumes")
"""Folders whose content is moved, not they themselves."""
DURABILITY: Final = "user.statefs.durability"
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

IMPORTED_FROM: Final = "imported-from"
"""The label that says which snapshot an archive was made of, and so when."""

Document = dict[str, Any]
OnProgress = Callable[[Document], None]


class Saver(Protocol):
    """What an import needs of a state (statefs.api.State)."""

    @property
    def target(self) -> Target:
        """Which state it is."""

    def save(self, message: str = "", reason: str = ..., labels: Any = None) -> SnapshotDocument:
        """Take a snapshot."""

    def delete(self, snapshot: str) -> SnapshotDocument:
        """Delete a snapshot."""

    def list_snapshots(self) -> list[SnapshotDocument]:
        """Return all snapshots."""


def import_archive(
    state: Saver,
    file: Path | str | IO[bytes],
    into: str | None,
    replace: bool,
    on_progress: OnProgress | None,
) -> Document:
    """Bring an archive in, between two snapshots: `statefs.api.State.import_`."""
    mount = state.target.mount
    if mount is None:
        where = state.target.state or state.target.store
        raise NotMounted(f"an archive is imported through the mount: 'statefs mount {where}' first")
    with ExitStack() as open_files:
        if isinstance(file, str | Path):
            source: IO[bytes] = open_files.enter_context(open(file, "rb"))
            name = os.path.basename(file)
        else:
            source, name = file, "the archive"
        incoming = Import(mount.mount_point / "current", into, replace)
        incoming.check_place()
        archive = Archive(source, name)
        before = state.save(f"before the import of {name}", "before-restore")
        try:
            incoming.run(archive, _reporter(source, on_progress))
        except BaseException:
            with suppress(NoSuchSnapshot):  # pruned, or deleted by somebody
                state.delete(before.name)  # nothing has changed since
            raise
    after = _save(state, name, incoming.document)
    return {
        "snapshot": after,
        "before": before,
        "members": incoming.members,
        "left_out": incoming.left_out,
    }


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


def _save(state: Saver, name: str, document: SnapshotDocument | None) -> SnapshotDocument:
    """Take the snapshot after an import, with what the archive's metadata.json says."""
    if document is None:
        return state.save(f"import of {name}")
    labels = document.labels | {IMPORTED_FROM: document.name}
    taken = {each.labels.get(NAME_LABEL) for each in state.list_snapshots()}
    if NAME_LABEL in labels and labels[NAME_LABEL] in taken:
        del labels[NAME_LABEL]  # `imported-from` says which it was all the same
    return state.save(document.message[:MESSAGE_CHARACTERS_MAX], "manual", labels)


class Import:
    """One archive being brought in.

    Args:
        current: the folder current/ of a mounted state.
        into: a folder relative to it for everything, None for current/ itself.
        replace: whether what is in current/ gives way.

    Raises:
        UsageError: `into` is no such path.
    """

    def __init__(self, current: Path, into: str | None, replace: bool) -> None:
        self._current = current
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
                f"{self._current} is not empty ({', '.join(names[:3])}): --into DIR puts the "
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
        for name in _names(root):
            if name in KEPT and _is_folder(root, name):
                with opened_folder(name, root) as folder:
                    found += [os.fsdecode(name + b"/" + below) for below in _names(folder)]
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
                with _uninterrupted(), ExitStack() as open_folders:
                    installation = _Installation(root, staging, new, open_folders)
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

    def _install(self, installation: _Installation, root_member: Member | None) -> None:
        if self._into is not None:
            installation.place(self._into)
            return
        if self._replace:
            installation.move_old_away()
        installation.move_in(has_root=root_member is not None)


class _Installation:
    """Renames that take effect together: `undo` takes back those that were made."""

    def __init__(self, root: int, staging: int, new: int, folders: ExitStack) -> None:
        self._root = root
        self._staging = staging
        self._new = new
        self._folders = folders
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put everything back, the last change first."""
        while self._undo:
            self._undo.pop()()

    def place(self, into: bytes) -> None:
        """Give the new root the name `into`, where nothing or an empty folder is."""
        folder, _, name = into.rpartition(b"/")
        parent = self._opened(folder or b".", self._root)
        if _is_there(parent, name):
            old = self._made(OLD, self._staging)
            self._move(parent, name, old, name)
        self._move(self._staging, NEW, parent, name)

    def move_old_away(self) -> None:
        """Move what is in current/ out of sight."""
        old = self._made(OLD, self._staging)
        for name in _names(self._root):
            if name in KEPT and _is_folder(self._root, name):
                here, there = self._opened(name, self._root), self._made(name, old)
                self._change(here, None)
                for below in _names(here):
                    self._move(here, below, there, below)
            elif name != RUNTIME:
                self._move(self._root, name, old, name)

    def move_in(self, has_root: bool) -> None:
        """Move the new files to where they belong, with the attributes of the folders kept."""
        root = attributes_of(self._new)  # now: what is moved out of a folder changes its times
        for name in _names(self._new):
            if name in KEPT and _is_folder(self._new, name) and _is_folder(self._root, name):
                source, target = self._opened(name, self._new), self._opened(name, self._root)
                wanted = attributes_of(source)
                for below in _names(source):
                    self._move(source, below, target, below)
                self._change(target, wanted)
            else:
                self._move(self._new, name, self._root, name)
        if has_root:
            self._change(self._root, root)

    def _opened(self, path: bytes, folder: int) -> int:
        return self._folders.enter_context(opened_folder(path, folder))

    def _made(self, name: bytes, folder: int) -> int:
        os.mkdir(name, PRIVATE_FOLDER, dir_fd=folder)
        return self._opened(name, folder)

    def _move(self, source: int, name: bytes, target: int, new_name: bytes) -> None:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        self._undo.append(lambda: os.rename(new_name, name, src_dir_fd=target, dst_dir_fd=source))

    def _change(self, folder: int, wanted: Any) -> None:
        """Give a folder other attributes; None only has `undo` bring back those it has."""
        before = attributes_of(folder)
        self._undo.append(lambda: set_attributes(folder, before))
        if wanted is not None:
            set_attributes(folder, wanted)


@contextmanager
def staging_folder(current: Path, root: int) -> Iterator[int]:
    """Give a new hidden folder of current/ that is gone with all it holds after the block.

    Those that killed imports have left are removed, too.
    """
    for name in os.listdir(root):
        if name.startswith(STAGING):
            _remove_abandoned(current / name)
    before = attributes_of(root)
    path = current / f"{STAGING}{secrets.token_hex(8)}"
    path.mkdir(PRIVATE_FOLDER)
    try:
        fd = os.open(path, FOLDER_FLAGS)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _be_plain(fd)
            yield fd
        finally:
            os.close(fd)
    except BaseException:
        with _uninterrupted():
            remove_tree(path)
            os.utime(root, ns=(before[0].st_atime_ns, before[0].st_mtime_ns))
        raise
    after = os.fstat(root)
    remove_tree(path)
    os.utime(root, ns=(after.st_atime_ns, after.st_mtime_ns))


def _be_plain(fd: int) -> None:
    """Take away what a folder has from the one above it, and sync at the end only."""
    for name in os.listxattr(fd):
        os.removexattr(fd, name)
    os.fchmod(fd, PRIVATE_FOLDER)
    os.setxattr(fd, DURABILITY, b"fsync")


def _remove_abandoned(path: Path) -> None:
    """Remove the folder of an import that is not running any more."""
    fd = os.open(path, FOLDER_FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds, whatever its modes say.

    Raises:
        OSError: the disk refused.
    """

    def allow_and_retry(function: Callable[..., Any], name: str, fault: Any) -> None:
        """Make the folder above writable for its owner, and try once more."""
        if not isinstance(fault[1], PermissionError):
            raise fault[1]
        for each in (os.path.dirname(name), name):
            if stat.S_ISDIR(os.lstat(each).st_mode):
                os.chmod(each, PRIVATE_FOLDER)
        if function in (os.open, os.scandir, os.lstat):
            shutil.rmtree(name)
        else:
            function(name)

    shutil.rmtree(path, onerror=allow_and_retry)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and its like until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _names(folder: int) -> list[bytes]:
    """Return the names in a folder, but for those of imports."""
    names = (os.fsencode(name) for name in os.listdir(folder))
    return [name for name in names if not name.startswith(STAGING.encode())]


def _is_folder(folder: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)


def _is_there(folder: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
