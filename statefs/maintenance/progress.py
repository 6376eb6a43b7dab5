"""Telling who asked for an operation how far it is, and giving up when nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from statefs.errors import StatefsError

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call

OnProgress = Callable[[int, int], None]
"""Told how much of how much is done; may raise to give up."""


def reporting(call: Call, what: str, unit: str) -> OnProgress:
    """Return what tells a caller of a part of the work that changes nothing, or can be taken back.

    Args:
        what: the part, in words.
        unit: what is counted.

    Returns:
        A function that raises StatefsError when nobody waits any more.
    """

    def report(done: int, total: int) -> None:
        if not call.is_wanted:
            raise StatefsError("given up, as nobody waits for it any more")
        call.report({"what": what, "done": done, "total": total, "unit": unit})

    return report
