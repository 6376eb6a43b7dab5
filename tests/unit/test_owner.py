"""What root does in the store of somebody else: it stays theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from statefs.durable import make_folder, open_plain
from statefs.layout import StoreLayout
from statefs.maintenance import backups, steps
from statefs.maintenance.repair import repair
from statefs.maintenance.store import init_store, open_store
from tests.unit.engine_store import EngineStore

OWNER = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for others")


def give_all(root: Path) -> None:
    """Give a store to a user."""
    for place, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            os.chown(Path(place) / name, OWNER, OWNER, follow_symlinks=False)


def owned_by_others(root: Path) -> list[str]:
    """Return what in a store belongs to somebody else."""
    return [
        str(path.relative_to(root))
        for path in (root, *root.rglob("*"))
        if path.lstat().st_uid != OWNER
    ]


def test_what_root_makes_in_a_store_belongs_to_its_owner(tmp_path: Path) -> None:
    """The log, object files, documents, copies, and the database of a repair."""
    root = tmp_path / "store"
    init_store(root)
    give_all(root)
    with EngineStore(root) as engine:
        engine.file("big", b"x" * (1 << 20))
        engine.save(name="one")
        steps.run(backups.copy_database(engine.store.layout))
        assert owned_by_others(root) == []
    layout = StoreLayout(root)
    layout.meta_db.write_bytes(b"damaged")
    repair(layout, dry_run=False, read_data=False)
    assert owned_by_others(root) == []
    open_store(root).close()
    assert owned_by_others(root) == []


def test_what_was_there_is_given_to_nobody(tmp_path: Path) -> None:
    """Its owner may have put other files of root in its place: with content, or with two names."""
    os.chown(tmp_path, OWNER, OWNER)
    (tmp_path / "secret").write_text("root's")
    (tmp_path / "linked").touch()
    os.link(tmp_path / "linked", tmp_path / "other name")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "of root").touch()
    for name in ("secret", "linked"):
        os.close(open_plain(tmp_path / name, os.O_RDWR | os.O_CREAT))
        assert (tmp_path / name).stat().st_uid == 0
    make_folder(tmp_path / "folder")
    assert (tmp_path / "folder").stat().st_uid == 0
    make_folder(tmp_path / "new")
    assert (tmp_path / "new").stat().st_uid == OWNER
