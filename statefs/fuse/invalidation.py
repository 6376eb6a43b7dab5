"""Telling the kernel to forget what changed behind its back.

Each function returns a call to be made from a thread, never inside a handler: the kernel may wait
for that very handler. A node or name that the kernel does not know is no error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pyfuse3

Notice = Callable[[], None]


def attributes_of(node: int) -> Notice:
    """Forget the attributes of a node."""
    return lambda: _inode(node, attr_only=True)


def content_of(node: int) -> Notice:
    """Forget attributes and cached pages of a node."""
    return lambda: _inode(node, attr_only=False)


def entry(folder: int, name: bytes) -> Notice:
    """Forget a name in a folder and everything below it."""
    return lambda: _entry(folder, name)


def _inode(node: int, attr_only: bool) -> None:
    with suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(node), attr_only)


def _entry(folder: int, name: bytes) -> None:
    with suppress(FileNotFoundError):
        pyfuse3.invalidate_entry(pyfuse3.InodeT(folder), pyfuse3.FileNameT(name))
