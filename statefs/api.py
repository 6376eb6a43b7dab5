"""The Python API: `statefs.open(...)` returns a `State`, the command line's own way to a store.

    import statefs

    with statefs.open("state") as state:
        snapshot = state.save(message="before the import")
        print(state.show("latest~1").name)
        for each in state.diff(snapshot).differences:
            print(each.kind, each.path)

A state that is mounted is asked through its daemon, a store that nobody has open is opened here,
under its lock, for as long as the `State` is open (statefs/doors.py).
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

import msgspec

from statefs.arguments import AnyPath, AnySnapshot, encoded_path, listed_paths, plain_arguments
from statefs.doors import Document, Door, OfflineDoor, OnProgress, daemon_has, open_door
from statefs.errors import AlreadyMounted, typed
from statefs.snapshots.documents import ListedSnapshot, SnapshotDocument
from statefs.snapshots.naming import CURRENT
from statefs.snapshots.reports import Comparison, Location, Version
from statefs.target import Target, find_target

if TYPE_CHECKING:
    from statefs.telemetry.health import Check

HOLE_BYTES: Final = 1 << 20
"""Zeros of a hole handed out at a time."""


class State:
    """A state and its snapshots. Close it, or use it in a `with` statement.

    Args:
        target: which state and store.
        door: the way to the store.
    """

    def __init__(self, target: Target, door: Door) -> None:
        self.target = target
        self._door = door

    @property
    def path(self) -> Path | None:
        """The folder it is, or would be, mounted at; None where only a store is known."""
        return self.target.state

    def close(self) -> None:
        """Let go of the store; harmless when done twice."""
        self._door.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, op: str, on_progress: OnProgress | None = None, **arguments: Any) -> Any:
        return self._door.call(op, plain_arguments(arguments), on_progress)

    def save(
        self,
        message: str = "",
        reason: str = "manual",
        labels: Mapping[str, str] | None = None,
        *,
        operation: Document | None = None,
    ) -> SnapshotDocument:
        """Take a snapshot of current/ and return what is known of it.

        Args:
            operation: what it is taken for, as `operation` stands in metadata.json: `undo` puts
                back what lies between one of kind "try" and phase "before", and one of phase
                "after" whose `other` is the first one's snapshot_id; the first gets that of the
                second as its `other` then.

        Raises:
            UsageError: an unknown reason, an impossible label. SnapshotExists: the label is taken.
        """
        found = self._ask(
            "save", message=message, reason=reason, labels=labels or {}, operation=operation
        )
        return msgspec.convert(found, SnapshotDocument)

    def seal(
        self, snapshot: AnySnapshot = "latest", on_progress: OnProgress | None = None
    ) -> SnapshotDocument:
        """Wait until a snapshot has its state digest, and return it.

        A daemon seals by itself; where none runs, this does.

        Raises:
            CorruptStore: what the snapshot holds cannot be read. As `show`.
        """
        found = self._ask("seal", on_progress, snapshot=snapshot)
        return msgspec.convert(found, SnapshotDocument)

    def list_snapshots(self) -> list[ListedSnapshot]:
        """Return all snapshots, oldest first."""
        return msgspec.convert(self._ask("list")["snapshots"], list[ListedSnapshot])

    def show(self, snapshot: AnySnapshot = "latest") -> ListedSnapshot:
        """Return one snapshot.

        Args:
            snapshot: a name or its beginning, a label, latest, latest~2, @-2h, @2026-03-13T12:00;
                or a snapshot as `save`, `show` and `list_snapshots` return it.

        Raises:
            NoSuchSnapshot, AmbiguousSnapshot, UsageError.
        """
        return msgspec.convert(self._ask("show", snapshot=snapshot), ListedSnapshot)

    def delete(self, snapshot: AnySnapshot) -> SnapshotDocument:
        """Delete one snapshot and return what it was. Raises as `show`."""
        return msgspec.convert(self._ask("delete", snapshot=snapshot), SnapshotDocument)

    def restore(
        self,
        snapshot: AnySnapshot,
        paths: Iterable[str] | str = (),
        *,
        dry_run: bool = False,
        force: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Make a snapshot, or some paths of it, current again (docs/cli.md, "restore").

        A snapshot of what is replaced is taken first; `undo` brings that back.

        Args:
            paths: one or more, relative to current/; none for everything. runtime/ is never
                restored.
            dry_run: only tell what would change.
            force: although programs have files open for writing there.

        Returns:
            `restored` and `saved` (names of snapshots), `changes` (`path`, `what`), `overridden`
                (`name`, `pid`, `path`: who writes there, for which it is refused without `force`).

        Raises:
            NoSuchPath: a path is not in the snapshot. FilesInUse: see `force`. As `show`.
        """
        told: Document = self._ask(
            "restore",
            on_progress,
            snapshot=snapshot,
            paths=listed_paths(paths),
            dry_run=dry_run,
            force=force,
        )
        return told

    def copy_out(
        self,
        snapshot: AnySnapshot,
        folder: Path | str,
        paths: Iterable[str] | str = (),
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Copy a snapshot, or some paths of it, into a new folder; whole or not at all.

        Args:
            paths: one or more, relative to the snapshot; none for everything.

        Returns:
            `restored`, the snapshot's name; `to`; `paths`; `left_out`, how many files could not be
            made: sockets of a state that is not mounted, and what only root may make.

        Raises:
            UsageError: the folder exists, or a path is not in the snapshot. As `show`.
        """
        from statefs.archive.copying import copy_out

        return copy_out(self, snapshot, Path(folder), listed_paths(paths), on_progress)

    def undo(
        self,
        *,
        force: bool = False,
        dry_run: bool = False,
        of: AnySnapshot | None = None,
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Put back what the last restore, `try`, import or undo changed.

        Args:
            force, dry_run: as of `restore`.
            of: a snapshot that was taken for a restore, `try`, import or undo, by its
                snapshot_id or as for `show`: what that one changed is put back, whatever came
                since.

        Returns:
            What `restore` does; `exact`, false where it is not known any more what was changed:
            then all that changed until `until`, a snapshot or current, is put back.

        Raises:
            NoSuchSnapshot: there is nothing to undo, or the snapshot that was taken for the last
                operation is deleted. FilesInUse: see `restore`. UsageError: `of` was taken for
                nothing that can be undone.
        """
        told: Document = self._ask("undo", on_progress, force=force, dry_run=dry_run, of=of)
        return told

    def clone(
        self,
        snapshot: AnySnapshot,
        name: str,
        path: str = "",
        *,
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Make a writable copy of a snapshot in clones/ (docs/semantics.md, "Clones").

        Args:
            snapshot: as for `show`.
            name: of the clone, new.
            path: of a folder, relative to the snapshot; empty for everything.

        Returns:
            `name`, `snapshot` (its name) and `created`.

        Raises:
            CloneExists. NoSuchPath. UsageError: it is no folder, or no clone can be called so. As
                `show`.
        """
        made: Document = self._ask("clone", on_progress, snapshot=snapshot, name=name, path=path)
        return made

    def delete_clone(self, name: str) -> None:
        """Delete a clone with all that is in it. Raises NoSuchClone."""
        self._ask("delete_clone", name=name)

    def clones(self) -> list[Document]:
        """Return what `clone` has returned of each clone there is, the oldest first."""
        found: list[Document] = self._ask("clones")
        return found

    def prune(self, *, dry_run: bool = False, on_progress: OnProgress | None = None) -> Document:
        """Delete what the retention policy does not keep (docs/cli.md, "prune").

        Args:
            dry_run: only decide.

        Raises:
            InvalidConfig: statefs.toml is wrong, or its policy is empty.
        """
        plan: Document = self._ask("prune", on_progress, dry_run=dry_run)
        return plan

    def pin(self, snapshot: AnySnapshot, reason: str, until: str = "") -> SnapshotDocument:
        """Forbid the deletion of one snapshot, in the name of the user who calls this.

        Args:
            reason: shown to who tries to delete it.
            until: when that ends: 12h, 7d, 2026-12-31, 2026-12-31T12:00 (UTC); empty for never.

        Raises:
            SnapshotPinned: it is pinned already. UsageError: no reason, or no such time.
        """
        found = self._ask("pin", snapshot=snapshot, reason=reason, by=user_name(), until=until)
        return msgspec.convert(found, SnapshotDocument)

    def unpin(self, snapshot: AnySnapshot) -> SnapshotDocument:
        """Allow the deletion of one snapshot again. Raises UsageError: it is not pinned."""
        return msgspec.convert(self._ask("unpin", snapshot=snapshot), SnapshotDocument)

    def sizes(self, on_progress: OnProgress | None = None) -> dict[str, int]:
        """Return for each snapshot's name the bytes that deleting it alone would free."""
        sizes: dict[str, int] = self._ask("sizes", on_progress)
        return sizes

    def export(
        self,
        snapshot: AnySnapshot,
        file: Path | str | IO[bytes],
        compress: bool | None = None,
        on_progress: OnProgress | None = None,
        *,
        paths: Iterable[str] | str = (),
    ) -> Document:
        """Write a snapshot as a tar archive; return what was written (docs/cli.md, "export").

        Args:
            snapshot: as for `show`.
            file: a path, there when all of it is on stable storage and not before; or something to
                write to.
            compress: with zstd; left out, where the path ends in .zst.
            paths: only these, or this one, relative to the snapshot, and the folders above them.

        Raises:
            NoSuchSnapshot, AmbiguousSnapshot. UsageError: a path is not in the snapshot. OSError:
                the disk refused.
        """
        from statefs.archive import output

        def ask(pipe: str) -> Document:
            found: Document = self._ask(
                "export", on_progress, snapshot=name, pipe=pipe, paths=wanted
            )
            return found

        name, store, wanted = self.show(snapshot).name, self.target.store, listed_paths(paths)
        if not isinstance(file, str | Path):
            write = output.writer_to(file)
            return {"file": None, **output.receive(store, write, bool(compress), ask)}
        path = Path(file)
        output.check_name(path)
        packs = path.suffix == output.COMPRESSED if compress is None else compress
        with output.new_file(path) as opened:
            write = output.writer_to(opened)
            return {"file": str(path), **output.receive(store, write, packs, ask)}

    def import_(
        self,
        file: Path | str | IO[bytes],
        into: str | None = None,
        replace: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Bring a tar archive into current/, and take a snapshot of it.

        A state that is not mounted is mounted meanwhile, where only this user sees it.

        Args:
            file: a path, or something to read from.
            into: a folder for it, relative to current/; new or empty.
            replace: whether what is in current/ gives way.

        Returns:
            `snapshot` and `before` (documents of the snapshots taken), `members`, `left_out`.

        Raises:
            FuseUnavailable. UsageError: the archive is damaged or hostile, or current/ is not
                empty; it is as it was then. OSError: the disk refused; likewise.
        """
        from statefs.archive.importing import import_archive

        with self._mounted_meanwhile() as mounted:
            return import_archive(mounted, file, into, replace, on_progress)

    @contextmanager
    def _mounted_meanwhile(self) -> Iterator[State]:
        """Give a state through whose mount files can be made: this one, or its store mounted now.

        Raises:
            FuseUnavailable: this machine or this user cannot mount.
        """
        if not isinstance(self._door, OfflineDoor):
            yield self
            return
        from statefs.daemon.background import mounted_meanwhile
        from statefs.mounts import find_mount

        self._door.close()
        try:
            with mounted_meanwhile(self.target.store) as mount_point:
                shown = replaced(self.target, mount=find_mount(mount_point))
                with State(shown, open_door(shown)) as mounted:
                    yield mounted
        finally:
            self._door = open_door(self.target)

    def check(self, snapshot: AnySnapshot, on_progress: OnProgress | None = None) -> Document:
        """Open the databases and documents of one snapshot (docs/cli.md, "check").

        The outcome becomes the snapshot's label `consistency`. A state that is not mounted is
        mounted meanwhile, where only this user sees it.

        Raises:
            HookFailed: the check itself failed. FuseUnavailable. As `show`.
        """
        known = None if self.path is None else str(self.path / "current")
        with self._mounted_meanwhile() as mounted:
            report: Document = mounted._ask("check", on_progress, snapshot=snapshot, original=known)
            changes = {key: report[key] for key in ("outcome", "volumes")}
            mounted._ask("write_down_check", snapshot=report["name"], **changes)
        return report

    def diff(
        self,
        older: AnySnapshot,
        newer: AnySnapshot = CURRENT,
        on_progress: OnProgress | None = None,
    ) -> Comparison:
        """Return what differs between two moments; O(what differs).

        Args:
            older: a snapshot as `show` takes it, or `current`.
            newer: the same; may be the older one.

        Raises:
            NoSuchSnapshot, AmbiguousSnapshot, UsageError.
        """
        found = self._ask("diff", on_progress, older=older, newer=newer)
        if isinstance(found["differences"], msgspec.Raw):
            found["differences"] = msgspec.json.decode(found["differences"])
        return msgspec.convert(found, Comparison)

    def log(
        self,
        path: AnyPath,
        *,
        digests: bool | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Version]:
        """Return the versions of a file or folder over all snapshots and current, oldest first.

        Args:
            path: where it is now, or was last; renames are followed.
            digests: whether to hash what has no stored SHA-256: None does so while it is cheap.

        Raises:
            NoSuchPath: neither current nor any snapshot has it.
        """
        from statefs.snapshots.version_digests import with_digests

        versions = msgspec.convert(self._ask("log", path=encoded_path(path)), list[Version])
        return with_digests(versions, self.read, digests, on_progress)

    def read(self, snapshot: AnySnapshot, path: AnyPath) -> Iterator[bytes]:
        """Yield the bytes of a file, some megabytes at a time.

        Args:
            snapshot: as `show` takes it, or `current`.

        Raises:
            NoSuchPath: there is no such file. UsageError: it is a folder, a link, a device.
            NoSuchSnapshot: also when the snapshot is deleted while it is read.
            CorruptStore: it is damaged.
        """
        zeros = bytes(HOLE_BYTES)
        for part in self.read_sparse(snapshot, path):
            if isinstance(part, bytes):
                yield part
                continue
            for left in range(part, 0, -HOLE_BYTES):
                yield zeros[:left]

    def read_sparse(self, snapshot: AnySnapshot, path: AnyPath) -> Iterator[bytes | int]:
        """Yield the bytes of a file as `read`, for each hole its length instead.

        They are read from the store's own files, where the process that has the store open says
        that they lie.
        """
        from statefs.snapshots.reading import FILE_END, read_parts

        first = self._located(snapshot, path, 0, FILE_END, 0)

        def locate(offset: int, end: int) -> Location:
            # A part that has been read is compared with its digest; not all the file at once.
            return self._located(first.snapshot, path, offset, end, first.ino, end < FILE_END)

        yield from read_parts(self.target.layout, locate, first)

    def _located(
        self,
        snapshot: AnySnapshot,
        path: AnyPath,
        offset: int,
        end: int,
        ino: int,
        check: bool = False,
    ) -> Location:
        place = {"snapshot": snapshot, "path": encoded_path(path), "ino": ino, "check": check}
        return msgspec.convert(self._ask("locate", None, **place, offset=offset, end=end), Location)

    def status(self) -> Document:
        """Return what the store and its mount are doing (docs/cli.md, "status")."""
        status: Document = self._ask("status")
        return status

    def health(self) -> list[Check]:
        """Return the checks of `statefs health`, by [health] of statefs.toml; InvalidConfig."""
        from statefs.config import read_config
        from statefs.telemetry.health import checks

        status = self.status()
        status["stale"] = self.target.mount is not None and not status["mounted"]
        return checks(status, read_config(self.target.layout.config).health)

    def metrics(self) -> str:
        """Return what is counted and known, in the text format of Prometheus."""
        text: str = self._ask("metrics")
        return text

    def events(self, after: int = 0, *, wait: bool = False) -> list[Document]:
        """Return the kept events with numbers greater than `after`, oldest first.

        With `wait` for such an event, about a second at most (docs/operations.md, "Events").
        """
        found: list[Document] = self._ask("events", after=after, wait=wait)
        return found

    def scrub(self, *, start: bool = True, on_progress: OnProgress | None = None) -> Document:
        """Read all that sealed snapshots hold, at the rate of the settings; wait for the end.

        Args:
            start: False only tells what the last scrub found.
        """
        found: Document = self._ask("scrub", on_progress, start=start)
        return found

    def verify(
        self,
        snapshot: AnySnapshot | None = None,
        read_data: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Check every rule of the store and return the problems found (docs/cli.md, "verify").

        Args:
            snapshot: read the data of this one alone.
            read_data: also read what sealed snapshots hold, and compare it with its digests.
        """
        found: Document = self._ask("verify", on_progress, snapshot=snapshot, read_data=read_data)
        return found


def user_name() -> str:
    """Return the name of the user this process runs as; the number where there is no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def open_state(state: Path | str | None = None, store: Path | str | None = None) -> State:
    """Open a state: `statefs.open`.

    Args:
        state: its folder; left out, STATEFS_STATE, or the mounted state around the working folder.
        store: its store, where that is not STATE.store beside it.

    Raises:
        NoSuchStore: there is none. StoreLocked: another process has it open and is no daemon.
        DaemonUnreachable: a daemon has it, and does not answer.
    """
    given = None if state is None else Path(state)
    return open_target(find_target(given, None if store is None else Path(store)))


def open_target(target: Target) -> State:
    """Open the store of `target`. Raises as `open_state`."""
    return State(target, open_door(target))


def repair(
    target: Target,
    *,
    dry_run: bool = False,
    read_data: bool = False,
    on_progress: OnProgress | None = None,
) -> Document:
    """Make a store that nobody has open sound again (docs/cli.md, "repair").

    Args:
        dry_run: change nothing, and tell what would be lost.
        read_data: compare all content with its digests, and treat what is damaged as lost.

    Returns:
        The report, with the `problems` that are left.

    Raises:
        AlreadyMounted: a daemon has it. StoreLocked: another command has. ReadOnlyStore: nothing
            can be written where it lies.
    """
    from statefs.locking import COMMAND_WAIT_SECONDS, StoreLock
    from statefs.maintenance.opening import refuse_change
    from statefs.maintenance.repair import repair_store

    if daemon_has(target):
        point = target.mount.mount_point if target.mount else target.state or "STATE"
        raise AlreadyMounted(f"{point} is mounted: '{typed('statefs', 'umount', point)}' first")
    refuse_change(target.layout)
    lock = StoreLock(target.layout, role="command")
    lock.acquire(COMMAND_WAIT_SECONDS)
    try:
        report, problems = repair_store(
            target.layout, dry_run=dry_run, read_data=read_data, on_progress=on_progress
        )
    finally:
        lock.release()
    found: Document = {"store": str(target.store), **msgspec.to_builtins(report)}
    return found | {"problems": msgspec.to_builtins(problems)}
