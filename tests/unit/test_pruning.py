"""Pruning and pins on a store without a mount: what is decided is done, pins hold."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from statefs.errors import InvalidConfig, SnapshotPinned, UsageError
from statefs.maintenance import pruning, steps
from statefs.maintenance.commands import Commands
from statefs.snapshots.catalog import Snapshot
from statefs.units import size_text
from tests.unit.engine_store import EngineStore

MIB = 1 << 20
HOUR_NS = 3600 * 1_000_000_000


class Asker:
    """Whoever asks for an operation and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Pass over how far it is."""


def settings(engine: EngineStore, text: str) -> None:
    """Write the store's statefs.toml."""
    engine.store.layout.config.write_text(text)


def ask(engine: EngineStore, op: str, **arguments: Any) -> Any:
    """Do an operation as the daemon and the command line do."""
    return steps.run(Commands(engine.store).start(op, arguments, Asker()))


def pin(engine: EngineStore, snapshot: str = "latest", until: str = "") -> Any:
    """Pin a snapshot in ada's name."""
    return ask(engine, "pin", snapshot=snapshot, reason="audit", by="ada", until=until)


def names(engine: EngineStore) -> list[str]:
    """Return the names of all snapshots."""
    return [snapshot.name for snapshot in engine.store.catalog.snapshots]


def newest(engine: EngineStore) -> Snapshot:
    """Return the newest snapshot."""
    return engine.store.catalog.snapshots[-1]


def index(engine: EngineStore) -> Any:
    """Return the index.json that lies in the store."""
    return json.loads(engine.store.layout.index_json.read_bytes())


def test_pruning_does_what_it_says(engine: EngineStore) -> None:
    """A dry run changes nothing and decides the same; then those go, with their documents."""
    for _ in range(4):
        engine.save()
    before = names(engine)
    settings(engine, "[retention]\nkeep_last = 2\n")
    dry = ask(engine, "prune", dry_run=True)
    assert names(engine) == before and not dry["done"]
    done = ask(engine, "prune", dry_run=False)
    assert done == dry | {"done": True}
    assert [each["keep"] for each in done["snapshots"]] == [False, False, True, True]
    assert done["snapshots"][0]["reasons"] == ["no keep rule wants it"]
    assert names(engine) == before[2:]
    assert [each["name"] for each in index(engine)["snapshots"]] == before[2:]
    documents = {path.stem for path in engine.store.layout.snapshots.iterdir()}
    assert documents == set(before[2:])
    engine.store.collect()


def test_index_json_tells_the_policy(engine: EngineStore) -> None:
    """That of statefs.toml, from the next change of the list on."""
    engine.save()
    assert index(engine)["retentionPolicy"]["maxSnapshots"] == 100
    settings(engine, '[retention]\nmax_snapshots = 7\nkeep_within = "2h"\nmin_free = "1MB"\n')
    engine.save()
    policy = index(engine)["retentionPolicy"]
    assert policy["maxSnapshots"] == 7 and policy["keepWithinSeconds"] == 7200
    assert policy["minFreeBytes"] == 1_000_000


def test_nothing_is_pruned_under_settings_that_are_wrong(engine: EngineStore) -> None:
    """A slip of the pen must not cost snapshots; the last right policy is still told."""
    settings(engine, "[retention]\nmax_snapshots = 9\n")
    engine.save()
    settings(engine, "[retention]\nmax_snapshot = 1\n")
    engine.save()
    with pytest.raises(InvalidConfig, match="did you mean max_snapshots"):
        ask(engine, "prune", dry_run=False)
    assert len(names(engine)) == 2
    assert index(engine)["retentionPolicy"]["maxSnapshots"] == 9


def test_an_empty_policy_is_refused(engine: EngineStore) -> None:
    """Before anything is deleted."""
    engine.save()
    settings(engine, "[retention]\nmax_snapshots = 0\n")
    with pytest.raises(InvalidConfig, match="policy is empty"):
        ask(engine, "prune", dry_run=False)


def test_a_pinned_snapshot_is_not_deleted(engine: EngineStore) -> None:
    """The refusal says who pinned it and why, and the documents show it."""
    engine.save()
    document = pin(engine)
    assert (document["pin"]["by"], document["pin"]["reason"]) == ("ada", "audit")
    with pytest.raises(SnapshotPinned, match="pinned by ada: audit"):
        ask(engine, "delete", snapshot="latest")
    stored = json.loads(engine.store.document_path(newest(engine)).read_bytes())
    assert stored["pin"] == document["pin"] == index(engine)["snapshots"][0]["pin"]
    assert ask(engine, "unpin", snapshot="latest")["pin"] is None
    ask(engine, "delete", snapshot="latest")
    assert names(engine) == []


def test_a_pinned_snapshot_is_not_pruned(engine: EngineStore) -> None:
    """Not even one that no rule wants."""
    for _ in range(3):
        engine.save()
    pin(engine, "latest~2")
    settings(engine, "[retention]\nmax_snapshots = 1\n")
    plan = ask(engine, "prune", dry_run=False)
    assert [each["keep"] for each in plan["snapshots"]] == [True, False, True]
    assert plan["snapshots"][0]["reasons"][0] == "pinned by ada: audit"


def test_a_pin_ends(engine: EngineStore) -> None:
    """At the time that was said, it counts for nothing, and another one can be set."""
    engine.save()
    assert pin(engine, until="1h")["pin"]["until"].endswith("Z")
    with pytest.raises(SnapshotPinned, match="already"):
        pin(engine)
    engine.clock.time_ns += 2 * HOUR_NS
    pin(engine, until="1d")
    engine.clock.time_ns += 48 * HOUR_NS
    ask(engine, "delete", snapshot="latest")


def test_a_pin_outlives_the_process(engine: EngineStore) -> None:
    """It is in the database before anybody is told that it is set."""
    engine.save()
    pin(engine)
    with engine.killed() as next_one, pytest.raises(SnapshotPinned):
        ask(next_one, "delete", snapshot="latest")


@pytest.mark.parametrize(
    ("reason", "until", "complaint"),
    [
        (" ", "", "needs a reason"),
        ("x" * 1001, "", "at most 1000"),
        ("why", "soon", "cannot read the time 'soon'"),
        ("why", "2001-01-01", "has passed"),
    ],
)
def test_what_is_no_pin(engine: EngineStore, reason: str, until: str, complaint: str) -> None:
    """Refused with what to write instead, and nothing is pinned."""
    engine.save()
    with pytest.raises(UsageError, match=complaint):
        ask(engine, "pin", snapshot="latest", reason=reason, by="ada", until=until)
    assert newest(engine).pin is None
    with pytest.raises(UsageError, match="not pinned"):
        ask(engine, "unpin", snapshot="latest")


def rewritten(engine: EngineStore, saves: int) -> None:
    """Make a file, and save it that often, wholly rewritten each time: a MiB per snapshot."""
    ino = engine.file("big", os.urandom(MIB))
    for _ in range(saves):
        engine.save()
        engine.data.write(ino, 0, os.urandom(MIB))


def test_a_store_that_is_too_large_is_pruned(engine: EngineStore) -> None:
    """The oldest go, as many as are needed, and the store is as small as it was to be."""
    rewritten(engine, 8)
    engine.store.sync()
    most = pruning.bytes_on_disk(engine.store.layout.root) - 3 * MIB
    settings(engine, f"[retention]\nmax_store_bytes = {most}\n")
    plan = ask(engine, "prune", dry_run=False)
    keep = [each["keep"] for each in plan["snapshots"]]
    assert keep == [False] * (8 - sum(keep)) + [True] * sum(keep)
    assert 3 <= 8 - sum(keep) <= 4
    assert plan["snapshots"][0]["reasons"][0].startswith("the store takes")
    engine.store.collect()
    assert pruning.bytes_on_disk(engine.store.layout.root) <= most
    assert ask(engine, "prune", dry_run=True)["shortages"] == []


def test_copies_of_the_database_do_not_count_for_max_store_bytes(engine: EngineStore) -> None:
    """No snapshot goes because of them: that would not make them smaller."""
    rewritten(engine, 2)
    engine.store.sync()
    backups = engine.store.layout.backups
    backups.mkdir(exist_ok=True)
    most = pruning.bytes_on_disk(engine.store.layout.root, backups) + MIB
    (backups / "meta-v4-2026-01-01T00-00-00Z.db").write_bytes(bytes(2 * MIB))
    settings(engine, f"[retention]\nmax_store_bytes = {most}\n")
    plan = ask(engine, "prune", dry_run=True)
    assert (plan["removed"], plan["shortages"]) == (0, [])
    assert pruning.bytes_on_disk(engine.store.layout.root) > most
    (backups / "meta-v4-2026-01-01T00-00-00Z.db").unlink()


def test_a_full_disk_is_relieved(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under min_free the oldest go until what they free is enough."""
    rewritten(engine, 5)
    disk = os.statvfs(engine.store.layout.root)
    free = disk.f_bavail * disk.f_frsize
    least = free + MIB + MIB // 2
    monkeypatch.setattr(os, "statvfs", lambda _: disk)  # others use the disk, too
    settings(engine, f"[retention]\nmin_free = {least}\n")
    plan = ask(engine, "prune", dry_run=False)
    assert [each["keep"] for each in plan["snapshots"]] == [False, False, True, True, True]
    why = f"{size_text(free)} free, min_free is {size_text(least)}"
    assert plan["snapshots"][0]["reasons"] == [why]
    engine.store.collect()


def test_sizes_are_told_by_name(engine: EngineStore) -> None:
    """One number for each snapshot."""
    rewritten(engine, 2)
    told = ask(engine, "sizes")
    assert list(told) == names(engine)
    assert all(MIB <= size < MIB + 8192 for size in told.values())
