from __future__ import annotations

import errno
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from statefs.config import parse_config
from statefs.daemon.publishing import LOCALHOST, Publisher
from statefs.errors import InvalidConfig, PosixError
from statefs.fuse.errno_map import answers
from statefs.maintenance import steps
from statefs.maintenance.commands import Commands
from statefs.telemetry import requests
from statefs.telemetry.metrics import exposition
from statefs.telemetry.requests import Timings
from statefs.telemetry.tallies import Tallies
from tests.unit.engine_store import EngineStore

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
Samples = dict[tuple[str, ...], float]


def samples_of(text: str) -> Samples:
    """Return the samples of an exposition by name and the values of its labels, sorted by label."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics(engine: EngineStore) -> Samples:
    """Return what is told of a store."""
    return samples_of(exposition(engine.store.status(), engine.store.tallies).decode())


class Handlers:
    """Who has handlers."""

    def damaged(self, _damage: object) -> None:
        """Nothing here is damaged."""

    @answers
    async def a_request(self, error: BaseException | None) -> int:
        """Answer, or fail."""
        if error is not None:
            raise error
        return 1


def test_each_request_is_counted_with_its_time_and_its_error() -> None:
    """Answers and failures alike; an error by the errno that the program gets."""
    counted = requests.timings_of("a_request")

    async def ask() -> None:
        assert await Handlers().a_request(None) == 1
        for error in (PosixError(errno.ENOENT), OSError(errno.ENOSPC, ""), PosixError(2)):
            with pytest.raises(pyfuse3.FUSEError):
                await Handlers().a_request(error)

    trio.run(ask)
    assert sum(counted.buckets) == 4 and counted.nanoseconds > 0
    assert counted.errors == {errno.ENOENT: 2, errno.ENOSPC: 1}


def test_a_histogram_says_how_many_took_no_longer(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets are cumulative; what is longer than all bounds is in +Inf; the sum is in seconds."""
    timings = Timings()
    for nanoseconds in (1, 8_191, 8_192, 10**6, 10**11):
        timings.took(nanoseconds)
    timings.failed(errno.EIO)
    monkeypatch.setattr(requests, "REQUESTS", {"read": timings})
    monkeypatch.setattr("statefs.telemetry.metrics.REQUESTS", {"read": timings})
    told = metrics(engine)
    buckets = {
        name[1]: value
        for name, value in told.items()
        if name[0] == "statefs_request_seconds_bucket" and name[2] == "read"
    }
    assert buckets["8.192e-06"] == 2.0 and buckets["+Inf"] == 5.0
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets["8.58993"] == 4.0
    assert told["statefs_request_seconds_sum", "read"] == pytest.approx(100.001016384)
    assert told["statefs_request_seconds_count", "read"] == 5.0
    assert told["statefs_request_errors_total", "EIO", "read"] == 1.0


def test_saves_restores_and_seals_are_counted(engine: EngineStore) -> None:
    """With their durations, bytes and failures, and the state's own figures."""
    ino = engine.file("a", b"one")
    engine.save()
    name = engine.store.catalog.snapshots[0].name
    engine.data.write(ino, 0, b"two")
    run(engine, "restore", snapshot=name, paths=[], force=False, dry_run=False)
    run(engine, "seal", snapshot="latest")
    with pytest.raises(PosixError):
        refuse_space(engine)
    with pytest.raises(Exception, match="nothing"):
        run(engine, "restore", snapshot=name, paths=["nothing"], force=False, dry_run=False)
    told = metrics(engine)
    assert told["statefs_operation_seconds_count", "save"] == 2.0
    assert told["statefs_operation_seconds_count", "restore"] == 1.0
    assert told["statefs_operation_seconds_count", "seal"] == 2.0
    assert told["statefs_operation_failures_total", "save"] == 1.0
    assert told["statefs_operation_failures_total", "restore"] == 1.0
    assert told["statefs_saved_bytes_total",] == 6.0
    assert told["statefs_events_total", "state:saved"] == 2.0
    assert (told["statefs_snapshots",], told["statefs_bytes",]) == (2.0, 3.0)
    assert told["statefs_up",] == 0.0 and ("statefs_worker_restarts",) not in told


def refuse_space(engine: EngineStore) -> None:
    """Try a save on a disk without room."""

    def refuse() -> None:
        raise PosixError(errno.ENOSPC)

    engine.store.reserve.require = refuse  # type: ignore[method-assign]
    run(engine, "save", message="", reason="manual", labels={})


class Asker:
    """Somebody who waits."""

    is_wanted = True
    pid = 0

    def report(self, _progress: dict[str, Any]) -> None:
        """Take no notice."""


def run(engine: EngineStore, op: str, **arguments: Any) -> Any:
    """Do one operation as a command does."""
    return steps.run(Commands(engine.store).start(op, arguments, Asker()))


def test_each_metric_is_documented(engine: EngineStore) -> None:
    """By its name in docs/operations.md, and no other name stands there."""
    requests.timings_of("a_request").failed(errno.EIO)
    engine.save()
    status = engine.store.status() | {"restarts": 0, "damaged": 0, "free_bytes_per_hour": 0}
    text = exposition(status, engine.store.tallies).decode()
    told = {family.name for family in text_string_to_metric_families(text)}
    counters = {"statefs_request_errors", "statefs_operation_failures", "statefs_events",
                "statefs_saved_bytes"}  # fmt: skip
    told = {f"{name}_total" if name in counters else name for name in told}
    section = PAGE.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(statefs_\w+)", section, re.MULTILINE)) == told


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(port: int) -> str:
    """Return what a scrape gets."""
    with urllib.request.urlopen(f"http://{LOCALHOST}:{port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


async def until(condition: Any) -> None:
    """Return when a condition holds."""
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.02)


async def test_settings_open_and_close_the_port_and_write_the_file(
    engine: EngineStore, tmp_path: Path
) -> None:
    """While the daemon runs; the port listens on this machine only; the file is for everybody."""
    config, file, port = engine.store.layout.config, tmp_path / "x.prom", free_port()
    publisher = Publisher(engine.store, engine.store.status)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        config.write_text(f'[metrics]\ntextfile = "{file}"\nport = {port}\ninterval = 0.1\n')
        await until(file.exists)
        assert samples_of(file.read_text())["statefs_snapshots",] == 0.0
        assert file.stat().st_mode & 0o777 == 0o644
        await until(lambda: publisher._close is not None)
        assert samples_of(await trio.to_thread.run_sync(fetch, port))["statefs_snapshots",] == 0.0
        with socket.socket() as other:
            other.settimeout(5)
            assert other.connect_ex(("127.0.0.2", port)) == errno.ECONNREFUSED
        engine.save()
        told = await trio.to_thread.run_sync(fetch, port)
        assert samples_of(told)["statefs_snapshots",] == 1.0, "a scrape is never out of date"
        config.write_text("[metrics]\nport = 0\ninterval = 0.1\n")
        await until(lambda: publisher._close is None)
        with pytest.raises(OSError):
            await trio.to_thread.run_sync(fetch, port)
        nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_is_told_once(
    engine: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing else ends because of it."""
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        engine.store.layout.config.write_text(f"[metrics]\nport = {port}\ninterval = 0.1\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Publisher(engine.store, engine.store.status).run)
            await until(lambda: f"on port {port}" in caplog.text)
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
    assert caplog.text.count(f"on port {port}") == 1


@pytest.mark.parametrize("text", ['textfile = "x"', "port = 65536", "port = -1", "interval = 0"])
def test_wrong_settings(text: str) -> None:
    """A path that is none, a port that is none, an interval that never ends."""
    with pytest.raises(InvalidConfig, match="metrics"):
        parse_config(f"[metrics]\n{text}\n", "x")


def test_tallies_begin_with_nothing() -> None:
    """Every kind is there before the first, so that rates can be computed from the start."""
    told = samples_of(exposition_of_nothing())
    for what in ("save", "restore", "seal"):
        assert told["statefs_operation_seconds_count", what] == 0.0
        assert told["statefs_operation_failures_total", what] == 0.0


def exposition_of_nothing() -> str:
    """Return what is told where nothing is known."""
    from collections import defaultdict

    status: dict[str, Any] = defaultdict(lambda: None)
    return exposition(status, Tallies()).decode()
