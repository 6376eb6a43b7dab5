"""What is counted and known of a state in the form that Prometheus reads.

Nothing here runs before somebody asks: handlers and listeners fill plain arrays (requests.py,
tallies.py), which become metric families at each question. The names are those of
docs/operations.md.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from statefs.telemetry.requests import REQUESTS, Timings
from statefs.telemetry.tallies import Tallies

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

NS: Final = 1e9
REQUEST_EXPONENTS: Final = range(13, 34, 2)
"""Bounds of the buckets of requests: 8 us to 9 s, each four times the one before."""
OPERATION_EXPONENTS: Final = range(20, 44, 2)
"""Those of saves and the like: 1 ms to 73 min."""

Status = Mapping[str, Any]

GAUGES: Final = (
    ("statefs_up", "Whether the state is mounted.", "mounted"),
    ("statefs_writable", "Whether programs can change the state.", "writable"),
    ("statefs_snapshots", "Snapshots there are.", "snapshots"),
    ("statefs_files", "Files in current/.", "files"),
    ("statefs_bytes", "Bytes in current/.", "bytes"),
    ("statefs_last_save_age_seconds", "Age of the newest snapshot.", "last_save_age_seconds"),
    ("statefs_disk_free_bytes", "Free bytes on the disk of the store.", "free_bytes"),
    ("statefs_disk_bytes", "Size of the disk of the store.", "disk_bytes"),
    ("statefs_disk_free_bytes_per_hour", "How free bytes change.", "free_bytes_per_hour"),
    ("statefs_unsynced_bytes", "Bytes a loss of power would cost now.", "unsynced_bytes"),
    ("statefs_seal_backlog", "Snapshots that wait for their digests.", "seal_backlog"),
    ("statefs_unsealable", "Snapshots that cannot be sealed.", "unsealable"),
    ("statefs_scrub_damaged", "Damaged items the last scrub found.", "damaged"),
    ("statefs_damages_seen", "Damaged items this worker has met.", "damages_seen"),
    ("statefs_worker_restarts", "Workers before this one.", "restarts"),
)
"""Name, help, and the key of the status document; what is not known is left out."""


class StateCollector:
    """Makes metric families of what is known now.

    Args:
        status: returns the document of `statefs status`.
        tallies: of the store.
    """

    def __init__(self, status: Callable[[], Status], tallies: Tallies) -> None:
        self._status = status
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        status = self._status()
        for name, text, key in GAUGES:
            if status[key] is not None:
                yield GaugeMetricFamily(name, text, float(status[key]))
        info = GaugeMetricFamily("statefs_info", "The version that runs.", labels=["version"])
        info.add_metric([str(status["version"])], 1)
        yield info
        yield from _requests(dict(REQUESTS))
        yield from _operations(self._tallies)

    def describe(self) -> list[Metric]:
        """Return nothing: names need not be known before the first question."""
        return []


def _requests(requests: Mapping[str, Timings]) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "statefs_request_seconds", "Time in the handler of a request.", labels=["request"]
    )
    errors = CounterMetricFamily(
        "statefs_request_errors", "Requests answered with an error.", labels=["request", "errno"]
    )
    for name, timings in sorted(requests.items()):
        _add(seconds, name, timings, REQUEST_EXPONENTS)
        for number, count in sorted(timings.errors.items()):
            errors.add_metric([name, errno.errorcode.get(number, str(number))], count)
    yield seconds
    yield errors


def _operations(tallies: Tallies) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "statefs_operation_seconds", "Time a save, restore or seal took.", labels=["operation"]
    )
    failures = CounterMetricFamily(
        "statefs_operation_failures", "Saves, restores and seals failed.", labels=["operation"]
    )
    for name, timings in tallies.durations.items():
        _add(seconds, name, timings, OPERATION_EXPONENTS)
        failures.add_metric([name], tallies.failures[name])
    events = CounterMetricFamily("statefs_events", "Events told.", labels=["event"])
    for name, count in sorted(tallies.events.items()):
        events.add_metric([name], count)
    yield seconds
    yield failures
    yield events
    yield CounterMetricFamily(
        "statefs_saved_bytes", "Bytes in snapshots taken.", tallies.saved_bytes
    )


def _add(family: HistogramMetricFamily, name: str, timings: Timings, exponents: range) -> None:
    buckets = list(timings.buckets)  # counted on while this runs: the total must fit the rest
    bounds = [(f"{2**n / NS:g}", float(sum(buckets[: n + 1]))) for n in exponents]
    family.add_metric([name], [*bounds, ("+Inf", float(sum(buckets)))], timings.nanoseconds / NS)


def registry_of(status: Callable[[], Status], tallies: Tallies) -> CollectorRegistry:
    """Return a registry that asks for everything at each question."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(cast("Collector", StateCollector(status, tallies)))
    return registry


def exposition(status: Status, tallies: Tallies) -> bytes:
    """Return everything as text, in the format that Prometheus reads."""
    return generate_latest(registry_of(lambda: status, tallies))
