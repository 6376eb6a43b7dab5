"""Copying a snapshot, or some paths of it, into a folder elsewhere.

Where the state is mounted it is cp(1), through the mount: everything is as whoever asks may see it,
and the copy keeps what cp --archive keeps: owners, modes, times, hard links, extended attributes,
ACLs, holes. Where it is not, the same comes out of the store as an archive, and is unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

from statefs.archive.extraction import FOLDER_FLAGS, Extraction
from statefs.archive.output import not_made
from statefs.archive.reading import Archive
from statefs.errors import CorruptStore, StatefsError, UsageError
from statefs.snapshots.documents import SnapshotDocument
from statefs.snapshots.reports import path_text
from statefs.snapshots.restore_plan import parsed_paths
from statefs.target import Target

OnProgress = Callable[[dict[str, Any]], None]

DAMAGED: Final = re.compile(r"error reading .*: Input/output error$")
"""What cp says of a file that the mount cannot read."""
FILES_PER_REPORT: Final = 100
"""Progress is told after so many files: some hundredths of a second."""
DOCUMENT = b"metadata.json"
"""In a snapshot's folder, and no part of the state."""


class Shower(Protocol):
    """What a copy needs of a state (statefs.api.State)."""

    @property
    def target(self) -> Target:
        """Which state it is."""

    def show(self, snapshot: str | SnapshotDocument = "latest") -> SnapshotDocument:
        """Return one snapshot."""

    def export(
        self,
        snapshot: str,
        file: IO[bytes],
        compress: bool,
        on_progress: OnProgress,
        *,
        paths: Iterable[str],
    ) -> dict[str, Any]:
        """Write one, or some paths of it, as an archive."""


def copy_out(
    state: Shower,
    snapshot: str | SnapshotDocument,
    folder: Path,
    paths: Sequence[str],
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Copy into a new folder, whole or not at all: `statefs.api.State.copy_out`."""
    shown = state.show(snapshot)
    name = shown.name
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists: name a folder that is to be made")
    mount, left_out = state.target.mount, 0
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir()
    except OSError as error:
        raise not_made(folder, error) from error
    try:
        if mount is None:
            left_out = _unpack(state, name, paths, part, on_progress)
        else:
            wanted = parsed_paths(paths)
            total = None if wanted else shown.files

            def report(done: int) -> None:
                if on_progress is not None:
                    unit = {"done": done, "total": total and max(done, total), "unit": "files"}
                    on_progress({"what": f"copying {name}"} | unit)

            source = mount.mount_point / "snapshots" / name
            if names := _wanted(source, name, wanted):
                _copy(source, names, part, report)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return {"restored": name, "to": str(folder), "paths": list(paths), "left_out": left_out}


def _wanted(source: Path, name: str, paths: Collection[bytes] | None) -> list[bytes]:
    """Return what is to be copied, relative to the snapshot's folder."""
    for path in paths or ():
        if not os.path.lexists(os.path.join(os.fsencode(source), path)):
            raise UsageError(f"'{path_text(path)}' is not in the snapshot {name}")
    return sorted(paths) if paths else [n for n in _names(source) if n != DOCUMENT]


def _names(folder: Path) -> list[bytes]:
    return sorted(os.listdir(os.fsencode(folder)))


def _copy(
    source: Path, names: Sequence[bytes], target: Path, report: Callable[[int], None]
) -> None:
    command = [b"cp", b"--archive", b"--parents", b"--verbose", b"--"]
    command += [*names, os.fsencode(target.absolute())]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            cwd=source,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for done, _ in enumerate(process.stdout, 1):  # a line for each file and folder
                if done % FILES_PER_REPORT == 0:
                    report(done)
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["cp failed"]
            damaged = next(filter(DAMAGED.search, said), None)
            failed = f"the copy failed, and nothing of it was left: {damaged or said[-1]}"
            if damaged is not None:
                raise CorruptStore(f"{failed}; 'statefs verify --read-data' names all damage")
            raise StatefsError(failed)


def _unpack(
    state: Shower, name: str, paths: Sequence[str], target: Path, on_progress: OnProgress | None
) -> int:
    """Have an archive written into a pipe and unpack it at its other end.

    Returns:
        How many files could not be made.
    """

    def report(progress: dict[str, Any]) -> None:
        if on_progress is not None:
            on_progress(progress | {"what": f"copying {name}"})

    source, sink = os.pipe()
    unpacking = _Unpacking(source, target)
    try:
        with open(sink, "wb") as file:
            done = state.export(name, file, False, report, paths=paths)
    except BaseException:
        unpacking.join()
        if unpacking.error is not None and not unpacking.is_cut_off:
            raise unpacking.error from None
        raise
    unpacking.join()
    if unpacking.error is not None:
        raise unpacking.error
    return unpacking.left_out + int(done["sockets"])


class _Unpacking(threading.Thread):
    """Makes files of what comes through a pipe, until it ends or something goes wrong.

    `error` is what did; `is_cut_off` whether the archive had ended too early for it.
    """

    def __init__(self, source: int, target: Path) -> None:
        super().__init__(name="unpack", daemon=True)
        self._source = source
        self._target = target
        self.error: BaseException | None = None
        self.is_cut_off = False
        self.left_out = 0
        self.start()

    def run(self) -> None:
        """Be the thread."""
        root = os.open(self._target, FOLDER_FLAGS)
        try:
            with open(self._source, "rb") as file:
                try:
                    self._make(Archive(file, "the snapshot"), root)
                except BaseException as error:
                    self.error = error
                    self.is_cut_off = not file.read(1)
        finally:
            os.close(root)

    def _make(self, archive: Archive, root: int) -> None:
        extraction = Extraction(root)
        try:
            for number, member in enumerate(archive.members()):
                if number:  # the first is the snapshot's document
                    extraction.add(member, archive)
            extraction.finish()
        finally:
            extraction.close()
        self.left_out = extraction.left_out
