"""What a repair tells: every loss and every thing that was put right, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

TOLD_MAX: Final = 10_000
"""Losses told one by one; beyond that they are counted. So many paths in `older`, at most."""


class Loss(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that is not as it was.

    Args:
        what: in words.
        path: of the file or folder, as far as it is known.
        other_names: of a file of several, the other paths.
        snapshots: the names of the snapshots that it is gone from.
        is_current: whether it is gone from current/, too.
        found: where what is left of it lies now, below current/.
    """

    what: str
    path: str | None = None
    other_names: Sequence[str] = ()
    snapshots: Sequence[str] = ()
    is_current: bool = False
    found: str | None = None


class Report(msgspec.Struct, kw_only=True):
    """How a repair ended.

    Args:
        source: what the database was made of: "meta.db", "salvage", "salvage and copy NAME", "copy
            NAME" or "objects".
        troubles: why: what was wrong with the database, as far as it could not be read.
        passed_over: newer copies of the database than the one that was used, and what is wrong with
            each.
        older: paths of what is in current/ as the copy has it: it may have changed since.
        losses: see `Loss`.
        more: losses that are not listed.
        put_right: counts of what was changed without a loss, in words.
        kept: where the database lies that was replaced, relative to the store.
    """

    source: str
    troubles: list[str] = []
    passed_over: dict[str, str] = {}
    older: list[str] = []
    losses: list[Loss] = []
    more: int = 0
    put_right: dict[str, int] = {}
    kept: str | None = None

    def lose(self, loss: Loss) -> None:
        """Note a loss."""
        if len(self.losses) < TOLD_MAX:
            self.losses.append(loss)
        else:
            self.more += 1

    def right(self, what: str, count: int = 1) -> None:
        """Note something that has been put right."""
        if count:
            self.put_right[what] = self.put_right.get(what, 0) + count
