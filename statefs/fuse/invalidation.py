"""Telling the kernel to forget what changed behind its back.

To be called from a thread, never inside a handler. Names and cached pages are never called back:
for that the kernel takes locks that a request may hold while it waits for us, and a daemon killed
at that moment would leave the mount hanging. Names in snapshots/ are not cached instead.
"""

from __future__ import annotations

from contextlib import suppress

import pyfuse3


def forget_attributes(node: int) -> None:
    """Have the kernel ask for the attributes of a node anew; it may not know the node.

    Raises:
        OSError: the kernel did not take the notice.
    """
    with suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(node), attr_only=True)
