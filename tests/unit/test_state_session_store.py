from __future__ import annotations

import errno
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from statefs.errors import (
    NewerStore,
    NotInStore,
    ResumeMismatch,
    StateDamaged,
    StoreLocked,
    UsageError,
)
from statefs.state import DocumentType, JournaledSession, SessionStore, without_secrets
from statefs.state.journal import Journal, line_of
from tests.harness.processes import run_as, start
from tests.unit.session_folders import contents, place, values


class Said(msgspec.Struct, tag="said", forbid_unknown_fields=True):
    """An event."""

    text: str


class Did(msgspec.Struct, tag="did", forbid_unknown_fields=True):
    """Another event."""

    number: int


def puts(session: JournaledSession) -> list[Callable[[Any], object]]:
    """Return the ways in which a value gets into a session."""
    return [
        session.append,
        lambda value: session.snapshot({"plan": value}),
        lambda value: session.audit("mail", to=value).__enter__(),
    ]


def test_a_session_is_resumed_from_its_last_snapshot_and_what_came_after(
    sessions: SessionStore,
) -> None:
    """Slots of JSON and of bytes, those that were not given again too, and the events in order."""
    with sessions.create("one") as session:
        assert (session.id, session.recovery.slots, session.recovery.events) == ("one", {}, [])
        assert [session.append({"n": n}) for n in range(3)] == [1, 2, 3]
        assert session.snapshot({"plan": ["ü", 1], "memory": b"\0\xff", "old": 1}) == 2
        session.append("four")
        session.snapshot({"plan": ["b"]}, drop=("old",), reason="before deploy")
        session.append({"n": 5})
        session.append(None)
    with sessions.resume("one") as session:
        found = session.recovery
        assert found.slots == {"plan": ["b"], "memory": b"\0\xff"}
        assert [(each.sequence, each.value) for each in found.events] == [(5, {"n": 5}), (6, None)]
        assert (found.revision, found.unfinished, found.lost, found.cut_bytes) == (3, [], [], 0)
        assert [each.value for each in session.events()][:4] == [
            {"n": 0}, {"n": 1}, {"n": 2}, "four"]  # fmt: skip
        assert session.append(7) == 7


def test_the_folder_is_as_the_documents_say(sessions: SessionStore) -> None:
    """Names, modes, the revisions of the manifest and the records of the journal."""
    with sessions.create("a/b") as session:
        session.append("x")
        session.snapshot({"plan/1": 1, "raw": b"2"})
        session.snapshot({"raw": b"3"})
        session.snapshot({"raw": b"4"})
        with session.audit("mail", to="ann"):
            pass
    folder = place(sessions, "a%2Fb")
    assert sorted(contents(folder)) == [
        "audit/actions.log", "journal.log", "manifest.json",
        "state/plan%2F1.2", "state/raw.3", "state/raw.4"]  # fmt: skip
    for path in (folder.parent.parent, *folder.parent.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    created, first, *_, last, closed = values(folder / "manifest.json")
    assert created == {
        "event": "created", "version": 1, "store": "coder", "id": "a/b",
        "at": "2023-11-14T22:13:21Z"}  # fmt: skip
    assert list(first) == [
        "event", "at", "reason", "events", "end", "actions", "slots", "label"]  # fmt: skip
    assert (first["event"], first["reason"], first["events"]) == ("snapshot", "turn", 1)
    assert first["end"] == (folder / "journal.log").stat().st_size
    assert last["slots"]["plan/1"] == first["slots"]["plan/1"]
    assert list(last["slots"]["raw"]) == ["written", "form", "bytes", "sha256"]
    assert closed["event"] == "closed"
    assert values(folder / "journal.log") == [{"at": "2023-11-14T22:13:22Z", "event": "x"}]
    assert json.loads((folder / "state/plan%2F1.2").read_text()) == {"version": 1, "values": 1}
    assert (folder / "state/raw.4").read_bytes() == b"4"


def test_events_and_slots_have_the_types_of_the_store(sessions: SessionStore) -> None:
    """Others are refused; an older slot is migrated; what a file has besides is named."""
    with sessions.create("one") as session:
        session.snapshot({"usage": {"n": 1}})
    slots = {
        "usage": DocumentType(
            dict[str, int], 2, {1: lambda old: {"values": {"tokens": old["values"]["n"]}}}
        )
    }
    typed = SessionStore(sessions.folder, "coder", events=Said | Did, slots=slots)
    with typed.resume("one") as session:
        assert session.recovery.slots == {"usage": {"tokens": 1}}
        session.append(Said("hello"))
        session.append({"type": "did", "number": 1})
        for event, said in (
            ({"type": "did", "number": "x"}, "expected `int`, got `str` at number"),
            ({"type": "cried"}, "invalid value"),
            (3, "expected `object`, got `int`"),
        ):
            with pytest.raises(UsageError, match=f"the event is not of the store's type: {said}"):
                session.append(event)
        with pytest.raises(UsageError, match="slot 'usage' is not of the store's type"):
            session.snapshot({"usage": {"tokens": "many"}})
        session.snapshot({"usage": {"tokens": 2}}, through=1)
    with typed.resume("one") as session:
        assert [each.value for each in session.recovery.events] == [Did(1)]
        assert session.recovery.slots == {"usage": {"tokens": 2}}
    with pytest.raises(NewerStore, match=r"usage\.5 has version 2"):
        sessions.resume("one")
    with Journal(place(sessions) / "journal.log") as journal:
        journal.append({"at": "", "event": {"type": "said", "txt": "x"}})
    with pytest.raises(StateDamaged, match=r"journal\.log, line 3: .*`txt`"):
        typed.resume("one")


def test_what_json_does_not_hold_is_refused_and_changes_nothing(sessions: SessionStore) -> None:
    """In one line that does not quote the value; an event, a slot, an action and a name."""
    with sessions.create("one") as session:
        before = contents(session.folder)
        for value in (float("nan"), object(), "\udcff"):
            for put in puts(session):
                with pytest.raises(UsageError, match=r"^the [^\n]+ cannot be stored: [^\n]+$"):
                    put({"deep": [value]})
        with pytest.raises(UsageError, match="slot is empty"):
            session.snapshot({"": 1})
        for label in ("a/b", "..", ""):
            with pytest.raises(UsageError, match="no snapshot can have the label"):
                session.snapshot(label=label)
        with pytest.raises(NotInStore, match="no slot 'plan'"):
            session.snapshot(drop=("plan",))
        with pytest.raises(UsageError, match="from 0 to 0, not 4"):
            session.snapshot({"plan": 1}, through=4)
        assert contents(session.folder) == before
    for id_, said in (("one", "already"), ("", "empty"), ("x" * 300, "bytes")):
        with pytest.raises(UsageError, match=said):
            sessions.create(id_)
    for put in (*puts(session), lambda _: session.unfinished()):
        with pytest.raises(UsageError, match="'one' has been closed"):
            put(1)
    session.close()
    with pytest.raises(UsageError, match="empty"):
        SessionStore(sessions.folder, "")


@pytest.mark.parametrize(
    "value",
    [
        "use sk-" + "a1" * 12 + " please",
        {"headers": {"Authorization": "Bearer abcdefghijklmnop1234"}},
        {"db_password": "hunter2"},
        {"apiKey": "x"},
        ["-----BEGIN RSA PRIVATE KEY-----\nMII"],
        {"url": "postgres://ann:secret@host/db"},
        {"AKIAABCDEFGHIJKLMNOP": 1},
        "ghp_" + "a" * 36,
    ],
)
def test_what_looks_like_a_secret_is_refused_everywhere(sessions: SessionStore, value: Any) -> None:
    """In an event, a slot of either form, an action; it is neither written nor quoted."""
    secret = next(iter(json.dumps(value).split("hunter2")))[-8:]
    with sessions.create("one") as session:
        before = contents(session.folder)
        for put in puts(session):
            with pytest.raises(UsageError, match=r"what looks like .* keep a reference") as raised:
                put(value)
            assert secret not in str(raised.value)
        assert contents(session.folder) == before


def test_references_to_secrets_and_harmless_words_are_taken(sessions: SessionStore) -> None:
    """Also text about secrets, and numbers of tokens."""
    with sessions.create("one") as session:
        for value in (
            {"password": "env:DB_PASSWORD", "api_key": "${OPENAI_KEY}", "secret": "secret:db/1"},
            {"Authorization": "keyring:github", "token": "international", "max_tokens": 100},
            {"passphrase": "***", "credential": "", "access_token": None, "id_token": 7},
            ["sk-" * 30_000, "eyJ-" * 30_000, "a-" * 50_000, "://a:" * 20_000],
            "the password is in the vault; https://host:80/a@b; sk-learn; task-force-one-two-three",
        ):
            session.append(value)
        found = {"password": "x", "log": ["a ghp_" + "a" * 36 + " b", "Bearer " + "x" * 20]}
        session.append(without_secrets(found))
        assert values(session.folder / "journal.log")[-1]["event"] == {
            "password": "secret:removed",
            "log": ["a secret:removed b", "secret:removed"],
        }
        with pytest.raises(UsageError, match="a GitHub token"):
            session.snapshot({"raw": b"\0ghp_" + b"a" * 36})


def test_one_process_has_a_session_and_others_have_others(sessions: SessionStore) -> None:
    """The second is refused and told who has it; also in one process."""
    with sessions.create("one"):

        def second() -> None:
            with sessions.create("two"):
                sessions.resume("one")

        with pytest.raises(
            AssertionError, match=f"StoreLocked: .*one is in use by pid {os.getpid()}"
        ):
            run_as(None, second)
        for attempt in (sessions.resume, sessions.create, sessions.remove):
            with pytest.raises(StoreLocked, match="in this process"):
                attempt("one")
        assert {each.id: each.status for each in sessions.sessions()} == {
            "one": "running", "two": "unclean"}  # fmt: skip


def test_sessions_that_ended_uncleanly_are_listed_until_somebody_goes_on(
    sessions: SessionStore,
) -> None:
    """A kill and an exception leave one; a close, a finish and a running one do not."""

    def killed() -> None:
        session = sessions.create("killed")
        session.append(1)
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(start(killed), 0)
    with pytest.raises(ZeroDivisionError), sessions.create("failed") as session:
        session.append(1 / 0)
    sessions.create("closed").close()
    sessions.create("finished").finish()
    running = sessions.create("running")
    assert {each.id: each.status for each in sessions.sessions()} == {
        "killed": "unclean", "failed": "unclean", "closed": "closed",
        "finished": "finished", "running": "running"}  # fmt: skip
    assert {each.id for each in sessions.unclean()} == {"killed", "failed"}
    running.finish()
    sessions.resume("failed").close()
    [left] = sessions.unclean()
    assert (left.id, left.events, left.store, left.damage) == ("killed", 1, "coder", None)
    for id_ in ("finished", "running"):
        with pytest.raises(UsageError, match="has been finished"):
            sessions.resume(id_)
    sessions.remove("killed")
    assert sessions.unclean() == []
    for attempt in (sessions.resume, sessions.remove):
        with pytest.raises(NotInStore, match="no session 'killed'"):
            attempt("killed")


def test_another_store_refuses_the_session(sessions: SessionStore) -> None:
    """By its name; and a folder that was copied under another id is refused, too."""
    sessions.create("one").close()
    other = SessionStore(sessions.folder, "writer")
    for attempt in (other.resume, other.remove):
        with pytest.raises(ResumeMismatch, match="of the store 'coder' and this one is 'writer'"):
            attempt("one")
    assert other.sessions() == []
    place(sessions).rename(place(sessions, "two"))
    with pytest.raises(ResumeMismatch, match="of another session, 'one'"):
        sessions.resume("two")


def test_an_audited_action_is_durable_before_it_is_done_and_found_if_cut_short(
    sessions: SessionStore,
) -> None:
    """The next process is told, until it says what became of it."""

    def killed() -> None:
        with sessions.create("one") as session:
            with session.audit("mail", to="ann"):
                pass
            with session.audit("deploy", commit="abc"):
                [begun] = values(session.folder / "audit" / "actions.log")[2:]
                assert (begun["event"], begun["what"]) == ("begun", "deploy")
                assert session.unfinished() == []
                os.kill(os.getpid(), signal.SIGKILL)

    assert os.waitpid(start(killed), 0)[1] == signal.SIGKILL
    [listed] = sessions.unclean()
    assert listed.unfinished == 1
    for _ in range(2):
        with sessions.resume("one") as session:
            [action] = session.recovery.unfinished
            assert (action.number, action.what, action.details) == (3, "deploy", {"commit": "abc"})
            with pytest.raises(UsageError, match=r"actions to settle first: 3 \(deploy\)"):
                session.finish()
    with sessions.resume("one") as session:
        with (
            pytest.raises(UsageError, match=r"may have been done: look, and settle\(3, "),
            session.audit("deploy", commit="abc"),
        ):
            pytest.fail("it was done")
        with session.audit("look") as number, pytest.raises(UsageError, match="under way"):
            session.settle(number, "done")
        with pytest.raises(UsageError, match="no action 1 without an end"):
            session.settle(1, "done")
        session.settle(3, "was done")
        assert session.unfinished() == []
    assert values(place(sessions) / "audit" / "actions.log")[-1]["outcome"] == "was done"


def test_what_was_done_since_the_last_snapshot_is_told_though_no_event_says_so(
    sessions: SessionStore,
) -> None:
    """Done, failed or settled after it; not what had ended before."""
    with sessions.create("one") as session:
        with session.audit("before"):
            pass
        with session.audit("across"):
            session.snapshot({"plan": 1})
        with pytest.raises(ZeroDivisionError), session.audit("after"):
            session.append(1 / 0)
    with sessions.resume("one") as session:
        found = [(each.begun.what, each.outcome) for each in session.recovery.actions]
        assert found == [("across", "done"), ("after", "failed")]
        session.snapshot()
    with sessions.resume("one") as session:
        assert (session.recovery.actions, session.recovery.unfinished) == ([], [])


def test_a_torn_tail_is_cut_and_said(
    sessions: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each of the three journals; nothing that was acknowledged is lost by it."""
    with sessions.create("one") as session:
        session.append(1)
        session.snapshot({"plan": 1})
        session.append(2)
        with session.audit("mail"):
            pass
    for number, name in enumerate(("manifest.json", "journal.log", "audit/actions.log"), 1):
        with (place(sessions) / name).open("ab") as file:
            file.write(line_of(9, '{"torn": "and much longer"}')[: 10 * number])
    with caplog.at_level(logging.WARNING), sessions.resume("one") as session:
        assert session.recovery.cut_bytes == 60
        assert [each.value for each in session.recovery.events] == [2]
    assert caplog.text.count("of a record that was never finished are cut off") == 3
    with sessions.resume("one") as session:
        assert session.recovery.cut_bytes == 0


def test_a_snapshot_that_the_disk_refuses_leaves_the_session_as_it_was(
    sessions: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full while a slot is written, or while the revision is; the session goes on after it."""
    write = os.write
    with sessions.create("one") as session:
        session.snapshot({"plan": "first"})
        session.append(1)
        for refused in (b"second", b'"event":"snapshot"'):

            def full(fd: int, data: bytes, refused: bytes = refused) -> int:
                if refused in bytes(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(fd, data)

            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                with pytest.raises(OSError, match="No space"):
                    session.snapshot({"plan": "second"})
        session.append(2)
        session.let_go()
    with sessions.resume("one") as session:
        assert session.recovery.slots == {"plan": "first"}
        assert [each.value for each in session.recovery.events] == [1, 2]
        assert os.listdir(session.folder / "state") == ["plan.2"]
        session.snapshot({"plan": "third"})
    assert sessions.resume("one").recovery.slots == {"plan": "third"}


def test_slots_are_durable_before_the_revision_and_an_audit_record_before_its_action(
    sessions: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut cannot break."""
    calls: list[str] = []

    def noted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any) -> Any:
            place = "" if name == "rename" else os.readlink(f"/proc/self/fd/{args[0]}")
            calls.append(f"{name} {os.path.basename(place)}".strip())
            return original(*args)

        monkeypatch.setattr(os, name, call)

    with sessions.create("one") as session:
        for name in ("write", "fsync", "fdatasync", "rename"):
            noted(name)
        session.snapshot({"plan": 1})
        assert calls == [
            "write .plan.2.new", "fsync .plan.2.new", "rename", "fsync state",
            "write manifest.json", "fdatasync manifest.json"]  # fmt: skip
        calls.clear()
        with session.audit("mail"):
            assert calls == ["write actions.log", "fdatasync actions.log"]
        calls.clear()
        session.append(1)
        assert calls == ["write journal.log", "fdatasync journal.log"]


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_threads_append_in_one_order_and_lose_nothing(sessions: SessionStore) -> None:
    """While one of them takes snapshots of what it has seen, and another audits."""

    def append(thread: int) -> None:
        for number in range(25):
            session.append([thread, number])

    def audit() -> None:
        for number in range(25):
            with session.audit("look", number=number):
                assert session.unfinished() == []

    def snapshot() -> None:
        for number in range(10):
            session.snapshot({"seen": [each.value for each in session.events()], "n": number})

    with sessions.create("one") as session:
        jobs = [threading.Thread(target=append, args=(number,)) for number in range(3)]
        jobs += [threading.Thread(target=each) for each in (audit, snapshot)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        found = [each.value for each in session.events()]
    for thread in range(3):
        assert [n for t, n in found if t == thread] == list(range(25))
    with sessions.resume("one") as session:
        assert session.recovery.slots["n"] == 9
        assert session.recovery.unfinished == []


def test_the_example_of_an_agent_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    """Killed while it mails, it asks before it goes on."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "resumed_agent.py"
    folder, mails = tmp_path / "agent", tmp_path / "mails"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(example), str(folder), str(mails), "tidy", *words]
        return subprocess.run(command, capture_output=True, text=True)

    assert run().stdout == "step 1 of tidy\n"
    assert run().stdout == "step 1 of tidy\nstep 2 of tidy\n"

    def killed(mail_is_done: bool) -> None:
        session = SessionStore(folder, "resumed-agent").resume("tidy")
        with session.audit("mail", text=f"step {3 + mail_is_done} of tidy"):
            if not mail_is_done:
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(start(lambda: killed(False)), 0)
    refused = run()
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        "\nwas this mail sent? step 3 of tidy: look, and say 'done' or 'failed'\n"
    )
    assert run("failed").stdout.splitlines()[2:] == ["step 3 of tidy"]
    assert len(mails.read_text().splitlines()) == 3
    os.waitpid(start(lambda: killed(True)), 0)
    assert run().stdout.splitlines()[3:] == ["step 4 of tidy", "step 5 of tidy"]
