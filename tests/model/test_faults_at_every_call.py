"""A disk that fails at each call of an operation: the short form of scripts/call_faults.py."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

import pytest

from tests.crash.call_faults import (
    SYNC,
    CallFault,
    FaultBench,
    all_workloads,
    fault_bench,
    faults_of,
    try_faults_in_rows,
)
from tests.crash.calls import ANSWERS, SHORT, SQLITE_SYNC
from tests.crash.workloads import OPERATIONS, STARTS, Workload

KEPT: Final = 13
"""Each so manieth fault is tried here; no divisor of how many answers a call has."""
WORKLOADS: Final = tuple(
    each
    for number, each in enumerate(all_workloads())
    if len(each.operations) > 1
    or each.start not in STARTS
    or each.start == STARTS[number % len(STARTS)]
)
"""Of those of one operation one in three; each operation is among them."""


@pytest.fixture(scope="module")
def bench() -> Iterator[FaultBench]:
    """The store that each workload begins with."""
    with fault_bench() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_a_call_that_fails_costs_nothing_but_its_operation(
    bench: FaultBench, workload: Workload
) -> None:
    """It succeeds, or is refused as the disk says; the store goes on, and is whole afterwards."""
    tally = try_faults_in_rows(bench, workload, KEPT)
    assert tally.found == []
    assert tally.faults > 0


def test_each_operation_is_tried() -> None:
    """With all three kinds of file by the script, with one of them here."""
    tried = {name.removesuffix("!") for each in WORKLOADS for name in each.operations}
    assert tried >= {*OPERATIONS, "open", "close", "read", "seal", "tick", "checkpoint", "collect"}


def test_calls_of_each_kind_are_known(bench: FaultBench) -> None:
    """Python's, libc's and SQLite's; each is answered in each way that its manual names."""
    seen = {}
    for text in ("old:append!", "old:save", "old:prune,collect", "old:append,close", "killed:open"):
        workload = Workload.parse(text)
        calls = bench.calls_of(workload)
        faults = [*faults_of(workload, calls)]
        seen.update({call.kind: call.answers for call in calls if call.kind != SQLITE_SYNC})
        assert {*["EIO", "ENOSPC", "EDQUOT", "EINTR"], SHORT, SYNC} >= {f.answer for f in faults}
    assert {*ANSWERS} - {*seen} <= {"allocate", "punch"}, "only on a full disk, or after merging"
    assert all("EIO" in answers for answers in seen.values())


def test_a_fault_can_be_repeated_from_what_was_printed(bench: FaultBench) -> None:
    """Workload, call and answer are in one word; a disk that stays full has a plus."""
    for text in ("old:append!@17/EIO", "old:save@12+/ENOSPC", "small:write!@1/sync"):
        assert str(CallFault.parse(text)) == text
    run = bench.tried([CallFault.parse("old:append!@17/EIO")])
    assert (run.hits, run.problems) == (1, [])


@pytest.mark.parametrize("answer", ["EIO", "EINTR", SHORT])
def test_who_reads_gets_the_bytes_or_an_error(bench: FaultBench, answer: str) -> None:
    """Never a part of them, nor what an interrupted call has left."""
    workload = Workload.parse("old:read")
    calls = bench.calls_of(workload)
    for fault in faults_of(workload, calls):
        if fault.answer == answer:
            run = bench.tried([fault])
            assert run.problems == []
            assert run.refused == (answer == errno.errorcode[errno.EIO])
