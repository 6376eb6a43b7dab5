"""A repair that is killed anywhere leaves the old database with its log, or the new one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from statefs.layout import StoreLayout
from statefs.maintenance.repair import repair
from statefs.maintenance.repair.losses import Report
from statefs.maintenance.replacing import DONE, UNDER_WAY, end_replacement, replace_database
from statefs.maintenance.verify import verify
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.engine_store import EngineStore, SteppingClock, mirror, tree_of
from tests.unit.test_repair import zero
from tests.unit.test_repair_from_copies import leaf

FILES: Final = 300
"""Some pages of `inline`."""
LATE: Final = b"in the log alone"
CALLS: Final = ("rename", "unlink", "rmdir", "fsync")
"""Those that change what lies in the folders of the store, and their syncs; what SQLite writes is
thrown away with the folder of the repair."""
DATABASE: Final = ("meta.db", "meta.db-wal")

pytestmark = pytest.mark.damages_store


def trees(root: Path) -> list[dict[str, Any]]:
    """Return the tree of current and those of all snapshots."""
    with EngineStore(root) as engine:
        epochs = [each.epoch for each in engine.store.catalog.snapshots]
        found = [tree_of(engine, epoch) for epoch in (None, *epochs)]
    assert verify(StoreLayout(root)) == []
    return found


def bytes_of(layout: StoreLayout) -> list[bytes]:
    """Return the database and its log, as far as they are there."""
    paths = (layout.root / name for name in DATABASE)
    return [path.read_bytes() for path in paths if path.exists()]


@pytest.fixture
def broken(engine: EngineStore, tmp_path: Path) -> StoreLayout:
    """A store whose process was killed: the newest file is in the log, and a page is damaged."""
    for number in range(FILES):
        engine.file(f"file{number:03}", b"%d" % number * 100)
    engine.save()
    engine.database.checkpoint(restart=True)
    engine.file("late", LATE)
    layout = StoreLayout(tmp_path / "broken")
    mirror(engine.root, layout.root)
    assert (layout.root / "meta.db-wal").stat().st_size > 0
    return layout


def damaged(layout: StoreLayout) -> None:
    """Take a page of small content away."""
    zero(layout, leaf(layout, "inline", 0.5))


def no_database(layout: StoreLayout) -> None:
    """Take the database away, but not its log, which is worth nothing then."""
    layout.meta_db.unlink()


def told(report: Report) -> tuple[Any, ...]:
    """Return what a report says of losses."""
    return report.source, report.losses, report.more


def repaired(layout: StoreLayout, acknowledge: Acknowledge) -> None:
    """Repair a store; what is acknowledged is that a report was given."""
    repair(layout, clock=SteppingClock())
    acknowledge("told")


@pytest.mark.parametrize("damage", [damaged, no_database])
def test_a_repair_that_is_killed_anywhere_is_done_again(
    broken: StoreLayout, tmp_path: Path, damage: Callable[[StoreLayout], None]
) -> None:
    """With the same result and the same report; no byte of the old database and its log is lost."""
    damage(broken)
    old = bytes_of(broken)
    whole, layout = StoreLayout(tmp_path / "whole"), StoreLayout(tmp_path / "killed")
    mirror(broken.root, whole.root)
    report = repair(whole, clock=SteppingClock())
    wanted = trees(whole.root)
    assert ("late" in wanted[0]) is (damage is not no_database)
    mirror(broken.root, layout.root)
    states = set()
    for _ in each_kill(partial(repaired, layout), CALLS):
        is_new = layout.meta_db.exists() and bytes_of(layout) != old
        states.add((layout.meta_db.exists(), is_new))
        if not is_new:
            end_replacement(layout)
            assert bytes_of(layout) == old
        again = repair(layout, clock=SteppingClock())
        assert again.source == "meta.db" if is_new else told(again) == told(report)
        assert trees(layout.root) == wanted
        kept = sorted(layout.backups.iterdir())
        assert not any(path.name.startswith((UNDER_WAY, ".")) for path in kept)
        assert {*old} <= {path.read_bytes() for path in kept}
        mirror(broken.root, layout.root)
    assert states >= {(True, True), (False, False)}


@pytest.mark.parametrize("name", DATABASE)
def test_whoever_opens_the_store_puts_back_what_was_put_away(
    broken: StoreLayout, name: str
) -> None:
    """Also when that is interrupted in turn; the log comes first: none is opened without."""
    away = broken.backups
    away.mkdir()
    old, log = broken.meta_db, broken.root / "meta.db-wal"
    old.rename(away / f"{UNDER_WAY}2026-03-14T09-00-00Z.db")
    if name == "meta.db-wal":
        log.rename(away / f"{UNDER_WAY}2026-03-14T09-00-00Z.db-wal")
    before = {path.name: path.read_bytes() for path in [*away.iterdir(), *broken.root.glob("m*")]}
    place = StoreLayout(broken.root.with_name("killed"))
    mirror(broken.root, place.root)

    def opened(acknowledge: Acknowledge) -> None:
        end_replacement(place)
        acknowledge("opened")

    kills = 0
    for _ in each_kill(opened, CALLS):
        kills += 1
        assert not place.meta_db.exists() or (place.root / "meta.db-wal").exists()
        end_replacement(place)
        assert {*bytes_of(place)} == {*before.values()}
        mirror(broken.root, place.root)
    assert kills >= 3
    assert trees(broken.root)[0]["late"]["content"] == LATE
    assert [*away.iterdir()] == []


def test_a_new_database_that_was_put_there_stays(broken: StoreLayout, tmp_path: Path) -> None:
    """What was put away is named as replaced, and never comes back."""
    mirror(broken.root, tmp_path / "other")
    trees(tmp_path / "other")  # without a log
    broken.backups.mkdir()
    for name in DATABASE:
        kept = f"{UNDER_WAY}2026-03-14T09-00-00Z{name.removeprefix('meta')}"
        (broken.root / name).rename(broken.backups / kept)
    new = (tmp_path / "other" / "meta.db").read_bytes()
    broken.meta_db.write_bytes(new)
    end_replacement(broken)
    assert bytes_of(broken) == [new]
    assert sorted(path.name for path in broken.backups.iterdir()) == [
        f"{DONE}2026-03-14T09-00-00Z.db",
        f"{DONE}2026-03-14T09-00-00Z.db-wal",
    ]


def test_what_is_replaced_twice_in_a_second_is_kept_twice(broken: StoreLayout) -> None:
    """One never takes the name of the other."""
    broken.backups.mkdir()
    kept = []
    for content in (b"first", b"second", b"third"):
        (broken.root / "meta.db-wal").unlink(missing_ok=True)
        new = broken.root / "new"
        new.write_bytes(content)
        kept.append(replace_database(broken, new))
    assert len({*kept}) == 3
    assert [path.read_bytes() for path in kept[1:] if path] == [b"first", b"second"]
