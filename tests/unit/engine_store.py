"""A store for tests of the engine: short ways to do things to it, and to see what it holds."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from statefs.ids import TREE_ROOT, Epoch
from statefs.layout import StoreLayout
from statefs.maintenance.store import Store, init_store, open_store
from statefs.maintenance.verify import verify
from statefs.snapshots.views import PastTree
from statefs.volume.names import Creator
from statefs.volume.table import Node

ME: Final = Creator(0, 0)
FILE: Final = stat.S_IFREG | 0o644
FOLDER: Final = stat.S_IFDIR | 0o755
SECOND_NS: Final = 1_000_000_000
FIRST_MOMENT_NS: Final = 1_700_000_000 * SECOND_NS


def not_permitted(path: Path, *_: object) -> NoReturn:
    """Refuse to open a file, or to look at it, as the host does who has no right to."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def stat_of_no_object(layout: StoreLayout) -> Callable[..., os.stat_result]:
    """Return an os.stat() that a store's object files are refused to."""
    stat = os.stat

    def refusing(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if isinstance(path, Path) and path.parent.parent == layout.objects:
            not_permitted(path)
        return stat(path, *args, **options)

    return refusing


class SteppingClock:
    """A clock that goes on by one second whenever someone looks at it."""

    def __init__(self, start_ns: int = FIRST_MOMENT_NS) -> None:
        self.time_ns = start_ns

    def now_ns(self) -> int:
        """Return the next second."""
        self.time_ns += SECOND_NS
        return self.time_ns


class EngineStore:
    """An open store; makes it where there is none.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = SteppingClock()
        if not root.exists():
            init_store(root, clock=self.clock, runtime={})
        self.store: Store = open_store(root, self.clock)
        self.names = self.store.volume.names
        self.data = self.store.volume.data
        self.attributes = self.store.volume.attributes
        self.table = self.store.volume.table
        self.database = self.store.database

    def __enter__(self) -> EngineStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.store.close(clean=kind is None)

    def file(self, name: str, content: bytes = b"", parent: int = TREE_ROOT) -> int:
        """Make a file with some content and return its inode number."""
        ino = int(self.names.create(parent, name.encode(), FILE, ME).ino)
        self.data.write(ino, 0, content)
        return ino

    def folder(self, name: str, parent: int = TREE_ROOT) -> int:
        """Make a folder and return its inode number."""
        return int(self.names.create(parent, name.encode(), FOLDER, ME).ino)

    def node(self, ino: int) -> Node:
        """Return a living inode."""
        return self.table.node(ino)

    def content(self, ino: int) -> bytes:
        """Return all bytes of a living file."""
        return self._bytes(self.data.plan_read(ino, 0, self.node(ino).size))

    def _bytes(self, plan: bytes | list[tuple[int, int, int]]) -> bytes:
        return plan if isinstance(plan, bytes) else self.store.objects.read(plan)

    def save(self, **labels: str) -> int:
        """Take a snapshot and return its epoch."""
        self.store.save("", "manual", labels)
        return self.store.catalog.snapshots[-1].epoch

    def delete(self, epoch: int) -> None:
        """Delete the snapshot of an epoch, and free what it alone held."""
        names = {snapshot.epoch: snapshot.name for snapshot in self.store.catalog.snapshots}
        self.store.delete(names[Epoch(epoch)])

    def hide(self, epoch: int) -> None:
        """Begin to delete the snapshot of an epoch: its rows are still there."""
        self.store.catalog.begin_delete(epoch)
        self.store.write_all_documents()

    def past(self, epoch: int) -> PastTree:
        """Return the tree of a snapshot."""
        return PastTree(self.database, Epoch(epoch))

    def past_content(self, epoch: int, ino: int) -> bytes:
        """Return all bytes of a file of a snapshot."""
        tree = self.past(epoch)
        return self._bytes(tree.plan_read(ino, 0, tree.inode(ino).size))

    def rows(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.database.value(f"SELECT count(*) FROM {table}"))

    def objects(self) -> set[int]:
        """Return the numbers of the object files."""
        return self.store.objects.present()

    def killed(self) -> EngineStore:
        """Return the store as the next process finds it after a kill -9 now.

        What has been written to the files of the store is in the copy, what is only in the memory
        of this process is not.
        """
        root = self.root.with_name(self.root.name + "-killed")
        mirror(self.root, root)
        return EngineStore(root)

    def problems(self) -> list[str]:
        """Return the rules that the store breaks, settled first."""
        table = self.store.volume.table
        self.store.volume.data.settle(table.unsettled_nodes())
        found = self.store.verify_files((table.files, table.bytes))
        return [f"{problem.rule}: {problem.message}" for problem in found]

    def forget_memory(self) -> None:
        """Settle, then drop all inodes from memory, so that rows are what is read."""
        self.store.sync_bytes()  # or what owes bytes stays marked, and nobody would know of it
        self.data.settle(self.table.stale_nodes())
        self.table.nodes.clear()


def mirror(source: Path, target: Path) -> None:
    """Make `target` a copy of a store's folder; one that exists is brought to the same state.

    Faster than removing and copying the 256 folders of objects/ each time.
    """
    for folder, names, files in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(exist_ok=True)
        for surplus in {entry.name for entry in os.scandir(place)} - {*names, *files}:
            if (place / surplus).is_dir():
                shutil.rmtree(place / surplus)
            else:
                (place / surplus).unlink()
        for name in files:
            if name != "reserve":  # eight megabytes of nothing; it is made again
                shutil.copy2(Path(folder) / name, place / name)


def tree_of(engine: EngineStore, epoch: int | None = None, root: int = TREE_ROOT) -> dict[str, Any]:
    """Return path -> what is there, of the living tree or of a snapshot; "." is its root."""
    past = None if epoch is None else engine.past(epoch)
    return {".": _shown(engine, past, root), **dict(_walk(engine, past, root, ""))}


def _walk(
    engine: EngineStore, past: PastTree | None, folder: int, path: str
) -> Iterator[tuple[str, Any]]:
    source = engine.names if past is None else past
    for _, name, inode in source.listing(folder, 0, 1 << 30):
        where = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
        yield where, _shown(engine, past, inode.ino)
        if inode.is_dir:
            yield from _walk(engine, past, inode.ino, where)


def _shown(engine: EngineStore, past: PastTree | None, ino: int) -> dict[str, Any]:
    source = engine.attributes if past is None else past
    inode = engine.node(ino) if past is None else past.inode(ino)
    shown: dict[str, Any] = {
        "ino": ino, "mode": oct(inode.mode), "nlink": inode.nlink, "uid": inode.uid,
        "gid": inode.gid, "rdev": inode.rdev, "size": inode.size, "atime_ns": inode.atime_ns,
        "mtime_ns": inode.mtime_ns, "ctime_ns": inode.ctime_ns,
    }  # fmt: skip
    names = source.xattr_names(ino)
    shown["xattrs"] = {name.decode(): source.xattr(ino, name).hex() for name in names}
    if inode.is_file:
        plan = (engine.data if past is None else past).plan_read(ino, 0, inode.size)
        shown["content"] = plan if isinstance(plan, bytes) else engine.store.objects.read(plan)
    elif inode.is_symlink:
        shown["target"] = (engine.data if past is None else past).target(ino)
    return shown


def rules_broken(root: Path) -> list[str]:
    """Return the rules that a closed store breaks, each once, in order."""
    return list(dict.fromkeys(problem.rule for problem in verify(StoreLayout(root))))
