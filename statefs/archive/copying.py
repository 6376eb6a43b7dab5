"""Copying a snapshot, or some paths of it, into a folder elsewhere: cp(1), through the mount.

So everything is as whoever asks may see it, and the copy keeps what cp --archive keeps: owners,
modes, times, hard links, extended attributes, ACLs, holes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from statefs.errors import NotMounted, StatefsError, UsageError
from statefs.snapshots.documents import SnapshotDocument
from statefs.snapshots.reports import path_text
from statefs.snapshots.restore_plan import parsed_paths
from statefs.target import Target

OnProgress = Callable[[dict[str, Any]], None]

FILES_PER_REPORT: Final = 100
"""Progress is told after so many files: some hundredths of a second."""
DOCUMENT = b"metadata.json"
"""In a snapshot's folder, and no part of the state."""


class Shower(Protocol):
    """What a copy needs of a state (statefs.api.State)."""

    @property
    def target(self) -> Target:
        """Which state it is."""

    def show(self, snapshot: str = "latest") -> SnapshotDocument:
        """Return one snapshot."""


def copy_out(
    state: Shower,
    snapshot: str,
    folder: Path,
    paths: Sequence[str],
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Copy into a new folder, whole or not at all: `statefs.api.State.copy_out`."""
    shown = state.show(snapshot)
    name = shown.name
    mount = state.target.mount
    if mount is None:
        raise NotMounted("a copy is made through the mount: 'statefs mount' first")
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists: name a folder that is to be made")
    source = mount.mount_point / "snapshots" / name
    wanted = parsed_paths(paths)
    for path in wanted or ():
        if not os.path.lexists(os.path.join(os.fsencode(source), path)):
            raise UsageError(f"'{path_text(path)}' is not in the snapshot {name}")
    names = sorted(wanted) if wanted else [n for n in _names(source) if n != DOCUMENT]
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        if names:
            total = None if wanted else shown.files

            def report(done: int) -> None:
                if on_progress is not None:
                    unit = {"done": done, "total": total and max(done, total), "unit": "files"}
                    on_progress({"what": f"copying {name}"} | unit)

            _copy(source, names, part, report)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return {"restored": name, "to": str(folder), "paths": list(paths)}


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
            raise StatefsError(f"the copy failed, and nothing of it was left: {said[-1]}")
