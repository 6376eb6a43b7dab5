"""Which snapshots are kept and which go: golden files, and what holds for any policy.

A golden file in tests/fixtures/retention shows one policy and what becomes of a year's snapshots.
`STATEFS_WRITE_GOLDEN=1 pytest tests/unit/test_retention.py` writes them anew; read the difference.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statefs.clock import iso_time
from statefs.config import Duration
from statefs.config import Retention as Policy
from statefs.errors import InvalidConfig
from statefs.snapshots.documents import Pin
from statefs.snapshots.retention import (
    NEWEST,
    Candidate,
    Decision,
    decide,
    has_keep_rule,
    relieve,
)

GOLDEN: Final = Path(__file__).parents[1] / "fixtures/retention"
SECOND_NS: Final = 1_000_000_000
DAY_NS: Final = 86_400 * SECOND_NS
COUNTS: Final = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly")


def at(text: str) -> int:
    """Return a time in UTC as nanoseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def iso(time_ns: int) -> str:
    """Return a time as the golden files show it."""
    return f"{datetime.fromtimestamp(time_ns // SECOND_NS, UTC):%Y-%m-%dT%H:%M:%SZ}"


NOW: Final = at("2026-11-21T08:30")


def pinned(by: str, reason: str, until_ns: int | None = None) -> Pin:
    """Return a pin."""
    until = None if until_ns is None else iso_time(until_ns)
    return Pin(reason=reason, by=by, since="2025-11-30T00:00:00Z", until=until)


def year() -> list[Candidate]:
    """Return a year's snapshots: every 40 minutes today, four a day last week, then fewer.

    Some have labels, pins, or were taken before something risky; September is missing.
    """
    times = [at("2025-11-30T23:59"), at("2025-12-01T00:01"), at("2026-01-01T00:00")]
    times += [at(f"2026-{month:02d}-{day}T12:00") for month in range(2, 9) for day in (10, 24)]
    start = datetime(2026, 10, 1, 6, tzinfo=UTC)
    times += [int((start + timedelta(days=3 * n)).timestamp()) * SECOND_NS for n in range(14)]
    start = datetime(2026, 11, 14, tzinfo=UTC)
    times += [int((start + timedelta(hours=6 * n)).timestamp()) * SECOND_NS for n in range(28)]
    start = datetime(2026, 11, 21, tzinfo=UTC)
    times += [int((start + timedelta(minutes=40 * n)).timestamp()) * SECOND_NS for n in range(13)]
    made = [Candidate(epoch, time) for epoch, time in enumerate(times, 1)]
    made[2] = made[2]._replace(labels={"name": "new-year"})
    made[5] = made[5]._replace(labels={"release": "1.2"})
    made[8] = made[8]._replace(reason="before-upgrade")
    pin = pinned("ada", "audit", at("2027-01-01"))
    made[10] = made[10]._replace(pin=pin)
    made[12] = made[12]._replace(pin=pinned("bob", "court case"))
    ended = pinned("eve", "demo", at("2026-11-01"))
    made[20] = made[20]._replace(pin=ended)
    made[40] = made[40]._replace(reason="before-restore")
    return made


POLICIES: Final[dict[str, dict[str, Any]]] = {
    "max-snapshots": {"max_snapshots": 30},
    "last": {"keep_last": 5},
    "hourly": {"keep_hourly": 6},
    "hourly-of-newest": {"keep_hourly": 30, "relative_to": "newest"},
    "daily": {"keep_daily": 14},
    "weekly-monthly": {"keep_weekly": 5, "keep_monthly": 24},
    "monthly-of-newest": {"keep_monthly": 9, "relative_to": "newest"},
    "within": {"keep_within_seconds": 36 * 3600},
    "labels": {"keep_labels": ("release=1.*", "name"), "protect_labelled": False},
    "all-of-it": {
        "keep_last": 3,
        "keep_hourly": 12,
        "keep_daily": 7,
        "keep_weekly": 4,
        "keep_monthly": 6,
        "keep_within_seconds": 7200,
        "protect_before": True,
        "max_snapshots": 25,
    },
    "nothing-protected": {"max_snapshots": 2, "protect_labelled": False, "keep_daily": 3},
}


def shown(policy: dict[str, Any], decisions: list[Decision]) -> str:
    """Return a golden file's text."""
    lines = [f"# {key} = {value!r}" for key, value in policy.items()]
    kept = sum(decision.keep for decision in decisions)
    lines += [f"# now {iso(NOW)}: {kept} of {len(decisions)} are kept", ""]
    for snapshot, decision in zip(year(), decisions, strict=True):
        verb = "keep  " if decision.keep else "remove"
        lines.append(f"{verb} {iso(snapshot.created_ns)}  {'; '.join(decision.reasons)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", POLICIES)
def test_a_year_of_snapshots_under_a_policy(name: str) -> None:
    """What is decided, and every word of why, is what the golden file shows."""
    policy = POLICIES[name]
    text = shown(policy, decide(year(), Policy(**policy), NOW))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("STATEFS_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_each_golden_file_belongs_to_a_policy() -> None:
    """None is left behind when a policy is renamed."""
    assert {path.stem for path in GOLDEN.iterdir()} == set(POLICIES)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(max_snapshots=0),
        Policy(max_snapshots=0, protect_labelled=True, protect_before=True),
    ],
)
def test_an_empty_policy_is_refused(policy: Policy) -> None:
    """One that says nothing would be taken for "keep nothing" by some, for "keep all" by others."""
    with pytest.raises(InvalidConfig, match="empty"):
        decide(year(), policy, NOW)


def test_the_default_policy_keeps_a_hundred() -> None:
    """Without any setting the oldest go when there are more than a hundred."""
    snapshots = [Candidate(epoch, epoch * SECOND_NS) for epoch in range(1, 104)]
    removed = [d.epoch for d in decide(snapshots, Policy(), NOW) if not d.keep]
    assert removed == [1, 2, 3]


def test_weeks_begin_on_mondays() -> None:
    """As ISO 8601 has it; Sunday 2026-11-15 is of the week before."""
    snapshots = [Candidate(1, at("2026-11-15T23:59")), Candidate(2, at("2026-11-16T00:00"))]
    decisions = decide(snapshots, Policy(keep_weekly=2), NOW)
    assert [d.reasons[-1] for d in decisions] == ["weekly 2026-W46", "weekly 2026-W47"]


def test_a_machine_that_was_off_keeps_its_days_relative_to_the_newest() -> None:
    """Counted from now its old days have passed; counted by the newest, they are the last days."""
    snapshots = [Candidate(day, at(f"2026-01-{day:02d}")) for day in range(1, 6)]
    from_now = decide(snapshots, Policy(keep_daily=3), NOW)
    from_newest = decide(snapshots, Policy(keep_daily=3, relative_to="newest"), NOW)
    assert [d.epoch for d in from_now if d.keep] == [1, 5]
    assert [d.epoch for d in from_newest if d.keep] == [3, 4, 5]


def test_only_the_labels_of_people_protect() -> None:
    """Not those that a check or an import has left, unless a pattern names them."""
    own = {"consistency": "verified", "imported-from": "2026"}
    snapshots = [Candidate(1, NOW, labels=own), Candidate(2, NOW, labels={"a": "b"} | own)]
    snapshots.append(Candidate(3, NOW))
    for policy, kept in (
        (Policy(keep_last=1), [2, 3]),
        (Policy(keep_last=1, keep_labels=("*",), protect_labelled=False), [2, 3]),
        (Policy(keep_last=1, keep_labels=("*=*",), protect_labelled=False), [2, 3]),
        (Policy(keep_last=1, keep_labels=("consistency=ver*",), protect_labelled=False), [1, 2, 3]),
    ):
        assert [d.epoch for d in decide(snapshots, policy, NOW) if d.keep] == kept


def test_a_snapshot_of_the_future_is_kept() -> None:
    """A clock that was wrong for an hour costs nothing."""
    snapshots = [Candidate(1, NOW + DAY_NS), Candidate(2, NOW)]
    assert all(d.keep for d in decide(snapshots, Policy(keep_daily=1), NOW))


def without_room(snapshots: list[Candidate], policy: Policy, missing: int) -> list[int]:
    """Return what goes when room is missing and each snapshot has 10 bytes of its own."""
    decisions = decide(snapshots, policy, NOW)
    relieve(decisions, missing, "no room", lambda gone: 10 * len(gone))
    return [decision.epoch for decision in decisions if not decision.keep]


def test_lack_of_space_takes_the_oldest_and_spares_what_is_protected() -> None:
    """Neither the newest, nor pinned, nor labelled ones go, whatever the keep rules say."""
    snapshots = [
        Candidate(1, 1, pin=pinned("ada", "audit")),
        Candidate(2, 2),
        Candidate(3, 3, labels={"name": "x"}),
        Candidate(4, 4),
        Candidate(5, 5),
    ]
    assert without_room(snapshots, Policy(keep_last=5), 5) == [2]
    assert without_room(snapshots, Policy(keep_last=5), 15) == [2, 4]
    assert without_room(snapshots, Policy(keep_last=5), 1000) == [2, 4]
    assert without_room(snapshots, Policy(protect_labelled=False), 1000) == [2, 3, 4]
    assert without_room(snapshots, Policy(keep_last=1), 15) == [2, 4]


def test_lack_of_space_costs_nothing_where_deleting_frees_nothing() -> None:
    """History is not given up for a disk that others have filled."""
    snapshots = [Candidate(epoch, epoch) for epoch in range(1, 6)]
    decisions = decide(snapshots, Policy(), NOW)
    relieve(decisions, 100, "no room", lambda gone: 7 if {1, 2} <= set(gone) else 0)
    assert [d.epoch for d in decisions if not d.keep] == [1, 2]
    assert decisions[0].reasons == ["no room"]


pins = st.builds(
    pinned,
    by=st.just("ada"),
    reason=st.just("audit"),
    until_ns=st.none() | st.integers(NOW - DAY_NS, NOW + DAY_NS),
)


@st.composite
def snapshot_lists(draw: st.DrawFn) -> list[Candidate]:
    """Draw snapshots of the last 90 days, oldest first; the clock may have jumped."""
    ages = draw(st.lists(st.integers(-3600, 90 * 86_400), min_size=1, max_size=40))
    if draw(st.booleans()):
        ages.sort(reverse=True)
    return [
        Candidate(
            epoch,
            NOW - age * SECOND_NS,
            draw(st.sampled_from(["manual", "before-restore"])),
            draw(st.sampled_from([{}, {}, {"k": "v"}])),
            draw(st.none() | pins),
        )
        for epoch, age in enumerate(ages, 1)
    ]


@st.composite
def policies(draw: st.DrawFn, most: st.SearchStrategy[int] | None = None) -> Policy:
    """Draw a policy that is not empty."""
    counts: dict[str, Any] = {name: draw(st.integers(0, 5)) for name in COUNTS}
    return Policy(
        **counts,
        max_snapshots=draw(st.integers(1, 20) if most is None else most),
        keep_within_seconds=Duration(draw(st.sampled_from([0, 3600, 3 * 86_400]))),
        keep_labels=draw(st.sampled_from([(), ("k",)])),
        protect_labelled=draw(st.booleans()),
        protect_before=draw(st.booleans()),
        relative_to=draw(st.sampled_from(["now", "newest"])),
    )


def survivors(snapshots: list[Candidate], policy: Policy) -> list[Candidate]:
    """Return the snapshots that are kept."""
    decisions = decide(snapshots, policy, NOW)
    return [s for s, d in zip(snapshots, decisions, strict=True) if d.keep]


@given(snapshot_lists(), policies())
def test_pruning_never_comes_to_zero_and_keeps_pins(
    snapshots: list[Candidate], policy: Policy
) -> None:
    """The newest stays, pins that hold stay, every decision has a reason."""
    decisions = decide(snapshots, policy, NOW)
    assert decisions[-1].keep and NEWEST in decisions[-1].reasons
    for snapshot, decision in zip(snapshots, decisions, strict=True):
        assert decision.reasons
        if snapshot.pin is not None and snapshot.pin.holds(NOW):
            assert decision.keep and any(r.startswith("pinned") for r in decision.reasons)
        if policy.protect_before and snapshot.reason.startswith("before-"):
            assert decision.keep
        if policy.protect_labelled and snapshot.labels:
            assert decision.keep


@given(snapshot_lists(), policies())
def test_pruning_twice_is_pruning_once(snapshots: list[Candidate], policy: Policy) -> None:
    """What was kept is kept again at the same time."""
    once = survivors(snapshots, policy)
    assert survivors(once, policy) == once


@given(snapshot_lists(), policies(most=st.just(0)), st.sampled_from(COUNTS), st.integers(1, 3))
def test_wanting_more_keeps_no_less(
    snapshots: list[Candidate], policy: Policy, rule: str, more: int
) -> None:
    """A higher count of a keep rule never costs a snapshot."""
    if not has_keep_rule(policy):
        return  # a first keep rule means something else: the rest goes
    larger = msgspec.structs.replace(policy, **{rule: getattr(policy, rule) + more})
    assert set(map(id, survivors(snapshots, policy))) <= set(map(id, survivors(snapshots, larger)))


@given(snapshot_lists(), policies())
def test_only_protected_ones_go_over_the_limit(snapshots: list[Candidate], policy: Policy) -> None:
    """There are no more than max_snapshots, unless protection or being the newest says so."""
    decisions = decide(snapshots, policy, NOW)
    kept = [d for d in decisions if d.keep]
    removable = [d for d in kept if not d.is_protected and d is not decisions[-1]]
    assert len(kept) <= policy.max_snapshots or not removable
