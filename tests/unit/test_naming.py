"""Names of snapshots, and the ways to say which one is meant."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from statefs.clock import iso_time
from statefs.errors import AmbiguousSnapshot, NoSuchSnapshot, UsageError
from statefs.snapshots.naming import Named, check_label, choose, name_for

SECOND = 1_000_000_000


def at(text: str) -> int:
    """Return a time in UTC as nanoseconds."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return int(moment.timestamp()) * SECOND + moment.microsecond * 1000


def named(epoch: int, time: str, label: str | None = None, **labels: str) -> Named:
    """Return a snapshot taken at a time."""
    ns = at(time)
    return Named(epoch, name_for(ns, set()), label, labels, ns)


SNAPSHOTS = [
    named(1, "2026-03-12T23:59:59"),
    named(2, "2026-03-13T12:00:00", "clean"),
    named(3, "2026-03-13T12:00:30.500000", name="imported"),
    named(4, "2026-03-14T00:00:00"),
]
NOW = at("2026-03-14T01:00:00")


def chosen(selector: str) -> int:
    """Return the epoch of the snapshot that a selector means."""
    return choose(selector, SNAPSHOTS, NOW).epoch


def test_a_name_is_the_time_with_hyphens() -> None:
    """A colon in a folder's name disturbs too many programs."""
    assert name_for(at("2026-03-13T12:00:00.9"), set()) == "2026-03-13T12-00-00Z"


def test_a_second_one_in_the_same_second_gets_a_fraction() -> None:
    """And a third one at the same microsecond the next."""
    taken: set[str] = set()
    for expected in ("00Z", "00.250000Z", "00.250001Z"):
        name = name_for(at("2026-03-13T12:00:00.25"), taken)
        assert name == f"2026-03-13T12-00-{expected}"
        taken.add(name)


def test_timestamps_are_as_fine_as_they_need_be() -> None:
    """Whole seconds have no fraction, others microseconds."""
    assert iso_time(at("2026-03-13T12:00:00")) == "2026-03-13T12:00:00Z"
    assert iso_time(at("2026-03-13T12:00:00.5") + 999) == "2026-03-13T12:00:00.500000Z"


@pytest.mark.parametrize(
    ("selector", "epoch"),
    [
        ("2026-03-13T12-00-00Z", 2),
        ("2026-03-12", 1),
        ("clean", 2),
        ("imported", 3),
        ("latest", 4),
        ("latest~0", 4),
        ("latest~3", 1),
    ],
)
def test_a_name_a_prefix_a_label_or_counting_back(selector: str, epoch: int) -> None:
    """Each of them leads to one snapshot."""
    assert chosen(selector) == epoch


@pytest.mark.parametrize(
    ("selector", "epoch"),
    [
        ("@2026-03-14T00:00:00", 4),
        ("@2026-03-13T23:59", 3),
        ("@2026-03-13", 3),
        ("@2026-03-13T12", 3),
        ("@2026-03-13T12:00", 3),
        ("@2026-03-13T12-00", 3),
        ("@2026-03-13T12:00:00", 2),
        ("@2026-03-13T12:00:00Z", 2),
        ("@2026-03-13T12-00-00Z", 2),
        ("@2026-03-13T12:00:30.499999", 2),
        ("@2026-03-13T12:00:30.5", 3),
        ("@2026-03-13T07:00:00-05:00", 2),
        ("@2026-03-13T13:00+01:00", 3),
        ("@-1h", 4),
        ("@-61m", 3),
        ("@-1d", 1),
        ("@-0s", 4),
    ],
)
def test_a_time_leads_to_the_newest_not_later(selector: str, epoch: int) -> None:
    """A day means its end, a minute its end, a second its end, a fraction itself."""
    assert chosen(selector) == epoch


@pytest.mark.parametrize(
    "selector",
    [
        "@2026-03-12T23:59:58",
        "@-5w",
        "latest~4",
        "2027",
        "nothing",
        "",
        "@-99999999999w",
        "latest~" + 5000 * "9",
    ],
)
def test_nothing_that_fits_is_no_such_snapshot(selector: str) -> None:
    """Too early, too far back, unknown."""
    with pytest.raises(NoSuchSnapshot):
        chosen(selector)


def test_a_time_of_thousands_of_digits_is_refused_in_one_line() -> None:
    """Python would not read the number."""
    with pytest.raises(UsageError, match="cannot read the time"):
        chosen("@-" + 5000 * "9" + "s")


@pytest.mark.parametrize("selector", ["latest", "@-1h", "2026", "clean"])
def test_where_there_is_no_snapshot_it_is_said_how_to_take_one(selector: str) -> None:
    """To look at an empty list would help nobody."""
    with pytest.raises(NoSuchSnapshot, match="'statefs save' takes one"):
        choose(selector, [], 0)


def test_a_prefix_of_several_is_ambiguous() -> None:
    """The message names two of them."""
    with pytest.raises(AmbiguousSnapshot, match="2026-03-13T12-00-00Z and"):
        chosen("2026-03-13")


@pytest.mark.parametrize(
    "selector",
    ["@", "@noon", "@-2x", "@-h", "@2026-13-01", "@2026-03-13T25:00", "@9999-12-31", "@T12:00"],
)
def test_a_time_that_cannot_be_read_says_how_to_write_one(selector: str) -> None:
    """One line with examples, whatever was typed."""
    with pytest.raises(UsageError, match="2026-03-13"):
        chosen(selector)


@pytest.mark.parametrize("label", ["clean", "a b", "-2h", "2026-03-13", "é" * 127, "later"])
def test_labels_may_be_any_text(label: str) -> None:
    """Up to 255 bytes of UTF-8."""
    assert check_label(label) == label


@pytest.mark.parametrize(
    "label",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\0b",
        "@now",
        "latest",
        "latest~1",
        "é" * 128,
        "\udcff",
        "2026-03-13T12-00-00Z",
        "2026-03-13T12-00-00.000001Z",
    ],
)
def test_labels_that_could_not_be_folders_are_refused(label: str) -> None:
    """Or that mean something else already."""
    with pytest.raises(UsageError):
        check_label(label)
