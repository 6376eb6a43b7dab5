"""The daemon's side of `control.sock`: who may ask, one request after the other, one reply each.

Knows the form of requests, not what the operations do: that is the `Handler` it is given.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trio

from statefs.control.address import socket_address
from statefs.control.messages import (
    ALIVE_SECONDS,
    PROGRESS_SECONDS,
    REQUEST_BYTES_MAX,
    Reply,
    Request,
    decode_request,
    encode,
    error_body,
)
from statefs.errors import StatefsError, UsageError, refusal
from statefs.layout import StoreLayout

log = logging.getLogger(__name__)


class Call:
    """A request being worked on: its last progress, and whether its client still listens.

    Args:
        pid: of the client.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.progress: dict[str, Any] = {}
        self.is_wanted = True

    def report(self, progress: dict[str, Any]) -> None:
        """Have the client told how far the work is, with the next sign of life; any thread may."""
        self.progress = progress


Handler = Callable[[str, dict[str, Any], Call], Awaitable[Any]]
"""Does one operation: its name and arguments to its result, or a StatefsError."""

CONNECTIONS_MAX: Final = 64
"""More at a time are closed at once: they could only be a mistake."""
IDLE_SECONDS: Final = 300.0
"""A connection on which nothing is asked for so long is closed."""
SEND_SECONDS: Final = 10.0
"""A client that does not read its reply for so long is given up."""
_BACKLOG: Final = 16
_RECEIVE_BYTES: Final = 1 << 16
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid. Source: unix(7), SO_PEERCRED."""


class ControlServer:
    """Serves the control socket of one store.

    Args:
        layout: of the store, whose lock the caller holds.
        handle: does the operations. It may be cancelled only by cancelling serve().
    """

    def __init__(self, layout: StoreLayout, handle: Handler) -> None:
        self._layout = layout
        self._handle = handle
        self._is_closing = False
        self._waits: set[trio.CancelScope] = set()
        self._connections = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and answer until finish() is called and the last reply is out.

        Raises:
            OSError: the socket cannot be made.
        """
        path = self._layout.control_socket
        path.unlink(missing_ok=True)  # of a daemon that crashed: the caller has the lock
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
            with socket_address(path) as address:
                await listener.bind(address)
            path.chmod(0o600)
            listener.listen(_BACKLOG)
            try:
                async with trio.open_nursery() as nursery:
                    task_status.started()
                    await self._accept_all(listener, nursery)
            finally:
                path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Accept nothing more; serve() returns when the requests that run now are answered."""
        self._is_closing = True
        for scope in self._waits:
            scope.cancel()

    async def _accept_all(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while not self._is_closing:
            with trio.CancelScope() as scope:
                self._waits.add(scope)
                try:
                    connection, _ = await listener.accept()
                except OSError as error:
                    # Out of descriptors: those in use become free; this one is tried again.
                    log.warning("cannot accept a connection: %s", error)
                    await trio.sleep(ALIVE_SECONDS)
                    continue
                finally:
                    self._waits.discard(scope)
                nursery.start_soon(self._serve_connection, trio.SocketStream(connection))

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        try:
            async with stream:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    if not may_ask(_peer(stream.socket)[1]):
                        await _refuse(stream, StatefsError("only the owner of the store may ask"))
                    elif self._connections > CONNECTIONS_MAX:
                        await _refuse(stream, StatefsError("the daemon has too many connections"))
                    else:
                        await self._answer_all(stream)
        finally:
            self._connections -= 1

    async def _answer_all(self, stream: trio.SocketStream) -> None:
        buffer = bytearray()
        while not self._is_closing:
            try:
                line = await self._next_line(stream, buffer)
            except UsageError as error:
                await _refuse(stream, error)
                return
            if line is None:
                return
            try:
                request = decode_request(line)
            except UsageError as error:
                await _send(stream, Reply(0, error=error_body(error)))
                continue
            await self._answer(stream, buffer, request)

    async def _next_line(self, stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
        """Return the next line, or None when there will be none.

        Raises:
            UsageError: the line is longer than REQUEST_BYTES_MAX.
        """
        with trio.move_on_after(IDLE_SECONDS) as scope:
            self._waits.add(scope)
            try:
                while (end := buffer.find(b"\n")) < 0:
                    if len(buffer) > REQUEST_BYTES_MAX:
                        raise _too_long()
                    chunk = await stream.receive_some(_RECEIVE_BYTES)
                    if not chunk:
                        return None
                    buffer += chunk
            finally:
                self._waits.discard(scope)
            if end > REQUEST_BYTES_MAX:
                raise _too_long()
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            return line
        return None

    async def _answer(self, stream: trio.SocketStream, buffer: bytearray, request: Request) -> None:
        call = Call(_peer(stream.socket)[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_signs_of_life, stream, request.id, call)
            nursery.start_soon(_notice_hang_up, stream, buffer, call)
            line = await self._reply_line(request, call)
            nursery.cancel_scope.cancel()
        await _send_line(stream, line)

    async def _reply_line(self, request: Request, call: Call) -> bytes:
        try:
            result = await self._handle(request.op, request.args, call)
            return encode(Reply(request.id, result=result))
        except StatefsError as error:
            told = error
        except OSError as error:
            log.error("the operation '%s' failed: %s", request.op, error)
            told = refusal(error, self._layout.root)
        except Exception:
            log.exception("the operation '%s' failed", request.op)
            told = StatefsError(
                f"internal error in the daemon during '{request.op}': see {self._layout.log}"
            )
        return encode(Reply(request.id, error=error_body(told)))


async def _show_signs_of_life(stream: trio.SocketStream, request_id: int, call: Call) -> None:
    """Tell the client again and again that its request is worked on, and how far it is."""
    try:
        silent_seconds = 0.0
        while True:
            await trio.sleep(PROGRESS_SECONDS)
            silent_seconds += PROGRESS_SECONDS
            progress, call.progress = call.progress, {}
            if progress or silent_seconds >= ALIVE_SECONDS:
                await _send(stream, Reply(request_id, progress=progress))
                silent_seconds = 0.0
    except trio.BrokenResourceError:
        pass  # a client that has gone away changes nothing, unless the work was for its eyes only
    finally:
        call.is_wanted = False  # also when the daemon ends, which waits for the work


async def _notice_hang_up(stream: trio.SocketStream, buffer: bytearray, call: Call) -> None:
    """Note when the client goes away; what it asks meanwhile is kept, for its turn.

    One that only asks no more still reads its reply.
    """
    while len(buffer) <= REQUEST_BYTES_MAX:
        try:
            chunk = await stream.receive_some(_RECEIVE_BYTES)
        except trio.BrokenResourceError:  # with something unread
            call.is_wanted = False
            return
        if not chunk:
            if _has_hung_up(stream.socket):
                call.is_wanted = False
            return
        buffer += chunk


def _has_hung_up(connection: trio.socket.SocketType) -> bool:
    """Whether nobody reads at the other end. Source: poll(2), POLLHUP."""
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


async def _refuse(stream: trio.SocketStream, error: StatefsError) -> None:
    await _send(stream, Reply(0, error=error_body(error)))


async def _send(stream: trio.SocketStream, reply: Reply) -> None:
    await _send_line(stream, encode(reply))


async def _send_line(stream: trio.SocketStream, line: bytes) -> None:
    # Shielded, because half a line would garble the one after it.
    with trio.move_on_after(SEND_SECONDS, shield=True) as scope:
        await stream.send_all(line)
    if scope.cancelled_caught:
        raise trio.BrokenResourceError("the client does not read its replies")


def _too_long() -> UsageError:
    return UsageError(f"a request is longer than {REQUEST_BYTES_MAX} bytes")


def may_ask(uid: int) -> bool:
    """Return whether a user may ask for anything: the owner of this process, and root."""
    return uid in (0, os.geteuid())


def _peer(connection: trio.socket.SocketType) -> tuple[int, int]:
    """Return the process and the user at the other end, as the kernel knows them."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(packed)
    return pid, uid
