"""Names of snapshots and the ways to say which one is meant. Pure functions.

A snapshot's name is the UTC time of its save with colons as hyphens (`2026-03-13T12-00-00Z`); a
second one in the same second gets a fraction. A selector is what a person types: a name, a unique
prefix of one, a label, `latest`, `latest~2`, `@-2h` or `@TIME`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from statefs.errors import AmbiguousSnapshot, NoSuchSnapshot, UsageError

LATEST: Final = "latest"
CURRENT: Final = "current"
"""Stands for the living tree where a snapshot could be named too; no snapshot is called so."""
LABEL_BYTES_MAX: Final = 255
_AGO: Final = re.compile(r"-(?:(\d{1,18})([smhdw]))")
_AHEAD: Final = re.compile(r"\+?(\d{1,6})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_STEPS: Final = (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))
"""How long the moment lasts that a time with 0, 1 or 2 colons names."""
_ZONE: Final = re.compile(r"[+-]\d\d(?::?\d\d)?$")
"""A time's distance from UTC."""
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?Z")
_BACK: Final = re.compile(r"latest(?:~(\d{1,18}))?")
"""With fewer digits than Python refuses to read."""


class Named(NamedTuple):
    """What choosing among snapshots needs to know of each."""

    epoch: int
    name: str
    label: str | None
    labels: dict[str, str]
    created_ns: int


def name_for(time_ns: int, taken: set[str]) -> str:
    """Return a free name for a snapshot saved at `time_ns`."""
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H-%M-%S")
    name = f"{moment}Z"
    micros = time_ns // 1000 % 1_000_000
    while name in taken:
        name = f"{moment}.{micros:06d}Z"
        micros += 1
    return name


def is_name(text: str) -> bool:
    """Return whether a text is one that `name_for` could return."""
    return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d{6})?Z", text) is not None


def check_label(label: str) -> str:
    """Return `label` if it can be a folder's name in snapshots/ and nothing else is meant by it.

    Raises:
        UsageError: it is empty, too long, no UTF-8, has a slash, is a selector, or looks like the
            name of a snapshot.
    """
    try:
        data = label.encode()
    except UnicodeEncodeError:
        raise UsageError("a label must be UTF-8 text") from None
    if not label or len(data) > LABEL_BYTES_MAX or "/" in label or "\0" in label:
        raise UsageError("a label must have 1 to 255 bytes and no slash")
    is_selector = label.startswith("@") or _BACK.fullmatch(label) or _NAME.fullmatch(label)
    if is_selector or label in (".", "..", CURRENT):
        raise UsageError(f"the label '{label}' means something else: choose another one")
    return label


def choose(selector: str, snapshots: Sequence[Named], now_ns: int) -> Named:
    """Return the snapshot that a selector means.

    Args:
        snapshots: all that may be meant, oldest first.

    Raises:
        NoSuchSnapshot: none fits; AmbiguousSnapshot: several do; UsageError: it cannot be read.
    """
    if not snapshots:
        raise NoSuchSnapshot(f"no snapshot '{selector}', there is none: 'statefs save' takes one")
    back = _BACK.fullmatch(selector)
    if back:
        steps = int(back[1] or 0)
        if steps >= len(snapshots):
            raise NoSuchSnapshot(
                f"no snapshot '{selector}', there are {len(snapshots)}: 'statefs list' shows them"
            )
        return snapshots[-1 - steps]
    if selector.startswith("@"):
        return not_later(selector[1:], snapshots, now_ns)
    for snapshot in snapshots:
        if selector in (snapshot.name, snapshot.label) or selector == snapshot.labels.get("name"):
            return snapshot
    fitting = [snapshot for snapshot in snapshots if snapshot.name.startswith(selector)]
    if selector and len(fitting) > 1:
        raise AmbiguousSnapshot(
            f"'{selector}' fits {len(fitting)} snapshots, the first {fitting[0].name} and"
            f" {fitting[1].name}: give more of the name"
        )
    if not fitting or not selector:
        raise NoSuchSnapshot(f"no snapshot '{selector}': 'statefs list' shows them all")
    return fitting[0]


def not_later(moment: str, snapshots: Sequence[Named], now_ns: int) -> Named:
    """Return the newest snapshot not later than a moment: `-2h`, or a time in ISO 8601 (UTC).

    A date alone means its end, a minute its end: what a person sees as "on that day".
    """
    limit_ns = _moment_ns(moment, now_ns)
    fitting = [snapshot for snapshot in snapshots if snapshot.created_ns < limit_ns]
    if not fitting:
        raise NoSuchSnapshot(f"no snapshot is as old as @{moment}: 'statefs list' shows them all")
    return fitting[-1]


def time_ns(text: str) -> int:
    """Return the time that `iso_time` wrote."""
    return (datetime.fromisoformat(text) - _START) // timedelta(microseconds=1) * 1000


def until_ns(text: str, now_ns: int) -> int:
    """Return the time that the end of something means: `7d` from now, or a time in ISO 8601 (UTC).

    A date alone means its end.

    Raises:
        UsageError: it cannot be read, or has passed.
    """
    ahead = _AHEAD.fullmatch(text)
    if ahead:
        return (now_ns // 1_000_000_000 + int(ahead[1]) * _SECONDS[ahead[2]]) * 1_000_000_000
    try:
        end_ns = _moment_ns(text, now_ns)
    except UsageError:
        raise UsageError(
            f"cannot read the time '{text}': write 12h, 7d, 2026-12-31 or 2026-12-31T12:00"
        ) from None
    if end_ns <= now_ns:
        raise UsageError(f"the time '{text}' has passed")
    return end_ns


def _moment_ns(moment: str, now_ns: int) -> int:
    """Return the first nanosecond after the moment meant."""
    ago = _AGO.fullmatch(moment)
    if ago:
        return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000_000 + 1
    text = moment.replace("Z", "+00:00")
    date, _, clock = text.partition("T")
    clock = re.sub(
        r"^(\d\d)-(\d\d)(?:-(\d\d))?", lambda m: ":".join(filter(None, m.groups())), clock
    )
    step = _STEPS[min(_ZONE.sub("", clock).count(":"), 2)] if clock else timedelta(days=1)
    if "." in clock:
        step = timedelta(microseconds=1)
    try:
        start = datetime.fromisoformat(f"{date}T{clock}" if clock else date)
        end = (start if start.tzinfo else start.replace(tzinfo=UTC)) + step
    except (ValueError, OverflowError):
        raise UsageError(
            f"cannot read the time @{moment}: write @-2h, @2026-03-13 or @2026-03-13T12:00"
        ) from None
    return (end - _START) // timedelta(microseconds=1) * 1000
