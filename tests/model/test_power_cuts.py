"""Power cuts at every moment of short workloads: the short form of scripts/power_cuts.py."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw
import pytest

from tests.crash.cuts import (
    Bench,
    Cut,
    CutTally,
    bench,
    places_of_syncs,
    seen_without,
    try_all,
    try_one,
)
from tests.crash.disk import Loss
from tests.crash.meanwhile import PLACES
from tests.crash.sqlite_log import visible
from tests.crash.workloads import (
    BESIDE,
    OPERATIONS,
    STARTS,
    Workload,
    all_during,
    all_of_one,
    all_of_two,
    some_during,
    some_of_three,
)

PAIRS: Final = 12
THREES: Final = 3
SEED: Final = 4
"""Fixed: what is tried for the first time is tried by the script, not by a change's tests."""


@pytest.fixture(scope="module")
def store() -> Iterator[Bench]:
    """The store that each workload begins with."""
    with bench() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_operation_is_there_or_not_after_a_power_cut(store: Bench, operation: str) -> None:
    """On each kind of file, with its sync, and then closing the store."""
    total = CutTally()
    for workload in all_of_one():
        if operation in (name.removesuffix("!") for name in workload.operations):
            total.add(try_all(store, workload))
    assert total.found == []
    assert total.workloads == 3
    assert total.opened > total.workloads


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_what_lands_during_a_sync_takes_nothing_of_what_is_synced(store: Bench, place: str) -> None:
    """By fsync, by a save, by the tick, and before a file replaces another one."""
    for waiting in ("overwrite!", "overwrite,save", "append,tick", "overwrite,rename"):
        workload = Workload.parse(f"old:{waiting}&write.{place}")
        assert try_all(store, workload).found == []


def test_a_save_holds_what_is_removed_as_soon_as_it_has_begun(store: Bench) -> None:
    """Nobody owes its bytes any more, and the snapshot has them."""
    assert try_all(store, Workload.parse("old:append,save&unlink.before")).found == []


def test_what_lands_during_a_sync_is_among_the_workloads() -> None:
    """Each change of a file during each sync of each, at each place; what removes names, too."""
    for start in STARTS:
        workloads = {str(each) for each in all_during((start,))}
        assert len(workloads) == 3 * 4 * (4 * 5 + 3) + 2 * 4 * 3
        assert f"{start}:overwrite!&append.within" in workloads
        assert f"{start}:truncate,rename&write.after" in workloads
        assert f"{start}:write,save&unlink.before" in workloads
    assert len({*some_during(40, SEED)}) == 40


def test_opening_and_closing_lose_nothing(store: Bench) -> None:
    """Before the first operation and after the last."""
    assert try_all(store, Workload("small", ())).found == []


@pytest.mark.slow
def test_operations_together_lose_nothing_that_was_synced(store: Bench) -> None:
    """Some pairs, and some of three; the script tries all pairs."""
    total = CutTally()
    pairs = random.Random(SEED).sample([*all_of_two()], PAIRS)
    for workload in (*pairs, *some_of_three(THREES, SEED)):
        total.add(try_all(store, workload))
    assert total.found == []


@pytest.mark.slow
@pytest.mark.parametrize("beside", BESIDE)
def test_what_happens_beside_a_write_loses_nothing(store: Bench, beside: str) -> None:
    """The daemon's tick, checkpoint, gc and sealing; a worker that dies and is followed."""
    for operation in ("append", "prune"):
        assert try_all(store, Workload("old", (operation, beside))).found == []


def test_a_close_and_a_restore_pay_bytes_before_they_forget_who_owes_them(store: Bench) -> None:
    """Else the log may tell of a file whose new object is not there, and no mark says why."""
    assert try_all(store, Workload.parse("old:append")).found == []
    assert try_all(store, Workload.parse("old:write,restore")).found == []


def test_every_pair_is_among_the_workloads() -> None:
    """Fifteen operations, each pair of them; the first with its sync and without."""
    pairs = {tuple(name.removesuffix("!") for name in each.operations) for each in all_of_two()}
    assert len(pairs) == len(OPERATIONS) ** 2 == 225
    assert len([*all_of_two()]) == 3 * (15 + 11) * 15


def test_a_cut_that_failed_can_be_repeated_from_what_was_printed(store: Bench) -> None:
    """Workload, moment and loss are in one word."""
    cut = Cut(Workload("old", ("append!", "save")), 30, Loss.SOME, 1)
    assert Cut.parse(str(cut)) == cut
    assert try_one(store, cut) == []


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("old:append!", "objects.py:sync < fuse/durability.py:_sync_objects"),
        ("small:overwrite!", "connection.py:sync < fuse/durability.py:sync_names"),
        ("new:create,save", "durable.py:write_file < maintenance/store.py:write_document"),
    ],
)
def test_a_sync_that_is_left_out_is_seen(store: Bench, text: str, needle: str) -> None:
    """Of bytes, of the log, of a document: without it something that was promised is lost."""
    workload = Workload.parse(text)
    places = [place for place in places_of_syncs(store, [workload]) if needle in place]
    assert places
    assert all(seen_without(store, workload, place) for place in places)


def test_what_sqlite_finds_in_a_log_is_known(tmp_path: Path) -> None:
    """Pages of commits, not those behind the last one, nor behind one that is torn."""
    path = tmp_path / "db"
    database = apsw.Connection(str(path))
    database.pragma("journal_mode", "wal")
    database.pragma("wal_autocheckpoint", 0)
    database.execute("CREATE TABLE t (x)")
    database.execute("INSERT INTO t VALUES (zeroblob(20000))")
    log = Path(f"{path}-wal").read_bytes()
    first = visible(path.read_bytes(), log)
    database.execute("INSERT INTO t VALUES (zeroblob(30000))")
    longer = Path(f"{path}-wal").read_bytes()
    second = visible(path.read_bytes(), longer)
    torn = longer[: len(log) + 5000] + b"\1" + longer[len(log) + 5001 :]
    assert visible(path.read_bytes(), torn) == first != second
    database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
    assert path.read_bytes() == second == visible(second, longer)
    database.close()
