"""What somebody put into a store's folder leads nowhere, and what statefs puts there is private."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from statefs.config import VolumeConfig
from statefs.daemon.background import _open_log
from statefs.durable import open_plain, write_file
from statefs.errors import CorruptStore, HookFailed
from statefs.hooks.quiesce import Preparation
from statefs.layout import StoreLayout
from statefs.locking import StoreLock
from statefs.maintenance import steps
from statefs.maintenance.backups import copy_database
from statefs.maintenance.scrubbing import scrub
from statefs.maintenance.store import init_store, open_store
from statefs.telemetry.lines import TextLines
from tests.unit.engine_store import EngineStore

PLACES = [
    "meta.db-wal", "meta.db-shm", "index.json", "scrub.json", "trend.json", "reserve",
    "statefs.log", "events.jsonl", "anything", "objects", "objects/07", "snapshots",
    "snapshots/x.json", "backups", "backups/meta-v1-x.db",
]  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path, no_waiting_for_disks: None) -> Iterator[StoreLayout]:
    """A closed store beside a folder that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    init_store(tmp_path / "store")
    yield StoreLayout(tmp_path / "store")
    assert os.listdir(tmp_path / "outside") == ["kept"]
    assert (tmp_path / "outside" / "kept").read_text() == "kept"


def test_no_link_of_a_store_is_followed(layout: StoreLayout) -> None:
    """Neither that of a file nor that of a folder, be it where statefs looks only now and then."""
    layout.backups.mkdir(mode=0o700, exist_ok=True)
    for place in PLACES:
        path = layout.root / place
        aside = layout.root.with_name("aside")
        was_there = os.path.lexists(path)
        if was_there:
            path.rename(aside)
        path.symlink_to(layout.root.parent / "outside" / "kept")
        with pytest.raises(CorruptStore, match=f"{path} is a link, or of a kind"):
            open_store(layout.root)
        path.unlink()
        if was_there:
            aside.rename(path)
    open_store(layout.root).close()


def test_a_folder_or_a_pipe_in_place_of_a_file_is_told(layout: StoreLayout) -> None:
    """A pipe would otherwise be waited for."""
    for kind in (os.mkdir, os.mkfifo):
        kind(layout.scrub_json)
        with pytest.raises(CorruptStore, match=r"scrub\.json is a link, or of a kind"):
            open_store(layout.root)
        os.rmdir(layout.scrub_json) if kind is os.mkdir else os.unlink(layout.scrub_json)


def test_a_link_for_the_settings_is_followed(layout: StoreLayout) -> None:
    """Who may make one in the store's folder may write into that file as well."""
    elsewhere = layout.root.parent / "mine.toml"
    elsewhere.write_text("autosave = true\n")
    layout.config.symlink_to(elsewhere)
    store = open_store(layout.root)
    assert store.settings.read().autosave
    store.close()


def test_links_for_lock_and_log_are_refused(layout: StoreLayout) -> None:
    """Both are opened before anything else is looked at."""
    for path in (layout.lock, layout.log):
        path.unlink(missing_ok=True)
        path.symlink_to(layout.root.parent / "outside" / "new")
    with pytest.raises(OSError, match="symbolic link, which is not followed"):
        StoreLock(layout).acquire()
    with pytest.raises(OSError, match="symbolic link, which is not followed"):
        _open_log(layout)
    for path in (layout.lock, layout.log):
        path.unlink()


def test_a_link_for_a_temporary_file_is_replaced(layout: StoreLayout) -> None:
    """The document is written beside it, not through it."""
    temporary = layout.root / ".index.json.new"
    temporary.symlink_to(layout.root.parent / "outside" / "kept")
    index = layout.index_json.read_bytes()
    write_file(layout.index_json, index)
    assert layout.index_json.read_bytes() == index and not temporary.is_symlink()


def test_an_object_that_became_a_link_is_damage(engine: EngineStore) -> None:
    """Read as EIO, never as what it leads to."""
    ino = engine.file("big", b"x" * 100_000)
    engine.save()
    number = max(engine.objects())
    path = engine.store.layout.object_path(number)  # type: ignore[arg-type]  # a plain number
    aside = path.with_name("aside")
    engine.store.objects.close()
    path.rename(aside)
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link") as caught:
        engine.content(ino)
    assert caught.value.errno == 5
    path.unlink()
    aside.rename(path)


def test_a_stray_name_among_the_objects_is_left_alone(engine: EngineStore) -> None:
    """After a crash all object files are listed; `.nfs0001` is none."""
    engine.file("big", b"x" * 100_000)
    known = engine.objects()
    stray = engine.store.layout.objects / "00" / ".nfs0001"
    stray.write_bytes(b"")
    assert engine.objects() == known
    with engine.killed() as opened:
        there = opened.store.layout.objects / "00" / ".nfs0001"
        assert any(".nfs0001 is not named as an object" in told for told in opened.problems())
        there.unlink()
    stray.unlink()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_store_is_private_whatever_the_umask(
    tmp_path: Path, no_waiting_for_disks: None, umask: int
) -> None:
    """Folders 0700 and files 0600, those made later as well: logs, copies, objects, reports."""
    before = os.umask(umask)
    try:
        engine = EngineStore(tmp_path / "store")
        layout = engine.store.layout
        with StoreLock(layout), os.fdopen(_open_log(layout)):
            engine.file("big", b"x" * 100_000)
            engine.save()
            engine.save(name="second")
            steps.run(copy_database(layout))
            steps.run(scrub(engine.store, Silent(), start=True))
            found = [layout.root, *layout.root.rglob("*")]
            modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in found}
            kinds = {path: 0o700 if path.is_dir() else 0o600 for path in found}
            engine.store.close()
    finally:
        os.umask(before)
    assert modes == kinds
    names = {path.name for path in found}
    assert {"meta.db", "meta.db-wal", "scrub.json", "index.json", "lock", "statefs.log"} <= names


class Silent:
    """Who asks and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, _progress: object) -> None:
        """Do nothing."""


def test_no_hook_works_where_a_link_in_current_leads(tmp_path: Path) -> None:
    """Root's daemon would otherwise checkpoint, dump and rename wherever a container says."""
    current, outside = tmp_path / "state" / "current", tmp_path / "outside"
    (current / "volumes").mkdir(parents=True)
    outside.mkdir()
    (current / "volumes" / "db").symlink_to(outside)
    volume = VolumeConfig(name="db", consistency="sqlite")
    with pytest.raises(HookFailed, match="leads through a symbolic link, which is not followed"):
        Preparation([volume], current, "manual").prepare()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    (current / "volumes" / "db").unlink()
    (current / "volumes" / "db").mkdir()
    through_a_link = Preparation([volume], tmp_path / "link" / "current", "manual").prepare()
    assert [result.name for result in through_a_link] == ["db"]


def test_a_name_cannot_forge_a_line_of_the_log() -> None:
    """Line ends and escape sequences in a message are written as escapes; a traceback stays."""
    record = logging.LogRecord("x", logging.ERROR, "", 0, "damage: %s", ("a\nb\x1b[2J",), None)
    assert TextLines().format(record).endswith("ERROR x: damage: a\\nb\\x1b[2J")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Opening one for reading returns at once, with nobody at its other end."""
    os.mkfifo(tmp_path / "pipe")
    os.close(open_plain(tmp_path / "pipe", os.O_RDONLY))
