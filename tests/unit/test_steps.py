"""Long operations in steps: how much of them is done at a time."""

from __future__ import annotations

from statefs.maintenance.steps import LONG_SECONDS, SHORT_SECONDS, Pace


def test_a_pace_begins_slowly_and_finds_what_the_disk_can_do() -> None:
    """Twice as much after a short step, up to the most; half as much after a long one."""
    pace = Pace(500)
    rows = [pace.rows]
    for _ in range(4):
        pace.note(SHORT_SECONDS / 2)
        rows.append(pace.rows)
    assert rows == [62, 124, 248, 496, 500]
    pace.note((SHORT_SECONDS + LONG_SECONDS) / 2)
    assert pace.rows == 500
    for _ in range(12):
        pace.note(LONG_SECONDS * 2)
    assert pace.rows == 1


def test_a_pace_times_its_steps() -> None:
    """What takes next to no time is short."""
    pace = Pace(80)
    with pace.step():
        pass
    assert pace.rows == 20


def test_a_pace_of_few_rows_is_at_least_one() -> None:
    """A step always does something."""
    assert Pace(3).rows == 1
