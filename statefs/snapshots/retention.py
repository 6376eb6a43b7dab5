"""Which snapshots are kept and which go, and why: pure rules, in the manner of restic and borg.

* A keep rule wants some snapshots. Where any keep rule is set, a snapshot that none wants goes;
  where none is set, every one stays, up to `max_snapshots`.
* `max_snapshots` comes after the keep rules: the oldest go first.
* A protected snapshot is never removed: it is pinned, has a label of `keep_labels`, the way back
  from something needs it, or it is labelled or taken before something risky while the policy
  protects those.
* The newest is never removed. A rule of periods that is not filled yet keeps the oldest, too.
* Hours, days, ISO weeks and months are those of UTC, as in the snapshots' names.
* `relative_to = "now"` counts the hours, days ... up to now, and ages from now; `"newest"` counts
  only periods that hold a snapshot, and ages from the newest one.

Which ones go for lack of space is decided here, too (`relieve`); how much space there is is
measured by others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from statefs.config import Retention as Policy
from statefs.errors import InvalidConfig
from statefs.hooks.results import CONSISTENCY_LABEL
from statefs.snapshots.documents import IMPORTED_LABEL, Pin
from statefs.units import duration_text

SECOND_NS: Final = 1_000_000_000
BEFORE: Final = "before-"
"""How the reasons of snapshots begin that were taken before something risky."""
NEWEST: Final = "newest"
OWN_LABELS: Final = frozenset((CONSISTENCY_LABEL, IMPORTED_LABEL))
"""What statefs says of a snapshot in labels, which is no wish of anybody's to keep it."""
NO_KEEP_RULE: Final = "no keep rule is set"
UNWANTED: Final = "no keep rule wants it"


def has_keep_rule(policy: Policy) -> bool:
    """Return whether any rule says what to keep, so that the rest goes."""
    counts = (policy.keep_last, *(getattr(policy, period.rule) for period in PERIODS))
    return any(counts) or bool(policy.keep_labels) or policy.keep_within_seconds > 0


def is_empty(policy: Policy) -> bool:
    """Return whether nothing could ever be pruned: no keep rule and no limit is set."""
    limits = (policy.max_snapshots, policy.max_store_bytes, policy.min_free_bytes)
    return not has_keep_rule(policy) and not any(limits)


def require_rules(policy: Policy) -> None:
    """Refuse a policy that says nothing.

    Raises:
        InvalidConfig: no keep rule and no limit is set: nothing could ever be pruned.
    """
    if is_empty(policy):
        raise InvalidConfig(
            "the retention policy is empty: set max_snapshots or a keep rule (keep_last,"
            " keep_daily, ...) in the section [retention] of statefs.toml"
        )


class Candidate(NamedTuple):
    """What the rules need to know of a snapshot; `epoch` orders and names it.

    `needed` says in words why the way back from an operation needs it, if it does.
    """

    epoch: int
    created_ns: int
    reason: str = "manual"
    labels: Mapping[str, str] = {}  # never written to
    pin: Pin | None = None
    needed: str = ""


@dataclass
class Decision:
    """What happens to a snapshot.

    Args:
        epoch: which snapshot.
        keep: whether it stays.
        reasons: every rule that speaks for what happens, in words; at least one.
        is_protected: whether neither a limit nor lack of space may remove it.
    """

    epoch: int
    keep: bool = False
    reasons: list[str] = field(default_factory=list)
    is_protected: bool = False

    def want(self, reason: str, *, protected: bool = False) -> None:
        """Keep it, for one more reason."""
        self.keep = True
        self.reasons.append(reason)
        self.is_protected = self.is_protected or protected


class Period(NamedTuple):
    """A rule that keeps one snapshot of each period.

    Args:
        rule: the policy's field.
        word: what a kept one is called.
        number: gives a moment's period; consecutive periods have consecutive numbers.
        text: names the period of a moment.
    """

    rule: str
    word: str
    number: Callable[[int], int]
    text: Callable[[datetime], str]


_HOUR_NS: Final = 3600 * SECOND_NS
_DAY_NS: Final = 24 * _HOUR_NS
_WEEK_NS: Final = 7 * _DAY_NS
_MONDAY_NS: Final = 3 * _DAY_NS
"""1970-01-01 was a Thursday: with three days more, weeks begin on Mondays."""


def _month(time_ns: int) -> int:
    moment = _moment(time_ns)
    return 12 * moment.year + moment.month


def _iso_week(moment: datetime) -> str:
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"


PERIODS: Final = (
    Period("keep_hourly", "hourly", lambda ns: ns // _HOUR_NS, lambda m: f"{m:%Y-%m-%dT%H}"),
    Period("keep_daily", "daily", lambda ns: ns // _DAY_NS, lambda m: f"{m:%Y-%m-%d}"),
    Period("keep_weekly", "weekly", lambda ns: (ns + _MONDAY_NS) // _WEEK_NS, _iso_week),
    Period("keep_monthly", "monthly", _month, lambda m: f"{m:%Y-%m}"),
)


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC)


def decide(snapshots: Sequence[Candidate], policy: Policy, now_ns: int) -> list[Decision]:
    """Return what happens to each snapshot, and why.

    Args:
        snapshots: n snapshots, oldest first.
        policy: the rules.
        now_ns: the present.

    Returns:
        n decisions in the same order; at least one keeps, where n > 0.

    Raises:
        InvalidConfig: the policy says nothing.
    """
    require_rules(policy)
    decisions = [_protected(snapshot, policy, now_ns) for snapshot in snapshots]
    if not snapshots:
        return []
    decisions[-1].want(NEWEST)
    if has_keep_rule(policy):
        _apply_keep_rules(snapshots, decisions, policy, now_ns)
    else:
        for decision in decisions:
            if not decision.keep:
                decision.want(NO_KEEP_RULE)
    for snapshot, decision in zip(snapshots, decisions, strict=True):
        if not decision.keep:
            decision.reasons = [UNWANTED, *_ended_pin(snapshot, now_ns)]
    if policy.max_snapshots:
        _limit(decisions, policy.max_snapshots)
    return decisions


def _protected(snapshot: Candidate, policy: Policy, now_ns: int) -> Decision:
    """Return a decision that knows only what protects the snapshot."""
    decision = Decision(snapshot.epoch)
    if snapshot.pin is not None and snapshot.pin.holds(now_ns):
        decision.want(str(snapshot.pin), protected=True)
    if snapshot.needed:
        decision.want(snapshot.needed, protected=True)
    for pattern in policy.keep_labels:
        fitting = _fitting_label(pattern, snapshot.labels)
        if fitting is not None:
            decision.want(f"has the label {fitting} (keep_labels)", protected=True)
    if policy.protect_labelled and snapshot.labels.keys() - OWN_LABELS:
        decision.want("labelled", protected=True)
    if policy.protect_before and snapshot.reason.startswith(BEFORE):
        decision.want(f"taken for safety: {snapshot.reason}", protected=True)
    return decision


def _fitting_label(pattern: str, labels: Mapping[str, str]) -> str | None:
    for key, value in labels.items():
        label = f"{key}={value}"
        if key in OWN_LABELS and pattern.partition("=")[0] != key:
            continue  # `*` does not mean it
        if fnmatchcase(label if "=" in pattern else key, pattern):
            return label
    return None


def _ended_pin(snapshot: Candidate, now_ns: int) -> list[str]:
    pin = snapshot.pin
    if pin is None or pin.holds(now_ns):
        return []
    return [f"the pin of {pin.by} ended {pin.until}"]


def _apply_keep_rules(
    snapshots: Sequence[Candidate], decisions: Sequence[Decision], policy: Policy, now_ns: int
) -> None:
    counted_from_ns = now_ns if policy.relative_to == "now" else snapshots[-1].created_ns
    last = range(max(0, len(snapshots) - policy.keep_last), len(snapshots))
    for i in last:
        decisions[i].want(f"one of the last {policy.keep_last}")
    if policy.keep_within_seconds:
        within_ns = int(policy.keep_within_seconds * SECOND_NS)
        for snapshot, decision in zip(snapshots, decisions, strict=True):
            if snapshot.created_ns >= counted_from_ns - within_ns:
                decision.want(f"within {duration_text(policy.keep_within_seconds)}")
    for period in PERIODS:
        wanted = getattr(policy, period.rule)
        if wanted:
            since = period.number(now_ns) - wanted if policy.relative_to == "now" else None
            _keep_periods(snapshots, decisions, period, wanted, since)


def _keep_periods(
    snapshots: Sequence[Candidate],
    decisions: Sequence[Decision],
    period: Period,
    wanted: int,
    since: int | None,
) -> None:
    """Keep the newest snapshot of each of the `wanted` newest periods.

    Args:
        since: only of periods with a higher number; None counts periods that hold a snapshot.
    """
    kept: set[int] = set()
    for snapshot, decision in zip(reversed(snapshots), reversed(decisions), strict=True):
        number = period.number(snapshot.created_ns)
        if number in kept:
            continue
        if (since is None and len(kept) == wanted) or (since is not None and number <= since):
            continue
        kept.add(number)
        decision.want(f"{period.word} {period.text(_moment(snapshot.created_ns))}")
    if len(kept) < wanted and not decisions[0].keep:
        decisions[0].want(
            f"oldest, kept as filler: {period.rule} has {len(kept)} of {wanted} {period.word} ones"
        )


def _limit(decisions: Sequence[Decision], most: int) -> None:
    """Remove the oldest unprotected ones of those kept until no more than `most` are left."""
    surplus = sum(decision.keep for decision in decisions) - most
    for decision in _removable(decisions):
        if surplus <= 0:
            return
        if decision.keep:
            _overrule(decision, f"over max_snapshots {most}")
            surplus -= 1


def _overrule(decision: Decision, why: str) -> None:
    """Remove what the keep rules wanted."""
    said = [reason for reason in decision.reasons if reason != NO_KEEP_RULE]
    decision.reasons = [why, *(f"although {reason}" for reason in said)]
    decision.keep = False


def _removable(decisions: Sequence[Decision]) -> list[Decision]:
    return [decision for decision in decisions[:-1] if not decision.is_protected]


def relieve(
    decisions: Sequence[Decision],
    missing_bytes: int,
    why: str,
    freed_by: Callable[[Collection[int]], int],
) -> None:
    """Remove more, the oldest unprotected ones first, until deleting frees what is missing.

    Where deleting all of them would not be enough, those go that free anything at all: a disk that
    others have filled costs no history for nothing.

    Args:
        decisions: of `decide`, oldest first; the newest and protected ones stay.
        missing_bytes: how much room is missing.
        why: in words.
        freed_by: returns the bytes that deleting the snapshots of some epochs frees.
    """
    gone = [decision.epoch for decision in decisions if not decision.keep]
    candidates = [decision for decision in _removable(decisions) if decision.keep]
    freed, enough = freed_by(gone), 0
    for count, decision in enumerate(candidates, 1):
        if freed >= missing_bytes:
            break
        gone.append(decision.epoch)
        more = freed_by(gone)
        if more > freed:
            freed, enough = more, count
    for decision in candidates[:enough]:
        _overrule(decision, why)
