"""What people use instead of statefs, each behind the same five verbs; and statefs itself.

A tool has a living tree, which programs would write, and a store of snapshots. All are asked the
same: take a snapshot that survives a power cut, list one for the first time, make the living tree
equal to one again, tell what differs between two, delete one. Where a tool can be told what to
bring back and is faster so, it is told; `how` says what was run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

import statefs
from benchmarks.mounted import mounted
from statefs.api import State

BY_NANOSECOND: Final = "--modify-window=-1"
"""Without it rsync takes two files of one second for the same."""
UMOUNT_ATTEMPTS: Final = 3
"""A loop device may be busy for a moment with what a command has just closed."""


class NotHereError(Exception):
    """A tool cannot be measured on this machine, and why."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; with what it said.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | (env or {}), check=True, capture_output=True, text=True
    )
    return done.stdout


def needs(*programs: str) -> None:
    """Raise NotHereError for programs that are not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise NotHereError(f"not installed: {', '.join(missing)}")


@contextmanager
def loop_mounted(folder: Path, kind: str, make: Sequence[str], size_bytes: int) -> Iterator[Path]:
    """Make a filesystem in a sparse file, mount it, and leave nothing of it.

    Args:
        folder: gets the file and the mount point.
        kind: as mount(8) names it.
        make: the command that makes it, without the file's name.

    Raises:
        NotHereError: without root, or where the kernel has no such filesystem or loop devices.
    """
    if os.geteuid() != 0:
        raise NotHereError("a loop device needs root")
    image, where = folder / f"{kind}.image", folder / kind
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    try:
        try:
            run(*make, image)
            run("mount", "-t", kind, "-o", "loop", image, where)
        except subprocess.CalledProcessError as error:
            raise NotHereError(error.stderr.strip()) from error
        try:
            yield where
        finally:
            _unmount(where)
    finally:
        image.unlink()


def _unmount(where: Path) -> None:
    for _ in range(UMOUNT_ATTEMPTS):
        if subprocess.run(["umount", where], check=False).returncode == 0:
            return
        os.sync()
    run("umount", "-l", where)


class Tool(ABC):
    """One way to keep snapshots of a tree.

    Args:
        stack: closed at the end; what the tool mounts goes there.
        folder: an empty one of its own.
        room_bytes: what its filesystem must have room for, if it makes one.

    Raises:
        NotHereError: it cannot be measured on this machine.
    """

    name: str
    how: str
    """What stands for create, restore, diff and delete."""
    tree: Path
    """The living tree; exists as soon as the tool does."""

    @abstractmethod
    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Make the living tree, empty, and the store of snapshots."""

    @abstractmethod
    def create(self, name: str) -> None:
        """Take a snapshot that a power cut leaves whole."""

    @abstractmethod
    def list_first(self, name: str) -> int:
        """List the folders at a snapshot's root and the files of one; return how many."""

    @abstractmethod
    def restore(self, name: str, changed: Sequence[str]) -> None:
        """Make the living tree as a snapshot has it; `changed` is all that differs."""

    @abstractmethod
    def diff(self, older: str, newer: str) -> str:
        """Return in words what differs between two snapshots."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a snapshot."""


def _list(root: Path) -> int:
    """Do what `ls -l` of the root and of the first folder does."""
    found = 0
    for folder in (root, root / "d00000"):
        with os.scandir(folder) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                found += 1
    return found


class Statefs(Tool):
    """A mount, asked through the Python API."""

    name = "statefs"
    how = "API on a mount: save, restore of everything, diff, delete"

    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Mount a new store."""
        if not os.path.exists("/dev/fuse"):
            raise NotHereError("no /dev/fuse")
        self._mount = stack.enter_context(mounted(folder))
        self.tree = self._mount.files
        self._state: State = stack.enter_context(statefs.open(self._mount.state))
        self._names: dict[str, str] = {}

    def create(self, name: str) -> None:
        """Save."""
        self._names[name] = self._state.save(labels={"name": name}).name

    def list_first(self, name: str) -> int:
        """List the folder that the snapshot is."""
        return _list(self._mount.state / "snapshots" / self._names[name] / "files")

    def restore(self, name: str, changed: Sequence[str]) -> None:
        """Restore everything: what differs need not be known."""
        self._state.restore(self._names[name])

    def diff(self, older: str, newer: str) -> str:
        """Compare the rows."""
        found = self._state.diff(self._names[older], self._names[newer]).differences
        return "\n".join(each.path for each in found)

    def delete(self, name: str) -> None:
        """Delete; its space comes back in the background."""
        self._state.delete(self._names[name])


class _Copies(Tool):
    """Snapshots that are whole trees beside the living one."""

    snapshots: Path

    def _make_folders(self, place: Path) -> None:
        self.tree, self.snapshots = place / "tree", place / "snapshots"
        self.tree.mkdir()
        self.snapshots.mkdir()

    def list_first(self, name: str) -> int:
        """List the copy."""
        return _list(self.snapshots / name)

    def restore(self, name: str, changed: Sequence[str]) -> None:
        """Compare sizes and times of all files, and copy those that differ."""
        run("rsync", "-a", BY_NANOSECOND, "--delete", f"{self.snapshots / name}/", f"{self.tree}/")

    def diff(self, older: str, newer: str) -> str:
        """Compare sizes and times of all files."""
        pair = (f"{self.snapshots / newer}/", f"{self.snapshots / older}/")
        return run("rsync", "-ain", BY_NANOSECOND, "--delete", *pair)

    def delete(self, name: str) -> None:
        """Remove the copy."""
        run("rm", "-rf", self.snapshots / name)


class Reflink(_Copies):
    """cp -a --reflink on XFS."""

    name = "cp --reflink, XFS"
    how = "cp -a --reflink=always; sync -f; rsync -a --delete; rsync -ain; rm -rf"

    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Make an XFS with reflinks."""
        needs("mkfs.xfs", "cp", "rsync")
        make = ["mkfs.xfs", "-q", "-m", "reflink=1"]
        self._make_folders(stack.enter_context(loop_mounted(folder, "xfs", make, room_bytes)))

    def create(self, name: str) -> None:
        """Copy all names, share all bytes."""
        run("cp", "-a", "--reflink=always", self.tree, self.snapshots / name)
        run("sync", "-f", self.snapshots)


class LinkDest(_Copies):
    """rsync --link-dest."""

    name = "rsync --link-dest"
    how = "rsync -a --link-dest; sync -f; rsync -a --delete; rsync -ain; rm -rf"

    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Make two folders."""
        needs("rsync")
        self._make_folders(folder)
        self._newest: str | None = None

    def create(self, name: str) -> None:
        """Link what is as it was in the newest snapshot, copy the others."""
        links = [f"--link-dest={self.snapshots / self._newest}"] if self._newest else []
        run("rsync", "-a", BY_NANOSECOND, *links, f"{self.tree}/", f"{self.snapshots / name}/")
        run("sync", "-f", self.snapshots)
        self._newest = name


class Btrfs(Tool):
    """Subvolume snapshots of btrfs."""

    name = "btrfs"
    how = (
        "subvolume snapshot -r; filesystem sync; subvolume snapshot in the place of the tree;"
        " send --no-data | receive --dump; subvolume delete"
    )

    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Make a btrfs with a subvolume."""
        needs("mkfs.btrfs", "btrfs")
        place = stack.enter_context(loop_mounted(folder, "btrfs", ["mkfs.btrfs", "-q"], room_bytes))
        self._place, self.tree = place, place / "tree"
        run("btrfs", "subvolume", "create", self.tree)

    def create(self, name: str) -> None:
        """Take a read-only snapshot of the subvolume."""
        run("btrfs", "subvolume", "snapshot", "-r", self.tree, self._place / name)
        run("btrfs", "filesystem", "sync", self._place)

    def list_first(self, name: str) -> int:
        """List the snapshot."""
        return _list(self._place / name)

    def restore(self, name: str, changed: Sequence[str]) -> None:
        """Put a writable snapshot in the place of the tree: nobody may have it open."""
        run("btrfs", "subvolume", "delete", self.tree)
        run("btrfs", "subvolume", "snapshot", self._place / name, self.tree)

    def diff(self, older: str, newer: str) -> str:
        """Let btrfs say what it would send."""
        stream = self._place / "stream"
        older_path, newer_path = self._place / older, self._place / newer
        run("btrfs", "-q", "send", "--no-data", "-f", stream, "-p", older_path, newer_path)
        return run("btrfs", "receive", "--dump", "-f", stream)

    def delete(self, name: str) -> None:
        """Delete the snapshot; its space comes back in the background."""
        run("btrfs", "subvolume", "delete", self._place / name)


class _Program(Tool):
    """A program with a repository of its own, told where that is by the environment."""

    def _begin(self, folder: Path, env: dict[str, str]) -> None:
        needs(self.name)
        self.tree = folder / "tree"
        self.tree.mkdir()
        self._env = env

    def _run(self, *words: str) -> str:
        return run(self.name, *words, cwd=self.tree, env=self._env)


class Restic(_Program):
    """restic into a folder."""

    name = "restic"
    how = "backup; ls; restore --include of the changed paths; diff; forget --prune"

    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Make a repository, its cache beside it."""
        env = {
            "RESTIC_REPOSITORY": str(folder / "repository"),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
        }
        self._begin(folder, env)
        self._ids: dict[str, str] = {}
        self._run("init")

    def create(self, name: str) -> None:
        """Back up."""
        told = self._run("backup", "--json", ".").splitlines()
        self._ids[name] = msgspec.json.decode(told[-1])["snapshot_id"]

    def list_first(self, name: str) -> int:
        """List the root and one folder."""
        root = len(self._run("ls", "-l", self._ids[name], "/").splitlines())
        return root + len(self._run("ls", "-l", self._ids[name], "/d00000").splitlines())

    def restore(self, name: str, changed: Sequence[str]) -> None:
        """Write the changed files anew: without --include it would write all of them."""
        words = [word for path in changed for word in ("--include", f"/{path}")]
        self._run("restore", self._ids[name], "--target", str(self.tree), *words)

    def diff(self, older: str, newer: str) -> str:
        """Compare the trees."""
        return self._run("diff", self._ids[older], self._ids[newer])

    def delete(self, name: str) -> None:
        """Forget it and take what it alone held out of the repository."""
        self._run("forget", "--prune", self._ids[name])


class Borg(_Program):
    """BorgBackup into a folder."""

    name = "borg"
    how = "create; list; extract of the changed paths; diff; delete, compact"

    def __init__(self, stack: ExitStack, folder: Path, room_bytes: int) -> None:
        """Make a repository without encryption, all it keeps elsewhere beside it."""
        base = folder / "base"
        self._begin(folder, {"BORG_REPO": str(folder / "repository"), "BORG_BASE_DIR": str(base)})
        base.mkdir()
        self._run("init", "--encryption", "none")

    def create(self, name: str) -> None:
        """Make an archive."""
        self._run("create", f"::{name}", ".")

    def list_first(self, name: str) -> int:
        """List one folder; borg reads the names of all files for that."""
        return len(self._run("list", f"::{name}", "d00000").splitlines())

    def restore(self, name: str, changed: Sequence[str]) -> None:
        """Write the changed files anew: without paths it would write all of them."""
        self._run("extract", f"::{name}", *changed)

    def diff(self, older: str, newer: str) -> str:
        """Compare the lists of chunks of all files."""
        return self._run("diff", f"::{older}", newer)

    def delete(self, name: str) -> None:
        """Delete it and take what it alone held out of the repository."""
        self._run("delete", f"::{name}")
        self._run("compact")


TOOLS: Final[Sequence[Callable[[ExitStack, Path, int], Tool]]] = (
    Statefs, Reflink, LinkDest, Btrfs, Restic, Borg,
)  # fmt: skip
