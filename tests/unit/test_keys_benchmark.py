from __future__ import annotations

import pytest

from benchmarks import keys
from benchmarks.keys import LAYOUTS, figures


def test_both_layouts_find_every_name_now_and_in_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark behind decision 0001 runs, small, and one key takes less space than two."""
    monkeypatch.setattr(keys, "LOOKUPS", 200)
    found = {layout.name: dict(figures(layout, files=300, snapshots=3)) for layout in LAYOUTS}
    assert all(figure > 0 for layout in found.values() for figure in layout.values())
    assert found["one key"]["bytes per file"] < found["partial indexes"]["bytes per file"]
