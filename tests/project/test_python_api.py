"""docs/python-api.md tells of every method of a State."""

from __future__ import annotations

from pathlib import Path

import pytest

from statefs.api import State

PAGE = (Path(__file__).parents[2] / "docs/python-api.md").read_text()
METHODS = [
    name for name in vars(State) if not name.startswith("_") and name not in ("path", "close")
]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_described(name: str) -> None:
    """In the table, with its arguments."""
    assert f"`{name}(" in PAGE
