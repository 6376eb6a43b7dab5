from __future__ import annotations

import os

import pytest

from statefs.errors import NotInStore, UsageError
from statefs.state import SessionStore
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.session_folders import values


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_leaves_all_that_was_acknowledged(sessions: SessionStore) -> None:
    """State and events together are always what was acknowledged, or one step more."""

    def work(acknowledge: Acknowledge) -> None:
        with sessions.create("one") as session:
            acknowledge("created")
            session.append("a")
            acknowledge("a")
            session.snapshot({"seen": "a", "raw": b"a"})
            session.append("b")
            acknowledge("b")
            with session.audit("act"):
                acknowledge("acting")
            acknowledge("acted")
            session.snapshot({"seen": "ab"})
            session.append("c")
            acknowledge("c")
            session.snapshot({"seen": "abc"}, drop=("raw",))
            session.finish()
        acknowledge("finished")

    kills = 0
    for killed in each_kill(work):
        kills += 1
        try:
            session = sessions.resume("one")
        except NotInStore:
            assert "created" not in killed.acknowledged, killed
            sessions.create("one").close()
            sessions.remove("one")
            continue
        except UsageError:
            assert killed.acknowledged[-1] in ("c", "finished"), killed
            sessions.remove("one")
            continue
        with session:
            found = session.recovery
            seen = found.slots.get("seen", "") + "".join(each.value for each in found.events)
            known = "".join(each for each in killed.acknowledged if len(each) == 1)
            assert seen in [known, known + "abc"[len(known) : len(known) + 1]], killed
            assert found.slots.get("raw", b"a") == b"a"
            unfinished = [each.what for each in found.unfinished]
            may_act = killed.acknowledged[-1:] in (["b"], ["acting"])
            assert unfinished in ([[], ["act"]] if may_act else [[]]), killed
            session.append("next")
            session.snapshot({"seen": seen})
            named = values(session.folder / "manifest.json")[-1]["slots"]
            assert {f"{slot}.{file['written']}" for slot, file in named.items()} <= set(
                os.listdir(session.folder / "state")
            )
        sessions.remove("one")
        assert os.listdir(sessions.folder / "sessions") == []
    assert kills > 60


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_resumption_or_removal_loses_nothing(
    sessions: SessionStore,
) -> None:
    """What it was to be resumed from is there at the next one; a removal is whole or not at all."""

    def prepare() -> None:
        session = sessions.create("one")
        session.append("a")
        session.snapshot({"seen": "a"})
        session.append("b")
        (session.folder / "state" / "seen.9").write_bytes(b"of a snapshot that never counted")
        session.let_go()

    def resume(acknowledge: Acknowledge) -> None:
        with sessions.resume("one"):
            acknowledge("resumed")

    def remove(_acknowledge: Acknowledge) -> None:
        sessions.remove("one")

    for work in (resume, remove):
        prepare()
        for killed in each_kill(work):
            if work is remove and not sessions.sessions():
                prepare()
                continue
            with sessions.resume("one") as session:
                assert session.recovery.slots == {"seen": "a"}, killed
                assert [each.value for each in session.recovery.events] == ["b"], killed
                assert os.listdir(session.folder / "state") == ["seen.2"]
        if work is resume:
            sessions.remove("one")
    assert os.listdir(sessions.folder / "sessions") == []
