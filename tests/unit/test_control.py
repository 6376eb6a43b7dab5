from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from statefs import errors
from statefs.control import client as client_module
from statefs.control import messages, server
from statefs.control.address import SOCKET_PATH_BYTES_MAX, socket_address
from statefs.control.client import ControlClient
from statefs.control.messages import (
    REQUEST_BYTES_MAX,
    ErrorBody,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode,
    error_body,
    raised_error,
)
from statefs.control.server import Call, ControlServer
from statefs.errors import (
    DaemonUnreachable,
    NoSpace,
    NoSuchSnapshot,
    PosixError,
    StatefsError,
    UsageError,
)
from statefs.layout import StoreLayout
from statefs.locking import StoreLock

LONG_SECONDS = 20.0
"""A deadline that ends a test which hangs; nothing here takes a tenth of it."""


class FakeEngine:
    """Does what the tests ask for by the name of the operation."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.go_on = trio.Event()
        self.finished = 0
        self.wanted: list[bool] = []

    async def handle(self, op: str, args: dict[str, Any], call: Call) -> Any:
        """Do one operation."""
        if op == "wait":
            self.started.set()
            await self.go_on.wait()
            self.finished += 1
        elif op == "wait until unwanted":
            self.started.set()
            while call.is_wanted:
                await trio.sleep(0.001)
            self.finished += 1
        elif op == "refuse":
            raise NoSuchSnapshot("no snapshot 'x'")
        elif op == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        elif op == "bug":
            raise KeyError("a bug")
        self.wanted.append(call.is_wanted)
        return {"op": op, **args}


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """The paths of a store that is only a folder."""
    return StoreLayout(tmp_path)


@asynccontextmanager
async def served(layout: StoreLayout, engine: FakeEngine) -> AsyncIterator[ControlServer]:
    """Serve the socket of a store under its lock; afterwards it must be gone."""
    control = ControlServer(layout, engine.handle)
    with trio.fail_after(LONG_SECONDS), StoreLock(layout, role="daemon"):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve)
            yield control
            control.finish()
    assert not layout.control_socket.exists()


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run something that blocks beside the server."""
    return await trio.to_thread.run_sync(function)


def call_once(layout: StoreLayout, op: str, **args: Any) -> Any:
    """Connect, do one operation, close."""
    with ControlClient(layout) as control:
        return control.call(op, args)


async def test_a_request_gets_its_result(layout: StoreLayout) -> None:
    """Operation and arguments arrive, and the result comes back."""
    async with served(layout, FakeEngine()):
        result = await in_thread(lambda: call_once(layout, "save", message="größer", labels={}))
    assert result == {"op": "save", "message": "größer", "labels": {}}


async def test_one_connection_carries_several_requests(layout: StoreLayout) -> None:
    """A refusal in between does not end it."""

    def several() -> list[Any]:
        with ControlClient(layout) as control:
            first = control.call("list", {})
            with pytest.raises(NoSuchSnapshot):
                control.call("refuse", {})
            return [first, control.call("status", {})]

    async with served(layout, FakeEngine()):
        assert await in_thread(several) == [{"op": "list"}, {"op": "status"}]


async def test_a_refusal_is_raised_as_the_class_it_was(layout: StoreLayout) -> None:
    """The command line takes its exit code from it."""

    def refused() -> None:
        with pytest.raises(NoSuchSnapshot, match="no snapshot 'x'"):
            call_once(layout, "refuse")

    async with served(layout, FakeEngine()):
        await in_thread(refused)


async def test_a_bug_is_logged_and_told_without_details(
    layout: StoreLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns where to look; the daemon goes on."""

    def bug() -> None:
        with pytest.raises(StatefsError, match=r"internal error.*statefs\.log"):
            call_once(layout, "bug")
        assert call_once(layout, "list") == {"op": "list"}

    async with served(layout, FakeEngine()):
        with caplog.at_level(logging.ERROR):
            await in_thread(bug)
    assert "the operation 'bug' failed" in caplog.text and "KeyError" in caplog.text


async def test_a_full_disk_is_told_as_such(layout: StoreLayout) -> None:
    """ENOSPC below an operation is NoSpace for the client, not an internal error."""

    def full() -> None:
        with pytest.raises(NoSpace, match="free some space"):
            call_once(layout, "full")

    async with served(layout, FakeEngine()):
        await in_thread(full)


async def test_long_work_shows_signs_of_life(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that gives up after a silence still waits for work that takes longer."""
    monkeypatch.setattr(server, "ALIVE_SECONDS", 0.01)
    engine = FakeEngine()
    lines: list[bytes] = []

    def read_lines() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(layout.control_socket))
            connection.sendall(encode(Request(7, "wait", {})))
            with connection.makefile("rb") as stream:
                lines.extend(stream.readline() for _ in range(3))
                trio.from_thread.run_sync(engine.go_on.set)
                lines.extend(stream)

    async with served(layout, engine) as control, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, read_lines)
        await engine.go_on.wait()
        control.finish()
    replies = [decode_reply(line) for line in lines]
    assert all(reply.id == 7 for reply in replies)
    assert all(reply.progress == {} for reply in replies[:-1])
    assert replies[-1].result == {"op": "wait"}


async def test_a_silent_daemon_is_given_up(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client raises DaemonUnreachable; what was asked for may have been done."""
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 0.05)
    engine = FakeEngine()

    def silent() -> None:
        with pytest.raises(DaemonUnreachable, match="has not answered for"):
            call_once(layout, "wait")

    async with served(layout, engine):
        await in_thread(silent)
        engine.go_on.set()


async def test_a_question_is_given_up_sooner_than_a_change(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask again costs nothing; what a change has done has to be looked at."""
    monkeypatch.setattr(client_module, "READING_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "READING", {"wait"})
    engine = FakeEngine()

    def silent() -> None:
        with pytest.raises(DaemonUnreachable, match=rf"pid {os.getpid()}\) has not answered") as it:
            call_once(layout, "wait")
        assert "what it has done" not in str(it.value)

    async with served(layout, engine):
        await in_thread(silent)
        engine.go_on.set()


def test_another_users_daemon_is_not_looked_at(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever unmounts it is told whose mount it is, by who knows that."""

    def refuse(_: StoreLayout) -> None:
        raise PermissionError

    monkeypatch.setattr(client_module, "read_owner", refuse)
    client_module.refuse_stopped(layout)


async def test_what_a_client_asked_for_is_done_though_it_went_away(layout: StoreLayout) -> None:
    """Ctrl-C in a terminal does not leave half a save."""
    engine = FakeEngine()
    async with served(layout, engine):
        with socket.socket(socket.AF_UNIX) as connection:
            await in_thread(lambda: connection.connect(str(layout.control_socket)))
            connection.sendall(encode(Request(1, "wait", {})))
            await engine.started.wait()
        engine.go_on.set()
    assert engine.finished == 1


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 2)])
async def test_a_client_that_goes_away_is_noticed_at_once(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    """Not when it is next written to; also when it left a reply unread, or had asked for more."""
    monkeypatch.setattr(server, "PROGRESS_SECONDS", 10 * LONG_SECONDS)
    engine = FakeEngine()
    async with served(layout, engine):
        with socket.socket(socket.AF_UNIX) as connection:
            await in_thread(lambda: connection.connect(str(layout.control_socket)))
            connection.sendall(encode(Request(1, "list", {})) * before)
            connection.sendall(encode(Request(2, "wait until unwanted", {})))
            await engine.started.wait()
            connection.sendall(encode(Request(3, "list", {})) * after)
    assert engine.finished == 1


async def test_a_client_that_asks_no_more_is_still_answered(layout: StoreLayout) -> None:
    """It has said all that it has to say, and closed its half; what it had asked is in order."""
    engine = FakeEngine()

    def ask() -> list[int]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(layout.control_socket))
            connection.sendall(encode(Request(1, "wait", {})))
            trio.from_thread.run(engine.started.wait)
            for number in (2, 3):
                connection.sendall(encode(Request(number, "list", {})))
            connection.shutdown(socket.SHUT_WR)
            trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
            trio.from_thread.run_sync(engine.go_on.set)
            with connection.makefile("rb") as stream:
                replies = [decode_reply(line) for line in stream]
            return [reply.id for reply in replies if reply.progress is msgspec.UNSET]

    async with served(layout, engine):
        assert await in_thread(ask) == [1, 2, 3]
    assert engine.wanted == [True] * 3


async def test_requests_that_run_are_answered_when_the_server_ends(layout: StoreLayout) -> None:
    """`stop` must be able to answer although it is what ends the server."""
    engine = FakeEngine()
    results: list[Any] = []

    async def ask() -> None:
        results.append(await in_thread(lambda: call_once(layout, "wait")))

    async with served(layout, engine) as control, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await engine.started.wait()
        control.finish()
        engine.go_on.set()
    assert results == [{"op": "wait"}]


async def test_an_idle_connection_does_not_hold_up_the_end(layout: StoreLayout) -> None:
    """served() would time out if it did."""
    with socket.socket(socket.AF_UNIX) as connection:
        async with served(layout, FakeEngine()):
            await in_thread(lambda: connection.connect(str(layout.control_socket)))
            await trio.testing.wait_all_tasks_blocked()


async def test_the_socket_is_for_its_owner_only(layout: StoreLayout) -> None:
    """Its mode says so, besides the check of the peer."""
    async with served(layout, FakeEngine()):
        assert layout.control_socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("uid", "is_permitted"), [(0, True), (1000, True), (1001, False)])
def test_only_root_and_the_owner_may_ask(
    monkeypatch: pytest.MonkeyPatch, uid: int, is_permitted: bool
) -> None:
    """A daemon of user 1000 does not listen to user 1001."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert server.may_ask(uid) is is_permitted


async def test_another_user_is_refused(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that has got at the socket is told so instead of being served."""
    asked_for: list[int] = []

    def nobody(uid: int) -> bool:
        asked_for.append(uid)
        return False

    def ask() -> None:
        with pytest.raises(StatefsError, match="only the owner of the store"):
            call_once(layout, "list")

    monkeypatch.setattr(server, "may_ask", nobody)
    async with served(layout, FakeEngine()):
        await in_thread(ask)
    assert asked_for == [os.geteuid()]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"nonsense\n", "cannot be understood"),
        (b'{"id":1}\n', "missing required field `op`"),
        (b'{"id":1,"op":"list","args":{},"more":1}\n', "unknown field `more`"),
        (b'{"id":1,"op":"list","args":[]}\n', "args"),
        (b"x" * (REQUEST_BYTES_MAX + 1) + b"\n", f"longer than {REQUEST_BYTES_MAX} bytes"),
    ],
)
async def test_a_bad_request_is_refused_with_its_reason(
    layout: StoreLayout, line: bytes, match: str
) -> None:
    """The reply has the number 0, because the request's may be unreadable."""

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(layout.control_socket))
            connection.sendall(line)
            with connection.makefile("rb") as stream:
                return stream.readline()

    async with served(layout, FakeEngine()):
        answer = json.loads(await in_thread(ask))
    assert answer["id"] == 0
    assert answer["error"]["type"] == "UsageError" and match in answer["error"]["message"]


async def test_a_request_may_come_in_pieces(layout: StoreLayout) -> None:
    """And two requests in one piece are both answered."""
    line = encode(Request(1, "list", {}))

    def ask() -> list[bytes]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(layout.control_socket))
            for byte in line[:-1]:
                connection.send(bytes([byte]))
            connection.send(b"\n" + line)
            with connection.makefile("rb") as stream:
                return [stream.readline(), stream.readline()]

    async with served(layout, FakeEngine()):
        assert await in_thread(ask) == [encode(Reply(1, result={"op": "list"}))] * 2


async def test_too_many_connections_are_refused(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones go on working."""
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)

    def ask() -> None:
        with ControlClient(layout) as first:
            first.call("list", {})
            with pytest.raises(StatefsError, match="too many connections"):
                call_once(layout, "list")
            assert first.call("list", {}) == {"op": "list"}

    async with served(layout, FakeEngine()):
        await in_thread(ask)


async def test_a_socket_left_by_a_crash_is_replaced(layout: StoreLayout) -> None:
    """The new daemon has the lock, so the old one is gone."""
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(layout.control_socket))
    async with served(layout, FakeEngine()):
        assert await in_thread(lambda: call_once(layout, "list")) == {"op": "list"}


async def test_a_store_deep_in_the_tree_has_a_socket_too(tmp_path: Path) -> None:
    """A path longer than a socket address can hold works for server and client."""
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 6)
    deep.mkdir(parents=True)
    layout = StoreLayout(deep)
    assert len(str(layout.control_socket)) > SOCKET_PATH_BYTES_MAX
    async with served(layout, FakeEngine()):
        assert await in_thread(lambda: call_once(layout, "list")) == {"op": "list"}


def test_a_short_path_is_its_own_address(tmp_path: Path) -> None:
    """Nothing is opened for it."""
    with socket_address(Path("/srv/x.store/control.sock")) as address:
        assert address == "/srv/x.store/control.sock"


def test_no_daemon_is_told_at_once(layout: StoreLayout) -> None:
    """The lock is free, so waiting would be in vain."""
    with pytest.raises(DaemonUnreachable, match="no daemon has"):
        call_once(layout, "list")


def test_a_daemon_without_a_socket_is_told_after_a_while(layout: StoreLayout) -> None:
    """The message has its pid and its log."""
    with StoreLock(layout, role="daemon"):
        control = ControlClient(layout, connect_seconds=0.05)
        with pytest.raises(DaemonUnreachable, match=rf"pid {os.getpid()}.*statefs\.log"):
            control.call("list", {})


def error_classes() -> list[type[StatefsError]]:
    """Return every class of the error tree except the root and PosixError."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, StatefsError) and kind is not PosixError]


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_survives_the_wire(kind: type[StatefsError]) -> None:
    """Class, message and exit code are the same on the other side."""
    line = encode(Reply(1, error=error_body(kind("why"))))
    body = decode_reply(line).error
    assert isinstance(body, ErrorBody)
    raised = raised_error(body)
    assert type(raised) is kind and str(raised) == "why" and raised.exit_code == kind.exit_code


def test_a_posix_error_keeps_its_number() -> None:
    """Its message is made of the number."""
    raised = raised_error(error_body(PosixError(errno.EDQUOT)))
    assert isinstance(raised, PosixError) and raised.errno == errno.EDQUOT


@pytest.mark.parametrize("name", ["NotYetInvented", "_errno", "os", "PosixError"])
def test_an_unknown_error_keeps_its_message_and_exit_code(name: str) -> None:
    """A newer daemon may know more errors; a name of something else is never called."""
    raised = raised_error(ErrorBody(name, "why", 42))
    assert type(raised) is StatefsError and str(raised) == "why" and raised.exit_code == 42


def test_requests_and_replies_are_one_line_each() -> None:
    """Newlines inside are escaped."""
    request = Request(3, "save", {"message": "a\nb"})
    assert encode(request).count(b"\n") == 1
    assert decode_request(encode(request)) == request
    assert encode(Reply(3, result=None)) == b'{"id":3,"result":null}\n'
    assert messages.ALIVE_SECONDS * 5 < messages.SILENCE_SECONDS


def test_a_request_may_leave_its_arguments_out() -> None:
    """Each request has arguments of its own."""
    first, second = decode_request(b'{"id":1,"op":"a"}'), decode_request(b'{"id":2,"op":"b"}')
    assert first.args == {} and first.args is not second.args


def test_a_request_that_is_no_json_is_a_usage_error() -> None:
    """The reason is the decoder's."""
    with pytest.raises(UsageError, match="malformed"):
        decode_request(b"{]")
