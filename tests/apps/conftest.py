"""Where a program of a test works: a mounted state and a folder beside it on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.postgres_cluster import Cluster
from tests.apps.programs import run
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
def new_cluster(app_state: MountedState, disk: Path) -> Cluster:
    """A new cluster in volumes/dbdata of a mounted state, with pgbench's tables; stopped."""
    made = cluster_in(app_state.current / "volumes" / "dbdata", disk / "s")
    made.fill()
    return made


@pytest.fixture(scope="session")
def cluster_on_disk() -> Iterator[Cluster]:
    """What `new_cluster` is, on the disk, for copying: making one takes most of a test's time."""
    with open_folder("cluster") as folder:
        made = cluster_in(folder / "dbdata", folder / "s")
        made.fill()
        yield made


@pytest.fixture
def cluster(app_state: MountedState, disk: Path, cluster_on_disk: Cluster) -> Cluster:
    """What `new_cluster` is, copied into the mounted state."""
    made = cluster_in(app_state.current / "volumes" / "dbdata", disk / "s")
    run("cp", "-a", f"{cluster_on_disk.data}/.", made.data)
    return made


def cluster_in(data: Path, disk: Path) -> Cluster:
    """Return a cluster to be, with its folders."""
    account = postgres_account()
    for folder in (data, disk):
        make_private_folder(folder, account)
    return Cluster(data, disk, account)
