"""What the command line's tests share: a store that is only a list, and a pretended mount table.

The fake stands in at `statefs.api.open_target`, the one way to real stores.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from statefs.api import State
from statefs.cli.app import run
from statefs.errors import NoSuchSnapshot
from statefs.target import Target

Document = dict[str, Any]

FIRST: Final[Document] = {
    "snapshotId": "0d7f1a52-6a0e-4f4e-9b8e-0a3c1f5f7a11",
    "name": "2026-03-13T12-00-00Z",
    "timestamp": "2026-03-13T12:00:00Z",
    "parentSnapshotId": None,
    "reason": "manual",
    "message": "before the import",
    "labels": {"name": "clean"},
    "appVersion": "0.1.0",
    "formatVersion": 1,
    "stateDigest": None,
    "volumeManifests": [],
    "files": 1234,
    "bytes": 5 << 20,
    "sealed": False,
    "operation": None,
    "pin": None,
}


@dataclass
class FakeBackend:
    """A store that keeps documents in a list and remembers what it was asked.

    Args:
        snapshots: what it holds.
        problems: what verify finds.
        unsealed: snapshots that have no digests yet.
        failure: raised by every call instead of an answer.
        mounted: what its status says.
    """

    snapshots: list[Document] = field(default_factory=list)
    problems: list[Document] = field(default_factory=list)
    unsealed: list[str] = field(default_factory=list)
    failure: Exception | None = None
    mounted: bool = False
    targets: list[Target] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure

    def call(self, op: str, arguments: Mapping[str, Any], _on_progress: object) -> Any:
        """Do what a store would."""
        if op == "save":
            self._ask("save")
            self.snapshots.append(FIRST | dict(arguments))
            return self.snapshots[-1]
        if op == "list":
            self._ask("list")
            return {"snapshots": self.snapshots}
        if op == "show":
            return self._show(arguments["snapshot"])
        if op == "seal":
            sealed = {"sealed": True, "stateDigest": f"sha256:{'0' * 64}"}
            return self._show(arguments["snapshot"]) | sealed
        if op == "delete":
            found = self._show(arguments["snapshot"])
            self.snapshots.remove(found)
            return found
        self._ask(op)
        if op == "scrub":
            last = {"started": "2026-03-13T12:00:00Z", "ended": "2026-03-13T13:00:00Z", "bytes": 5,
                    "files": 1, "unsealed": [], "problems": self.problems}  # fmt: skip
            return {"running": False, "last": last if self.snapshots else None}
        if op == "verify":
            read = {"bytes": 5 << 20, "files": 3, "unsealed": self.unsealed}
            is_read = arguments["read_data"]
            return {"problems": self.problems, "read": read if is_read else None}
        return self._status()

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def _show(self, snapshot: str) -> Document:
        """Find a snapshot by its whole name or its label."""
        self._ask(f"show {snapshot}")
        for each in self.snapshots:
            if snapshot in (each["name"], each["labels"].get("name")):
                return each
        raise NoSuchSnapshot(f"no snapshot '{snapshot}': 'statefs list' shows what there is")

    def _status(self) -> Document:
        """Return a status with every key."""
        return {
            "mounted": self.mounted,
            "mount_point": "/srv/state" if self.mounted else None,
            "store": "/srv/state.store",
            "store_id": "6d8a2c4e-1111-4222-8333-444455556666",
            "app_id": "com.example.shop",
            "epoch": 3,
            "snapshots": 2,
            "latest": "2026-03-13T12-00-00Z",
            "worker_pid": 4711 if self.mounted else None,
            "supervisor_pid": 4710 if self.mounted else None,
            "restarts": 0 if self.mounted else None,
            "since": "2026-03-13T11:00:00Z" if self.mounted else None,
            "bytes": 5 << 20,
            "files": 1234,
            "damaged": None,
            "unsealable": 0,
            "durability": "close",
            "mount_options": "ro,noexec" if self.mounted else None,
            "version": "0.1.0",
            "free_bytes": 7 << 30,
            "writable": True,
            "not_writable": None,
            "last_save": "2026-03-13T12:00:00Z",
            "last_save_age_seconds": 60.0,
            "disk_bytes": 9 << 30,
            "free_bytes_per_hour": None,
            "unsynced_bytes": 0,
            "seal_backlog": 0,
            "damages_seen": 0,
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for every store from here to the end of the test."""

        def open_target(target: Target) -> State:
            self.targets.append(target)
            return State(target, self)

        monkeypatch.setattr("statefs.api.open_target", open_target)


@dataclass(frozen=True)
class Outcome:
    """What a command line did: its exit code and what it wrote."""

    exit_code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Outcome:
    """Run `statefs WORDS...` in this process."""
    exit_code = run([str(word) for word in words])
    captured = capsys.readouterr()
    return Outcome(exit_code, captured.out, captured.err)


def call_process(*words: str | Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Run `python -m statefs WORDS...` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "statefs", *(str(word) for word in words)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def make_empty_store(store: Path) -> Path:
    """Make what looks like a store from outside: a folder with a meta.db. Return it."""
    store.mkdir()
    (store / "meta.db").touch()
    return store


def pretend_mounts(
    monkeypatch: pytest.MonkeyPatch, table: Path, mounts: Mapping[Path, Path]
) -> None:
    """Let the mount table show statefs mounts that do not exist.

    Args:
        monkeypatch: of the test.
        table: a file to write the table to.
        mounts: mount points, each with its store.
    """
    lines = [
        f"{100 + i} 1 0:{50 + i} / {point} rw,nosuid,nodev - fuse.statefs {store} rw\n"
        for i, (point, store) in enumerate(mounts.items())
    ]
    table.write_text("".join(lines))
    monkeypatch.setattr("statefs.mounts.table.MOUNTINFO", table)
