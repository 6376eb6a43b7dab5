"""Which operations (maintenance/commands.py) change a store, and which only read it."""

from __future__ import annotations

from typing import Final

CHANGING: Final = frozenset(
    {
        "save", "delete", "restore", "undo", "prune", "pin", "unpin", "write_down_check", "clone",
        "delete_clone",
    }
)  # fmt: skip
"""Operations of which one runs at a time."""
READING: Final = frozenset(
    {
        "list", "show", "sizes", "diff", "log", "locate", "clones", "status", "verify", "export",
        "events", "metrics",
    }
)  # fmt: skip
"""Operations that write nothing into the store, and so work on a read-only filesystem."""
