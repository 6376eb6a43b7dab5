"""The samples of a disk's trend, kept in `trend.json` of the store for the next process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from statefs.durable import open_plain, write_file
from statefs.telemetry.trend import DiskTrend, Sample

log = logging.getLogger(__name__)


class TrendDocument(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """trend.json.

    Args:
        disk_bytes: the size of the disk; samples of another one say nothing of this.
        samples: the oldest first.
    """

    disk_bytes: int
    samples: list[Sample]


def read_trend(path: Path, disk_bytes: int, now_seconds: float) -> DiskTrend:
    """Return what is known of a disk; nothing where the file cannot be read, or is of another."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            document = msgspec.json.decode(file.read(), type=TrendDocument)
    except FileNotFoundError:
        return DiskTrend()
    except (OSError, ValueError, RecursionError) as error:
        log.info("%s cannot be read, and is begun anew: %s", path, error)
        return DiskTrend()
    times = [when for when, _ in document.samples]
    is_ours = document.disk_bytes == disk_bytes and times == sorted(set(times))
    return DiskTrend(document.samples if is_ours else (), now_seconds)


def write_trend(path: Path, disk_bytes: int, samples: list[Sample]) -> None:
    """Keep samples; waits for the disk. Raises OSError: it refused."""
    document = TrendDocument(disk_bytes=disk_bytes, samples=samples)
    write_file(path, msgspec.json.encode(document))
