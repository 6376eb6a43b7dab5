"""The order of things around a save: prepare every volume, then always release every volume.

Volumes are prepared in the order of statefs.toml and released in the reverse order. Whatever
happens, a volume whose preparation began is released: `on_failure` where the save failed, then
`after_save`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from statefs.config import Command, VolumeConfig
from statefs.errors import HookFailed
from statefs.hooks import postgres, sqlite
from statefs.hooks.commands import Account, Deadline, owner_of, run
from statefs.hooks.results import Consistency, DumpResult, VolumeResult
from statefs.layout import RUNTIME

DUMPS: Final = "dumps"
"""The folder of current/ that holds the newest logical dumps, so each snapshot has its own."""

DUMPS_MODE: Final = 0o755
"""The dumps themselves are for their owners alone."""


class Preparation:
    """One save's work with applications; blocking.

    Args:
        volumes: all of statefs.toml.
        current: the folder that programs write to.
        reason: why the save is made; commands see it.
    """

    def __init__(self, volumes: Sequence[VolumeConfig], current: Path, reason: str) -> None:
        self._volumes = volumes
        self._current = current
        self._reason = reason
        self._begun: list[VolumeConfig] = []
        self._new_dumps: list[tuple[Path, Path]] = []
        self._placed: list[tuple[Path, Path | None]] = []
        self._made_folder = False

    def prepare(self) -> list[VolumeResult]:
        """Prepare every volume; then dumps take the places of older ones.

        Raises:
            HookFailed: a command or a database failed or was late. Nothing is left of it in
                current/; the caller releases.
        """
        try:
            results = [self._prepare(volume) for volume in self._volumes]
            for new, final in self._new_dumps:
                self._place(new, final)
        except OSError as error:
            self._forget_dumps()
            raise HookFailed(f"{error.filename or self._current}: {error.strerror}") from error
        except BaseException:
            self._forget_dumps()
            raise
        return results

    def release(self, snapshot: str | None, error: str = "") -> list[str]:
        """Let go of every volume whose preparation began.

        Args:
            snapshot: the name of the new snapshot, None when there is none.
            error: why not.

        Returns:
            What failed, a line each; every command is run all the same.
        """
        problems: list[str] = []
        told = {"STATEFS_SNAPSHOT": snapshot} if snapshot else {"STATEFS_ERROR": error}
        try:
            self._settle_dumps(is_saved=snapshot is not None)
        except OSError as failure:
            problems.append(f"{failure.filename or DUMPS}: {failure.strerror}")
        while self._begun:
            volume = self._begun.pop()
            lists = [volume.after_save] if snapshot else [volume.on_failure, volume.after_save]
            for commands in lists:
                deadline = Deadline(volume.deadline_seconds)
                for command in commands:
                    try:
                        self._run(volume, command, deadline, told)
                    except HookFailed as failure:
                        problems.append(f"volume {volume.name}: {failure}")
        return problems

    def _run(
        self, volume: VolumeConfig, command: Command, deadline: Deadline, told: Mapping[str, str]
    ) -> None:
        folder = self._current / volume.folder
        names = {
            "STATEFS_STATE": str(self._current.parent),
            "STATEFS_VOLUME": volume.name,
            "STATEFS_PATH": str(folder),
            "STATEFS_REASON": self._reason,
        }
        run(command, deadline, env={**names, **told})

    def _prepare(self, volume: VolumeConfig) -> VolumeResult:
        deadline = Deadline(volume.deadline_seconds)
        self._begun.append(volume)
        level: Consistency = "app-consistent" if volume.before_save else "crash-consistent"
        result = VolumeResult(name=volume.name, folder=volume.folder, consistency=level)
        folder = self._current / volume.folder
        try:
            for command in volume.before_save:
                self._run(volume, command, deadline, {})
            self._require_inside(folder)
            if not folder.is_dir():
                note = f"there is no folder {volume.folder}: nothing of it is in the snapshot"
                return replace(result, consistency="crash-consistent", notes=(note,))
            if volume.consistency == "sqlite":
                return _prepare_sqlite(result, folder, deadline)
            if volume.consistency == "postgres":
                return self._prepare_postgres(result, volume, deadline)
        except HookFailed as error:
            raise HookFailed(f"volume {volume.name}: {error}") from error
        return result

    def _require_inside(self, folder: Path) -> None:
        """Refuse a folder that a link leads away from: who writes in current/ may have made it.

        Raises:
            HookFailed: the message names the folder.
        """
        if folder.resolve() != self._current.resolve() / folder.relative_to(self._current):
            raise HookFailed(f"{folder} leads through a symbolic link, which is not followed")

    def _prepare_postgres(
        self, result: VolumeResult, volume: VolumeConfig, deadline: Deadline
    ) -> VolumeResult:
        cluster = next(postgres.find_clusters(self._current / volume.folder), None)
        if cluster is None:
            return replace(result, notes=("no data folder of PostgreSQL is in it",))
        result = replace(result, format=f"postgres-{postgres.version_of(cluster)}")
        if not volume.connection:
            return result  # one moment of the whole data folder is what a backup has to be
        if not (cluster / "postmaster.pid").exists():
            return replace(result, notes=("the server does not run",))
        account = owner_of(cluster)
        dump = self._dump(volume, deadline, account) if volume.is_dumped else None
        size = postgres.size_of_databases(volume.connection, deadline, account)
        postgres.checkpoint(volume.connection, deadline, account)
        return replace(result, consistency="app-consistent", bytes=size, dump=dump)

    def _dump(
        self, volume: VolumeConfig, deadline: Deadline, account: Account | None
    ) -> DumpResult:
        folder = self._current / DUMPS
        self._require_inside(folder)
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(DUMPS_MODE)  # whatever the umask: owners of dumps pass through
            self._made_folder = True
        final = folder / f"{volume.name}.dump"
        new = folder / f".{volume.name}.dump.new"
        new.unlink(missing_ok=True)
        made = postgres.dump(volume.connection, new, deadline, account)
        self._new_dumps.append((new, final))
        return DumpResult(path=f"{DUMPS}/{final.name}", bytes=made.bytes, digest=made.digest)

    def _place(self, new: Path, final: Path) -> None:
        """Put a new dump into its place; the former one is kept where no snapshot sees it."""
        former = None
        if os.path.lexists(final):
            folder = self._current / os.fsdecode(RUNTIME)
            folder.mkdir(exist_ok=True)
            self._require_inside(folder)
            former = folder / f".{final.name}.former"
            former.unlink(missing_ok=True)  # of a save that was killed
            os.link(final, former, follow_symlinks=False)
        os.replace(new, final)
        self._placed.append((final, former))

    def _settle_dumps(self, *, is_saved: bool) -> None:
        """Let go of the former dumps, or where there is no snapshot, put them back."""
        for final, former in self._placed:
            if former is None and not is_saved:
                final.unlink(missing_ok=True)
            elif former is not None and is_saved:
                former.unlink(missing_ok=True)
            elif former is not None:
                os.replace(former, final)
        if self._made_folder and not is_saved:
            with suppress(OSError):  # somebody has put something into it
                (self._current / DUMPS).rmdir()
        self._placed, self._made_folder = [], False

    def _forget_dumps(self) -> None:
        with suppress(OSError):
            for new, _ in self._new_dumps:
                new.unlink(missing_ok=True)
            self._settle_dumps(is_saved=False)


def _prepare_sqlite(result: VolumeResult, folder: Path, deadline: Deadline) -> VolumeResult:
    databases = sqlite.find_databases(folder)
    notes = [sqlite.bring_to_rest(database, deadline) for database in databases]
    told = tuple(note for note in notes if note)
    return replace(
        result,
        consistency="app-consistent" if databases and not told else result.consistency,
        format="sqlite",
        bytes=sum(_size(database) for database in databases),
        notes=told,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # the application has removed it meanwhile
