"""Where a program of a test works: a mounted state and a folder beside it on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.postgres_cluster import DATABASE, Cluster
from tests.harness.accounts import make_private_folder, postgres_account
from tests.harness.mounted_state import MountedState, mounted, open_folder


@pytest.fixture
def disk() -> Iterator[Path]:
    """An empty folder on the disk that every user may pass through."""
    with open_folder("apps") as folder:
        yield folder


@pytest.fixture
def app_state(disk: Path) -> Iterator[MountedState]:
    """A freshly mounted state that every user may pass through where the test may allow it."""
    with mounted(disk, "allow_other,suid,dev" if os.geteuid() == 0 else "") as state:
        for folder in (state.current, state.files, state.current / "volumes"):
            folder.chmod(0o755)
        yield state


@pytest.fixture
def cluster(app_state: MountedState, disk: Path) -> Cluster:
    """A new cluster in volumes/dbdata of a mounted state, with pgbench's tables; stopped."""
    account = postgres_account()
    made = Cluster(app_state.current / "volumes" / "dbdata", disk / "s", account)
    for folder in (made.data, made.disk):
        make_private_folder(folder, account)
    made.initialise()
    with made.serving():
        made.run("createdb", *made.server_options(), DATABASE)
        made.run("pgbench", *made.server_options(), "-i", "-s", "1", "-q", DATABASE)
        made.psql("CREATE TABLE acknowledged (n integer PRIMARY KEY, at timestamptz)")
    return made
