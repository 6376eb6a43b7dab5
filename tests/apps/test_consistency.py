"""Applications that take part in saves, as statefs.toml says: the real PostgreSQL and SQLite."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.apps import sqlite_writer
from tests.apps.postgres_cluster import NEEDS_POSTGRES, Cluster
from tests.apps.programs import reporting, run
from tests.apps.test_postgres import BALANCES_OF_HISTORY, under_load
from tests.apps.test_sqlite import check_bank, copy_database, make_bank
from tests.harness.accounts import make_private_folder, postgres_account
from tests.harness.mounted_state import MountedState, mounted
from tests.harness.trees import capture


def configure(state: MountedState, text: str) -> None:
    """Write the store's statefs.toml."""
    (state.store / "statefs.toml").write_text(text)


def volume_of(state: MountedState, snapshot: str) -> dict[str, Any]:
    """Return what a snapshot's metadata.json says of its only volume."""
    document = json.loads((state.snapshots / snapshot / "metadata.json").read_text())
    (volume,) = document["volumeManifests"]
    assert isinstance(volume, dict)
    return volume


class TestPostgres:
    """A cluster in volumes/dbdata, under load."""

    pytestmark = NEEDS_POSTGRES

    def test_a_dump_of_the_moment_is_in_the_snapshot(
        self, app_state: MountedState, cluster: Cluster
    ) -> None:
        """Its digest is in metadata.json, and it comes back as a database in balance."""
        configure(
            app_state,
            '[[volumes]]\nname = "dbdata"\nconsistency = "postgres"\n'
            f'connection = "host={cluster.disk} user=postgres dbname=bench"\n',
        )
        with cluster.serving():
            with under_load(cluster) as (client, _):
                known = int(client.lines_after(20)[-1])
                snapshot = app_state.save()
            volume = volume_of(app_state, snapshot)
            dump = app_state.snapshots / snapshot / "dumps" / "dbdata.dump"
            data = dump.read_bytes()
            assert volume["format"].startswith("postgres-")
            assert volume["consistency"] == "app-consistent" and volume["notes"] == []
            assert volume["dump"] == {
                "path": "dumps/dbdata.dump",
                "bytes": len(data),
                "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
            }
            cluster.run("createdb", *cluster.server_options(), "again")
            cluster.run("pg_restore", *cluster.server_options(), "-d", "again", str(dump))
            assert cluster.psql(BALANCES_OF_HISTORY, "again") == ["t"]
            (rows,) = cluster.psql("SELECT count(*) FROM acknowledged", "again")
            assert int(rows) > known

    def test_a_server_recovers_from_a_snapshot_that_is_checked(
        self, app_state: MountedState, cluster: Cluster
    ) -> None:
        """Under load, with a tablespace in the mount; a cluster without WAL does not."""
        space = cluster.data.with_name("space")
        make_private_folder(space, cluster.account)
        with cluster.serving():
            cluster.psql(f"CREATE TABLESPACE beside LOCATION '{space}'")
            cluster.psql("CREATE TABLE t TABLESPACE beside AS SELECT generate_series(1, 99) AS n")
            young = app_state.save()
            cluster.psql("CHECKPOINT")
            with under_load(cluster) as (client, _):
                client.lines_after(20)
                snapshot = app_state.save()
        report = json.loads(app_state.command("check", app_state.state, snapshot, "--json"))
        assert report["outcome"] == "verified", report["findings"]
        assert report["opened"]["postgres"] == 1
        assert [each["note"] for each in report["findings"]] == [None]  # in place, in a clone
        assert os.listdir(app_state.state / "clones") == []
        (finding,) = json.loads(app_state.command("check", app_state.state, young, "--json"))[
            "findings"
        ]
        assert "CHECKPOINT" in finding["unchecked"] and str(space) in finding["unchecked"]
        app_state.umount()  # its links to tablespaces still lead to where it was mounted
        report = json.loads(app_state.command("check", app_state.state, snapshot, "--json"))
        assert report["outcome"] == "verified", report["findings"]
        app_state.mount()
        for segment in (cluster.data / "pg_wal").glob("0*"):
            segment.unlink()
        done = app_state.run("check", app_state.state, app_state.save())
        assert done.returncode == 21 and "it does not recover" in done.stdout

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others are kept out of a mount")
    def test_a_server_that_is_kept_out_of_the_mount_is_started_on_a_copy(self, disk: Path) -> None:
        """Without allow_other nobody else can look into a clone; the report says what was done."""
        account = postgres_account()
        made = Cluster(disk / "dbdata", disk / "s", account)
        for folder in (made.data, made.disk):
            make_private_folder(folder, account)
        made.initialise()
        with mounted(disk) as state:
            run("cp", "-a", made.data, state.current / "volumes" / "dbdata")
            name = state.save()
            report = json.loads(state.command("check", state.state, name, "--json"))
            assert report["outcome"] == "verified", report["findings"]
            (finding,) = report["findings"]
            assert "a copy: the user postgres cannot reach the mount" in finding["note"]
            assert "note: volumes/dbdata: opened in a copy" in state.command(
                "check", state.state, name
            )
            assert os.listdir(state.state / "clones") == []

    def test_a_stopped_server_keeps_nobody_from_saving(
        self, app_state: MountedState, cluster: Cluster
    ) -> None:
        """The folder of a server that was stopped is a valid backup; the manifest says so."""
        configure(
            app_state,
            '[[volumes]]\nname = "dbdata"\nconsistency = "postgres"\n'
            f'connection = "host={cluster.disk} user=postgres"\n',
        )
        volume = volume_of(app_state, app_state.save())
        assert volume["notes"] == ["the server does not run"] and volume["dump"] is None
        assert volume["consistency"] == "crash-consistent"

    def test_a_server_that_refuses_aborts_the_save(
        self, app_state: MountedState, cluster: Cluster
    ) -> None:
        """The error is PostgreSQL's own; there is no snapshot and no dump."""
        configure(
            app_state,
            '[[volumes]]\nname = "dbdata"\nconsistency = "postgres"\n'
            f'connection = "host={cluster.disk} user=nobody-such dbname=bench"\n',
        )
        with cluster.serving():
            done = app_state.run("save", app_state.state)
        assert done.returncode == 18
        assert 'role "nobody-such" does not exist' in done.stderr
        assert app_state.listing() == []
        assert sorted(path.name for path in app_state.current.iterdir()) == [
            "files", "runtime", "volumes",
        ]  # fmt: skip


def test_a_database_in_use_has_an_empty_log_or_none_in_the_snapshot(
    app_state: MountedState, disk: Path
) -> None:
    """Writers go on; each snapshot's database has everything and passes SQLite's check.

    A reader that is in the way for too long costs a snapshot its level; not all of them.
    """
    folder = app_state.current / "volumes" / "bank"
    folder.mkdir()
    bank = folder / "bank.db"
    make_bank(bank, "wal")
    configure(app_state, '[[volumes]]\nname = "bank"\nconsistency = "sqlite"\ncheck = false\n')
    with ExitStack() as stack:
        program = [sys.executable, sqlite_writer.__file__, str(bank), "wal", "0"]
        writer = stack.enter_context(reporting(*program, log=disk / "writer.log"))
        levels = []
        for number in range(3):
            known = int(writer.lines_after(20)[-1])
            snapshot = app_state.save()
            volume = volume_of(app_state, snapshot)
            assert volume["format"] == "sqlite"
            levels.append(volume["consistency"])
            saved = app_state.snapshots / snapshot / "volumes" / "bank"
            check_bank(copy_database(saved, disk / f"copy{number}"), [known])
    assert "app-consistent" in levels and {*levels} <= {"app-consistent", "crash-consistent"}


def test_a_database_that_stays_locked_aborts_the_save(app_state: MountedState) -> None:
    """By another process: the CLI and mkdir fail; free again, it is saved, and verified."""
    folder = app_state.current / "volumes" / "bank"
    folder.mkdir()
    make_bank(folder / "bank.db", "wal")
    configure(app_state, '[[volumes]]\nname = "bank"\nconsistency = "sqlite"\ndeadline = 0.5\n')
    with closing(sqlite3.connect(folder / "bank.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        done = app_state.run("save", app_state.state)
        assert done.returncode == 18
        assert "volume bank: " in done.stderr and "kept the database locked" in done.stderr
        with pytest.raises(OSError) as refused:
            (app_state.snapshots / "door").mkdir()
        assert refused.value.errno == errno.ECANCELED
        assert app_state.listing() == []
        database.execute("COMMIT")
    snapshot = app_state.save()
    assert volume_of(app_state, snapshot)["consistency"] in ("app-consistent", "verified")
    give_up = time.monotonic() + 60
    while volume_of(app_state, snapshot)["consistency"] != "verified":
        assert time.monotonic() < give_up, "the background check has not come to it"
        time.sleep(0.1)


def test_a_check_tells_sound_databases_from_damaged_ones(app_state: MountedState) -> None:
    """Exit code, label, manifests and metadata.json in the mount; the snapshot's files stay."""
    folder = app_state.current / "volumes" / "bank"
    folder.mkdir()
    make_bank(folder / "bank.db", "delete")
    (app_state.files / "settings.json").write_text('{"a": 1}')
    good = app_state.save()
    (folder / "bad").write_bytes(b"SQLite format 3\0" + bytes(8192))
    bad = app_state.save()
    metadata = app_state.snapshots / good / "metadata.json"
    before = capture(app_state.snapshots / bad / "volumes")
    assert volume_of(app_state, good)["consistency"] == "crash-consistent"

    report = json.loads(app_state.command("check", app_state.state, good, "--json"))
    assert report["outcome"] == "verified"
    assert report["opened"] == {"json": 1, "sqlite": 1}
    assert [each["path"] for each in report["findings"]] == ["volumes/bank/bank.db"]
    assert volume_of(app_state, good)["consistency"] == "verified"
    assert json.loads(metadata.read_text())["labels"] == {"consistency": "verified"}

    done = app_state.run("check", app_state.state, bad)
    assert done.returncode == 21, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("damaged: volumes/bank/bad: ")
    assert last == f"{bad}: 1 of 3 damaged (1 JSON, 2 SQLite)"
    volume = volume_of(app_state, bad)
    assert volume["consistency"] == "crash-consistent"
    assert volume["notes"][0].startswith("check: volumes/bank/bad: ")
    assert [each["labels"]["consistency"] for each in app_state.listing()] == [
        "verified",
        "damaged",
    ]
    assert capture(app_state.snapshots / bad / "volumes") == before
    assert os.listdir(app_state.state / "clones") == []
    assert os.stat(app_state.state / "clones").st_nlink == 2


def test_a_state_that_is_not_mounted_can_be_checked(app_state: MountedState) -> None:
    """It is mounted for as long as that takes, where nobody sees it; labels tell the outcome."""
    make_bank(app_state.files / "bank.db", "wal")
    good = app_state.save()
    (app_state.files / "bad.json").write_text("{")
    bad = app_state.save()
    app_state.umount()
    report = json.loads(app_state.command("check", app_state.state, good, "--json"))
    assert (report["outcome"], report["opened"]) == ("verified", {"sqlite": 1})
    done = app_state.run("check", "--store", app_state.store, bad)
    assert done.returncode == 21 and done.stdout.startswith("damaged: files/bad.json: not JSON")
    assert os.listdir(app_state.state) == []
    labels = [each["labels"].get("consistency") for each in app_state.listing()]
    assert labels == ["verified", "damaged"]
    assert app_state.command("clone", "--list", app_state.state) == ""
