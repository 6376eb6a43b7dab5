"""The numbers statefs names things with, and how one 64-bit FUSE node number holds two of them.

A node number is `view << 40 | ino`. View 0 is the living tree; every snapshot has views of its
own, so that a file has another inode number in each snapshot while hard links inside one view
stay equal. Numbers below `FIRST_FREE_INO` are fixed; the rest are handed out once and never
used again, so a node number never comes to mean another file.

Whatever lies in a clone has `CLONE_BIT` in its number: rows of such inodes are of the living alone,
no snapshot ever sees them.
"""

from __future__ import annotations

from typing import Final, NewType

Ino = NewType("Ino", int)
"""An inode number inside one view, 40 bits."""
View = NewType("View", int)
"""Which tree: 0 is current, others are snapshots; 22 bits."""
Epoch = NewType("Epoch", int)
"""The time between two snapshots, counted from 1."""
ObjectId = NewType("ObjectId", int)
"""The number of an object file."""
NodeId = NewType("NodeId", int)
"""What FUSE calls a nodeid, and stat(2) st_ino: a view and an inode number."""

INO_BITS: Final = 40
INO_MASK: Final = (1 << INO_BITS) - 1
VIEW_BITS: Final = 22
VIEW_MAX: Final = (1 << VIEW_BITS) - 1

MOUNT_ROOT: Final = Ino(1)
"""The mount's own folder, which holds current/, snapshots/ and index.json (FUSE_ROOT_ID)."""
SNAPSHOTS_DIR: Final = Ino(2)
INDEX_JSON: Final = Ino(3)
METADATA_JSON: Final = Ino(4)
"""In a snapshot's view: its metadata.json."""
SNAPSHOT_LINK: Final = Ino(5)
"""In a snapshot's view: a symbolic link that leads to the snapshot (latest, @TIME)."""
TREE_ROOT: Final = Ino(16)
"""The root folder of current, and of every snapshot in its own view."""
CLONES_ROOT: Final = Ino(17)
"""The folder clones/, which holds the root folder of each clone; its own parent."""
DELETED_CLONES: Final = Ino(18)
"""A folder that is not shown: clones whose rows are still to be deleted; its own parent."""
FIRST_FREE_INO: Final = 1024
CLONE_BIT: Final = 1 << (INO_BITS - 1)
"""Set in the number of whatever lies in a clone; half of all numbers are enough for the rest."""

CURRENT: Final = View(0)

LIVING: Final = (1 << 63) - 1
"""valid_to of a row that has not ended: infinity."""
NOW: Final = Epoch(LIVING - 1)
"""The epoch to read at for the living rows: no past row ends later."""


def node_id(view: View, ino: Ino) -> NodeId:
    """Return the FUSE node number of inode `ino` in `view`."""
    return NodeId(view << INO_BITS | ino)


def view_of(node: int) -> View:
    """Return the view that a node number lies in."""
    return View(node >> INO_BITS)


def ino_of(node: int) -> Ino:
    """Return the inode number inside its view."""
    return Ino(node & INO_MASK)


def in_clones(ino: int) -> bool:
    """Return whether an inode lies in clones/, or is that folder: no snapshot sees its rows."""
    return ino >= CLONE_BIT or CLONES_ROOT <= ino <= DELETED_CLONES
