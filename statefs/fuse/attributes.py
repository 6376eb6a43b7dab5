"""What the kernel is told of an inode: statefs's attributes as pyfuse3's."""

from __future__ import annotations

from typing import Final

import pyfuse3

from statefs.metadata.inodes import Inode

BLOCK_SIZE: Final = 4096
"""st_blksize: the unit in which programs had better read and write."""
FOLDER_SIZE: Final = 4096
"""st_size of every folder, as programs expect a folder to have some."""


def entry_attributes(
    node: int, inode: Inode, entry_seconds: float, attribute_seconds: float
) -> pyfuse3.EntryAttributes:
    """Return the reply for a node, and for how many seconds the kernel may trust it."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node
    entry.entry_timeout = entry_seconds
    entry.attr_timeout = attribute_seconds
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = FOLDER_SIZE if inode.is_dir else inode.size
    entry.st_blocks = inode.blocks
    entry.st_blksize = BLOCK_SIZE
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def absent(entry_seconds: float) -> pyfuse3.EntryAttributes:
    """Return the reply "there is no such name", which the kernel may remember as long."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = entry_seconds
    return entry
