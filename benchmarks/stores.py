"""Large stores, made without a mount: rows through the engine's own statements, in few commits.

What is sparse and what is not: a small file's bytes are really there (inline, in meta.db); a large
file is one object file of the stated length without blocks of its own, mapped by a real extent.
Neither a save nor a lookup reads content, so that makes no difference to them.
"""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from typing import Final

from statefs.ids import LIVING, TREE_ROOT
from statefs.maintenance.store import Store, init_store, open_store
from statefs.metadata.entries import living_entry
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import ENTRIES, EXTENTS, INLINE, INODES
from statefs.volume.names import Creator

COMMIT_FILES: Final = 20_000
"""Files made in one transaction."""
LARGE_FILE_BYTES: Final = 1 << 30
_OWNER: Final = Creator(os.getuid(), os.getgid())


def folder_name(number: int) -> str:
    """Return the name of the folder that holds file `number` of a store with 1000 a folder."""
    return f"d{number:05d}"


def file_path(number: int, folder_files: int) -> str:
    """Return a file's path below files/."""
    return f"{folder_name(number // folder_files)}/f{number}"


def build(root: Path, files: int, folder_files: int, content: bytes, large_files: int) -> None:
    """Make a store with `files` small files and `large_files` sparse ones of 1 GiB each."""
    init_store(root)
    store = open_store(root)
    try:
        entry = living_entry(store.database, TREE_ROOT, b"files")
        assert entry is not None
        for number in range(large_files):
            _add_large_file(store, entry.ino, f"large{number}".encode())
        for first in range(0, files, folder_files):
            name = folder_name(first // folder_files).encode()
            folder = store.volume.names.create(entry.ino, name, stat.S_IFDIR | 0o755, _OWNER)
            last = min(first + folder_files, files)
            _add_small_files(store, folder.ino, range(first, last), content)
            if first % COMMIT_FILES == 0:
                store.database.checkpoint()
    finally:
        store.close()


def _add_small_files(store: Store, folder: int, numbers: range, content: bytes) -> None:
    """Add files to a folder in one transaction, as `Names.create` and `FileData.write` do."""
    table = store.volume.table
    now = store.clock.now_ns()
    times = (now, now, now, now)
    blocks = -(-len(content) // 512)
    with table.change():
        for number in numbers:
            ino = table.new_id()
            table.temporal.born(
                INODES, ino, stat.S_IFREG | 0o644, 1, _OWNER.uid, _OWNER.gid, 0, len(content),
                blocks, *times, folder, 0,
            )  # fmt: skip
            if content:
                table.temporal.born(INLINE, ino, content)
            table.temporal.born(ENTRIES, folder, f"f{number}".encode(), ino, table.new_id())
        table.files += len(numbers)
        table.bytes += len(numbers) * len(content)


def _add_large_file(store: Store, folder: int, name: bytes) -> None:
    """Add a file whose bytes lie, sparse, in an object file."""
    table = store.volume.table
    node = store.volume.names.create(folder, name, stat.S_IFREG | 0o644, _OWNER)
    store.volume.data.write(node.ino, 0, bytes(16384))
    number = store.volume.data.current_object(node)
    store.objects.truncate(number, LARGE_FILE_BYTES)
    with table.change(node):
        table.bytes += LARGE_FILE_BYTES - node.size
        node.size = LARGE_FILE_BYTES
        table.store(node)
    assert node.flags & InodeFlag.EXTENTS
    assert store.database.value(
        f'SELECT "end" FROM {EXTENTS.table} WHERE ino = ? AND valid_to = {LIVING}', (node.ino,)
    ) == LIVING  # fmt: skip


def rewrite(store: Store, files: int, folder_files: int, changes: int, seed: int) -> None:
    """Write new content into `changes` random files, one commit each, as programs would."""
    names = store.volume.names
    entry = living_entry(store.database, TREE_ROOT, b"files")
    assert entry is not None
    chosen = random.Random(seed).sample(range(files), changes)
    for number in chosen:
        folder = names.lookup(entry.ino, folder_name(number // folder_files).encode())
        node = names.lookup(folder.ino, f"f{number}".encode())
        store.volume.data.write(node.ino, 0, b"%d in epoch %d" % (number, seed))
