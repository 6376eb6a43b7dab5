"""Checking a store against the rules of docs/on-disk-format.md. Reads only."""

from __future__ import annotations

import msgspec

from statefs.layout import StoreLayout


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A broken rule: its number, and what breaks it."""

    rule: str
    message: str


def verify(layout: StoreLayout) -> list[Problem]:
    """Return every problem found in a store."""
    return []
