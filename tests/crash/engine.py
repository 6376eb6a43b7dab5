"""The handlers of a mount without a mount: random steps on a store, and what it should hold.

Each step is one request of the kernel, so that at most one transaction of it is acknowledged, and
a save, a deletion or what the daemon does in the background. The reference says whether a step
would succeed; only those are done.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import logging
import os
import random
import stat
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar
from unittest.mock import patch

import pyfuse3
import trio

from statefs.daemon import service
from statefs.daemon.service import Service
from statefs.daemon.tasks import in_threads
from statefs.fuse.handles import WRITABLE
from statefs.ids import CLONES_ROOT, SNAPSHOTS_DIR, TREE_ROOT
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.clones import CLONE_OF, CLONE_PATH
from tests.crash.meanwhile import Meanwhile
from tests.harness.trees import Entry, Tree
from tests.model.reference import ReferenceTree
from tests.unit.engine_store import EngineStore, tree_of

T = TypeVar("T")

NAMES: Final = (b"a", b"b", b"c", b"d", b"tmp")
SIZES: Final = (1, 700, 4_096, 9_000, 20_000, 40_000)
OFFSETS: Final = (0, 0, 100, 4_096, 10_000, 30_000)
SNAPSHOTS_MAX: Final = 3
MARKS: Final = (CLONE_OF, CLONE_PATH)
"""Attributes of a clone's root that say what it was made of."""
OWNER: Final = SimpleNamespace(uid=os.getuid(), gid=os.getgid(), umask=0o022, pid=1)

Step = tuple[Any, ...]
"""Name of an operation, then its arguments; those of `ReferenceTree`, and some more."""
DURING: Final = "during"
"""A step that has three: one, another that lands while the first waits, and where it lands
(tests/crash/meanwhile.py)."""
BESIDE: Final = frozenset(
    {
        "save", "delete", "restore", "prune", "clone", "seal",
        "tick", "checkpoint", "collect", "syncdir", "kill", DURING,
    }
)  # fmt: skip
"""Steps that are not done to the living tree, or that who does them applies to a reference."""


def apply(reference: ReferenceTree, step: Step) -> bool:
    """Do a step on the reference; return whether it may be done at all."""
    name, *arguments = step
    if name in BESIDE:
        return True
    try:
        if name in ("close", "fsync", "read"):
            reference.node(arguments[0]).must_be_file()
        elif name == "rename" and _is_one_inode(reference, *arguments[:2]):
            return False  # the kernel does not ask for that
        else:
            getattr(reference, name)(*arguments)
    except OSError:
        return False
    return True


def _is_one_inode(reference: ReferenceTree, old: bytes, new: bytes) -> bool:
    try:
        return reference.node(old) is reference.node(new)
    except OSError:
        return False


def new_reference() -> ReferenceTree:
    """Return what a new store holds."""
    reference = ReferenceTree(0o755, OWNER.uid, OWNER.gid, OWNER.umask)
    for name in (b"files", b"volumes", b"runtime"):
        reference.mkdir(name, 0o755)
    return reference


class StepMaker:
    """Thinks of steps.

    Args:
        rng: decides everything.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._saves = 0
        self.labels: list[bytes] = []

    def next(self, reference: ReferenceTree) -> Step:
        """Return a step that `apply` accepts, after it was applied to `reference`."""
        while True:
            step = self._any(reference)
            if apply(reference, step):
                return step

    def _any(self, reference: ReferenceTree) -> Step:
        rng = self._rng
        folders = [b"files"]
        folders += [path for path in reference.directories() if path.startswith(b"files/")]

        def path() -> bytes:
            return rng.choice(folders) + b"/" + rng.choice(NAMES)

        def data() -> bytes:
            return rng.randbytes(rng.choice(SIZES))

        makers: dict[str, tuple[float, Callable[[], tuple[Any, ...]]]] = {
            "create": (6, lambda: (path(), 0o644)),
            "mkdir": (1, lambda: (path(), 0o755)),
            "write": (10, lambda: (path(), rng.choice(OFFSETS), data())),
            "append": (4, lambda: (path(), data())),
            "truncate": (3, lambda: (path(), rng.choice((0, *SIZES)))),
            "rename": (5, lambda: (path(), path(), rng.choice((0, 0, 0, 1, 2)))),
            "unlink": (2, lambda: (path(),)),
            "rmdir": (1, lambda: (path(),)),
            "link": (1, lambda: (path(), path())),
            "close": (8, lambda: (path(),)),
            "setxattr": (1, lambda: (path(), "user.a", data()[:2000])),
            "tick": (1, tuple),
            "checkpoint": (1, tuple),
            "collect": (1, tuple),
            "save": (2 if len(self.labels) < SNAPSHOTS_MAX else 0, self._new_label),
            "delete": (1 if self.labels else 0, lambda: (rng.choice(self.labels),)),
            "seal": (1 if self.labels else 0, tuple),
            "prune": (1 if len(self.labels) > SNAPSHOTS_MAX else 0, tuple),
            "restore": (
                1 if 0 < len(self.labels) < SNAPSHOTS_MAX else 0,
                lambda: (rng.choice(self.labels),),
            ),
            "clone": (0.5 if self.labels and self._saves < 20 else 0, self._new_label),
        }
        name = rng.choices(list(makers), [weight for weight, _ in makers.values()])[0]
        return (name, *makers[name][1]())

    def _new_label(self) -> tuple[bytes]:
        self._saves += 1
        return (b"s%d" % self._saves,)


class Handlers:
    """A store, open as a daemon has it.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self.engine = EngineStore(root)
        self.store = self.engine.store
        self.service = Service(self.store, "close")
        self._operations = self.service.operations

    def do(self, step: Step, meanwhile: Meanwhile | None = None) -> Any:
        """Do a step and return what it answers. Raises pyfuse3.FUSEError.

        Threads are left out: what waits for the disk is done at once, which is as good here.

        Args:
            meanwhile: what is done while it waits.
        """
        waited = _at_once if meanwhile is None else meanwhile.waited
        with (
            patch.object(service, "forget_attributes", lambda _: None),
            patch.object(self.service, "mount_point", lambda: None),
            patch.object(trio.to_thread, "run_sync", waited),
        ):
            return trio.run(self.doing, step)

    async def doing(self, step: Step) -> Any:
        """Do a step within another one."""
        name, *arguments = step
        return await getattr(self, f"_{name}")(*arguments)

    def ino(self, path: bytes) -> int:
        """Return the inode at a path."""
        return ino_of(self.engine, path)

    def _place(self, path: bytes) -> tuple[int, bytes]:
        folder, _, name = path.rpartition(b"/")
        return self.ino(folder), name

    async def _create(self, path: bytes, mode: int) -> None:
        info, _ = await self._operations.create(
            *self._place(path), mode, os.O_EXCL | os.O_CREAT | os.O_WRONLY, OWNER
        )
        await self._operations.release(info.fh)

    async def _mkdir(self, path: bytes, mode: int) -> None:
        await self._operations.mkdir(*self._place(path), mode | stat.S_IFDIR, OWNER)

    async def _write(self, path: bytes, offset: int, data: bytes) -> None:
        await self._operations.write(self.ino(path) | WRITABLE, offset, data)

    async def _read(self, path: bytes) -> bytes:
        """Return all bytes of a file."""
        ino = self.ino(path)
        return await self._operations.read(ino, 0, self.store.volume.table.node(ino).size)

    async def _append(self, path: bytes, data: bytes) -> None:
        ino = self.ino(path)
        await self._operations.write(ino | WRITABLE, self.store.volume.table.node(ino).size, data)

    async def _truncate(self, path: bytes, size: int) -> None:
        fields = SimpleNamespace(
            update_size=True, update_mode=False, update_uid=False, update_gid=False,
            update_atime=False, update_mtime=False,
        )  # fmt: skip
        attributes = SimpleNamespace(st_size=size)
        await self._operations.setattr(self.ino(path), attributes, fields, None, OWNER)

    async def _rename(self, old: bytes, new: bytes, flags: int) -> None:
        await self._operations.rename(*self._place(old), *self._place(new), flags, OWNER)

    async def _unlink(self, path: bytes) -> None:
        await self._operations.unlink(*self._place(path), OWNER)

    async def _rmdir(self, path: bytes) -> None:
        await self._operations.rmdir(*self._place(path), OWNER)

    async def _link(self, old: bytes, new: bytes) -> None:
        await self._operations.link(self.ino(old), *self._place(new), OWNER)

    async def _close(self, path: bytes) -> None:
        await self._operations.flush(self.ino(path) | WRITABLE)

    async def _fsync(self, path: bytes) -> None:
        await self._operations.fsync(self.ino(path) | WRITABLE, False)

    async def _syncdir(self, path: bytes) -> None:
        await self._operations.fsyncdir(self.ino(path), False)

    async def _setxattr(self, path: bytes, name: str, value: bytes) -> None:
        await self._operations.setxattr(self.ino(path), name.encode(), value, OWNER)

    async def _save(self, label: bytes) -> None:
        await self._operations.mkdir(SNAPSHOTS_DIR, label, 0o755, OWNER)

    async def _delete(self, label: bytes) -> None:
        await self._operations.rmdir(SNAPSHOTS_DIR, label, OWNER)

    async def _restore(self, label: bytes) -> bytes:
        """Go back to a snapshot, and return the name of the one that was taken before."""
        told = await self._asked(
            "restore", snapshot=label.decode(), paths=[], force=True, dry_run=False
        )
        return str(told["saved"] or "").encode()

    async def _prune(self) -> list[bytes]:
        """Delete what the policy does not keep, and return by what name that was known."""
        keys = {each.name: key_of(each) for each in self.store.catalog.snapshots}
        told = await self._asked("prune", dry_run=False)
        return [keys[each["name"]] for each in told["snapshots"] if not each["keep"]]

    async def _clone(self, name: bytes) -> None:
        await self._operations.mkdir(CLONES_ROOT, name, 0o755, OWNER)

    async def _seal(self) -> list[bytes]:
        return await self._told(self._sealed)

    async def _sealed(self) -> list[bytes]:
        """Do what the task does that seals; return the snapshots that have got a digest."""
        sealer, sealed = self.store.sealer, []
        while (snapshot := sealer.next()) is not None:
            digest = await in_threads(sealer.hash(snapshot))
            if digest is not None:
                await in_threads(sealer.finish(snapshot, digest))
                sealed.append(key_of(snapshot))
        return sealed

    async def _asked(self, op: str, **arguments: Any) -> Any:
        """Do what a command asks for over the control socket."""
        return await self._told(partial(self.service.handle, op, arguments, Nobody()))

    async def _tick(self) -> None:
        await self._told(self.service._durability.sync_everything)

    async def _checkpoint(self) -> None:
        await self._told(self.service._tasks.move_log)

    async def _collect(self) -> None:
        async def collecting() -> None:
            self.store.collect()

        await self._told(collecting)

    @staticmethod
    async def _told(action: Callable[[], Awaitable[T]]) -> T:
        """Do what the daemon does in the background, with an error as a handler has it."""
        try:
            return await action()
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error


class Nobody:
    """A caller that waits and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Do nothing."""


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing in the block: disks that fail, or lose things, are told of thousands of times."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


async def _at_once(call: Callable[..., T], *arguments: Any, **_: Any) -> T:
    """Do in this thread what another one would do."""
    return call(*arguments)


def key_of(snapshot: Snapshot) -> bytes:
    """Return by what name these tests know a snapshot: its label, if it has one."""
    return (snapshot.label or snapshot.name).encode()


def ino_of(engine: EngineStore, path: bytes) -> int:
    """Return the inode at a path."""
    ino = int(TREE_ROOT)
    for name in path.split(b"/"):
        ino = int(engine.names.lookup(ino, name).ino)
    return ino


def copy_of(reference: ReferenceTree) -> ReferenceTree:
    """Return a reference that changes on its own."""
    return copy.deepcopy(reference)


def gone_back(reference: ReferenceTree, saved: ReferenceTree) -> ReferenceTree:
    """Return what a restore makes of a tree: a copy of what was saved, with runtime/ as it is."""
    saved.node(b".").children[b"runtime"] = reference.node(b"runtime")
    return saved


def living_tree_of(engine: EngineStore) -> Tree:
    """Return the living tree, less what init puts into runtime/."""
    living = _entries(tree_of(engine))
    return {path: entry for path, entry in living.items() if not path.startswith(b"runtime/")}


def snapshot_trees_of(engine: EngineStore) -> dict[bytes, Tree]:
    """Return the trees of all snapshots, by label."""
    return {
        key_of(snapshot): _entries(tree_of(engine, snapshot.epoch))
        for snapshot in engine.store.catalog.snapshots
    }


def clones_of(engine: EngineStore) -> dict[bytes, Tree]:
    """Return the trees of all clones by name, without what says whose clone each is."""
    found: dict[bytes, Tree] = {}
    for clone in engine.store.clones.listing():
        root = engine.names.lookup(CLONES_ROOT, clone.name).ino
        tree = _entries(tree_of(engine, root=root))
        tree[b"."] = replace(
            tree[b"."], xattrs=tuple(x for x in tree[b"."].xattrs if x[0].encode() not in MARKS)
        )
        found[clone.name] = tree
    return found


def _entries(found: dict[str, Any]) -> dict[bytes, Entry]:
    links: dict[int, list[bytes]] = defaultdict(list)
    for path, shown in found.items():
        links[shown["ino"]].append(os.fsencode(path))
    entries = {}
    for path, shown in found.items():
        mode = int(shown["mode"], 8)
        is_directory = stat.S_ISDIR(mode)
        entries[os.fsencode(path)] = Entry(
            kind=stat.filemode(mode)[0],
            mode=stat.S_IMODE(mode),
            uid=shown["uid"],
            gid=shown["gid"],
            size=None if is_directory else shown["size"],
            nlink=None if is_directory else shown["nlink"],
            device=0,
            mtime_ns=None,
            content=hashlib.sha256(shown["content"]).digest() if "content" in shown else b"",
            xattrs=tuple((name, bytes.fromhex(v)) for name, v in sorted(shown["xattrs"].items())),
            links=(os.fsencode(path),) if is_directory else tuple(sorted(links[shown["ino"]])),
        )
    return entries


def without_runtime(tree: Tree) -> Tree:
    """Return what a snapshot shows of a tree."""
    return {path: entry for path, entry in tree.items() if path.split(b"/")[0] != b"runtime"}
