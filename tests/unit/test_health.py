from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from statefs.config import Duration, Health, Size
from statefs.daemon.watching import Watcher
from statefs.errors import Unhealthy
from statefs.telemetry.health import checks
from statefs.telemetry.kept_trend import read_trend, write_trend
from statefs.telemetry.trend import SAMPLE_SECONDS, WINDOW_SAMPLES, DiskTrend
from tests.unit.cli_fakes import call
from tests.unit.engine_store import EngineStore

Capture = pytest.CaptureFixture[str]
WELL: dict[str, Any] = {
    "mounted": True, "mount_point": "/srv/state", "mount_options": "", "stale": False,
    "writable": True, "not_writable": None, "snapshots": 3, "last_save_age_seconds": 60.0,
    "free_bytes": 10**9, "disk_bytes": 10**10, "free_bytes_per_hour": None, "unsynced_bytes": 5000,
    "seal_backlog": 2, "unsealable": 0, "damaged": 0, "damages_seen": 0, "restarts": 2,
}  # fmt: skip


def unwell(limits: Health = Health(), **status: Any) -> dict[str, str]:  # noqa: B008 - frozen
    """Return what fails, and how it is told, where a state is well but for some things."""
    return {check.check: check.what for check in checks(WELL | status, limits) if not check.ok}


def test_a_state_that_is_well_fails_no_check() -> None:
    """Without limits of one's own; each check says how it is."""
    assert unwell() == {}
    assert all(check.what for check in checks(WELL, Health()))


@pytest.mark.parametrize(
    ("status", "check", "said"),
    [
        ({"mounted": False}, "mounted", "no"),
        ({"mounted": False, "stale": True}, "mounted", "statefs mount --repair"),
        ({"worker_pid": 7, "supervisor_pid": None}, "mounted", "unmount and mount again"),
        ({"writable": False, "not_writable": "the disk is full"}, "writable", "the disk is full"),
        ({"free_bytes": 10**7}, "disk", "min_free is 95 MiB"),
        ({"unsealable": 1}, "seals", "1 cannot be sealed"),
        ({"damaged": 2}, "damage", "2 found by the scrub"),
        ({"damages_seen": 1}, "damage", "1 met"),
    ],
)
def test_what_is_wrong_without_any_settings(status: dict[str, Any], check: str, said: str) -> None:
    """One check fails, and says what is wrong."""
    failing = unwell(**status)
    assert list(failing) == [check] and said in failing[check]


@pytest.mark.parametrize(
    ("limits", "check", "said"),
    [
        (Health(max_save_age_seconds=Duration(59)), "last save", "max_save_age is 59 s"),
        (Health(min_free_bytes=Size(10**9 + 1)), "disk", "min_free is"),
        (Health(max_unsynced_bytes=Size(4999)), "unsynced", "max_unsynced is 4.9 KiB"),
        (Health(max_seal_backlog=1), "seals", "max_seal_backlog is 1"),
        (Health(max_restarts=1), "restarts", "max_restarts is 1"),
    ],
)
def test_limits_are_passed_by_one_more(limits: Health, check: str, said: str) -> None:
    """What is at its limit is well, what is beyond fails and names the setting."""
    failing = unwell(limits)
    assert list(failing) == [check] and said in failing[check]
    at_limit = Health(
        max_save_age_seconds=Duration(60), min_free_bytes=Size(10**9), max_restarts=2,
        max_unsynced_bytes=Size(5000), max_seal_backlog=2,
    )  # fmt: skip
    assert unwell(at_limit) == {}


def test_a_state_that_was_never_saved_is_too_old_for_any_limit() -> None:
    """And well where there is none."""
    assert unwell(last_save_age_seconds=None) == {}
    limits = Health(max_save_age_seconds=Duration(10**6))
    assert unwell(limits, last_save_age_seconds=None) == {"last save": "never"}


def test_a_disk_that_will_be_full_soon_is_low() -> None:
    """Where full_within says so; how long it takes is told in any case."""
    limits = Health(full_within_seconds=Duration(3 * 3600))
    falling: dict[str, Any] = {"free_bytes_per_hour": -(10**9) // 2}
    assert unwell(**falling) == {}
    assert "full in 2 hours" in unwell(limits, **falling)["disk"]
    assert unwell(limits, free_bytes_per_hour=-(10**8)) == {}
    assert unwell(limits, free_bytes_per_hour=10**9) == {}


def test_a_read_only_mount_is_well() -> None:
    """Somebody wanted it so."""
    status: dict[str, Any] = {"writable": False, "not_writable": "it is mounted read-only"}
    assert unwell(**status, mount_options="noexec,ro") == {}
    assert list(unwell(**status, mount_options="noexec,allow_root")) == ["writable"]


def test_a_trend_takes_some_minutes() -> None:
    """Then it is the slope of all samples; a single outlier does not turn it."""
    trend = DiskTrend()
    assert trend.bytes_per_hour is None
    for minute in range(5):
        trend.add(minute * 60.0, 10**9 - minute * 1000)
        assert trend.bytes_per_hour is None
    for minute in range(5, 121):
        trend.add(minute * 60.0, 10**9 - minute * 1000)
        trend.add(minute * 60.0 + 1, 0)
    assert trend.bytes_per_hour == -60_000


def test_a_trend_forgets_what_is_old_or_of_the_future() -> None:
    """A day back, and what a clock has said that has been put back since."""
    trend = DiskTrend([(0.0, 5), (90_000.0, 4), (100_000.0, 3), (200_000.0, 2)], 100_001.0)
    assert trend.samples == [(90_000.0, 4), (100_000.0, 3)]
    assert not trend.add(100_299.0, 1)
    assert trend.add(100_300.0, 1)
    assert trend.add(95_000.0, 9)
    assert trend.samples == [(90_000.0, 4), (95_000.0, 9)]
    for number in range(WINDOW_SAMPLES + 5):
        trend.add(100_000.0 + number * SAMPLE_SECONDS, number)
    assert len(trend.samples) == WINDOW_SAMPLES


def test_the_trend_is_known_to_the_next_process(tmp_path: Path) -> None:
    """Unless the disk is another one by its size, or the file is damaged."""
    path = tmp_path / "trend.json"
    assert read_trend(path, 1000, 0.0).samples == []
    write_trend(path, 1000, [(10.0, 500), (310.0, 400)])
    assert read_trend(path, 1000, 400.0).bytes_per_hour == -1200
    assert read_trend(path, 2000, 400.0).samples == []
    write_trend(path, 1000, [(310.0, 500), (10.0, 400)])
    assert read_trend(path, 1000, 400.0).samples == []
    for text in ("{", '{"diskBytes": 1000, "samples": [[1]]}', "[" * 100_000, '{"samples": "x"}'):
        path.write_text(text)
        assert read_trend(path, 1000, 400.0).samples == []


async def test_a_watcher_keeps_the_trend(engine: EngineStore) -> None:
    """A new sample is written down, and the store knows it when it is opened again."""
    watcher = Watcher(engine.store, dict)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        with trio.fail_after(20):
            while not engine.store.layout.trend_json.exists():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    disk = os.statvfs(engine.root)
    size = disk.f_blocks * disk.f_frsize
    kept = read_trend(engine.store.layout.trend_json, size, time.time())
    assert kept.samples == engine.store.trend.samples
    assert len(kept.samples) == 1


def test_what_changes_is_told_once(engine: EngineStore) -> None:
    """When it ceases to be well, and when it is well again; the disk has an event of its own."""
    watcher = Watcher(engine.store, lambda: {"mounted": True, "restarts": 3})
    bad = Health(max_restarts=2, min_free_bytes=Size(1 << 60))
    for limits in (Health(min_free_bytes=Size(0)), bad, bad, Health(min_free_bytes=Size(0))):
        watcher.look(0.0, limits)
    told = [(each["event"], each.get("check")) for each in engine.store.kept_events.after(0)]
    assert told == [
        ("disk:low", None),
        ("health:changed", "restarts"),
        ("health:changed", "disk"),
        ("health:changed", "restarts"),
    ]
    low, bad_restarts, _, _ = engine.store.kept_events.after(0)
    assert low["free_bytes"] < low["total_bytes"] and "min_free" in low["why"]
    assert bad_restarts["ok"] is False and "max_restarts" in bad_restarts["what"]


def test_the_command_has_one_line_for_each_check(tmp_path: Path, capsys: Capture) -> None:
    """A state that is not mounted is not well; what --json prints says the same."""
    state = tmp_path / "state"
    assert call(capsys, "init", state).exit_code == 0
    (tmp_path / "state.store" / "statefs.toml").write_text("[health]\nmin_free = 0\n")
    said = call(capsys, "health", state)
    assert said.exit_code == Unhealthy.exit_code
    lines = said.out.splitlines()
    assert lines[0].split() == ["FAIL", "mounted", "no"]
    assert all(line.startswith("ok ") for line in lines[1:])
    document = json.loads(call(capsys, "health", state, "--json").out)
    assert document["ok"] is False
    assert [each["check"] for each in document["checks"] if not each["ok"]] == ["mounted"]
    assert len(document["checks"]) == len(lines)


def test_wrong_settings_are_an_error(tmp_path: Path, capsys: Capture) -> None:
    """Nobody is told that all is well by limits that cannot be read."""
    state = tmp_path / "state"
    call(capsys, "init", state)
    (tmp_path / "state.store" / "statefs.toml").write_text("[health]\ninterval = 0\n")
    said = call(capsys, "health", state)
    assert said.exit_code == 17 and "health" in said.err
