"""Why a snapshot was taken: the one list of words. Imports nothing, so that the CLI starts fast."""

from __future__ import annotations

from typing import Final, Literal, get_args

Reason = Literal[
    "manual",
    "autosave",
    "turn",
    "shutdown",
    "before-upgrade",
    "before-restore",
    "before-try",
    "try",
    "before-import",
    "import",
    "before-migration",
    "hook",
]
"""What may stand as the reason of a snapshot (docs/on-disk-format.md)."""
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
