"""Asks the daemon of a store to do something. Blocking, and light to import: no engine, no trio."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from statefs.control.address import socket_address
from statefs.control.kinds import READING
from statefs.control.messages import (
    SILENCE_SECONDS,
    Reply,
    Request,
    decode_reply,
    encode,
    raised_error,
)
from statefs.errors import DaemonUnreachable, typed
from statefs.layout import StoreLayout
from statefs.locking import read_owner

LOOK_SECONDS: Final = 2.0
"""While a daemon is silent, it is looked at this often: one that is stopped says nothing more."""
READING_SECONDS: Final = 10.0
"""How long it may be silent when nothing is to be changed: to ask again costs nothing."""
CONNECT_SECONDS: Final = 10.0
"""A daemon that is starting has the lock a moment before it has the socket."""
_POLL_SECONDS: Final = 0.02
_RECEIVE_BYTES: Final = 1 << 16
_CREDENTIALS: Final = struct.Struct("3i")


class ControlClient:
    """A connection to the daemon that has a store open.

    Args:
        layout: of the store.
        connect_seconds: how long to wait for a daemon that holds the lock but has no socket yet.
    """

    def __init__(self, layout: StoreLayout, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._layout = layout
        self._connect_seconds = connect_seconds
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._last_id = 0
        self._silence_seconds = SILENCE_SECONDS

    def connect(self) -> None:
        """Connect, if that is not done; call() does it by itself.

        Raises:
            DaemonUnreachable: nobody listens on the socket.
        """
        give_up = time.monotonic() + self._connect_seconds
        while self._socket is None:
            try:
                self._socket = self._connected()
            except PermissionError as error:
                raise DaemonUnreachable(
                    f"the daemon of {self._layout.root} belongs to another user: "
                    "run this as that user or as root"
                ) from error
            except OSError as error:
                owner = read_owner(self._layout)
                if owner is None or not owner.alive:
                    raise DaemonUnreachable(
                        f"no daemon has {self._layout.root} open; if one has just ended, try again"
                    ) from error
                if time.monotonic() >= give_up:
                    raise DaemonUnreachable(
                        f"the daemon of {self._layout.root} (pid {owner.pid}) does not answer: "
                        f"see {self._layout.log}"
                    ) from error
                time.sleep(_POLL_SECONDS)

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(SILENCE_SECONDS)
            with socket_address(self._layout.control_socket) as address:
                connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection

    def call(
        self,
        op: str,
        args: Mapping[str, Any],
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """Have the daemon do one operation and return its result.

        Args:
            op: the operation (statefs/control/messages.py lists them).
            args: its arguments, by name.
            on_progress: called with each progress document that is not empty.

        Raises:
            StatefsError: the daemon refused; of the class that the daemon raised.
            DaemonUnreachable: there is no daemon, or it went silent or away.
        """
        self.connect()
        assert self._socket is not None
        self._last_id += 1
        self._socket.settimeout(SILENCE_SECONDS)
        try:
            # A daemon that refuses to listen has said why before it hung up: read that.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(encode(Request(self._last_id, op, dict(args))))
            self._silence_seconds = READING_SECONDS if op in READING else SILENCE_SECONDS
            while True:
                reply = self._next_reply()
                if reply.error is not msgspec.UNSET:
                    raise raised_error(reply.error)
                if reply.progress is msgspec.UNSET:
                    return reply.result
                if reply.progress and on_progress is not None:
                    on_progress(reply.progress)
        except (OSError, msgspec.MsgspecError) as error:
            text = self._silence_text(op, error, _peer_pid(self._socket))
            self.close()
            raise DaemonUnreachable(text) from error

    def _next_reply(self) -> Reply:
        """Return the next reply to the last request, or to no request at all (a refusal)."""
        while True:
            reply = decode_reply(self._next_line())
            if reply.id in (self._last_id, 0):
                return reply

    def _next_line(self) -> bytes:
        assert self._socket is not None
        looked_at = 0
        while (end := self._received.find(b"\n", looked_at)) < 0:
            looked_at = len(self._received)  # a line of a million differences has many chunks
            chunk = self._next_chunk(self._socket)
            if not chunk:
                raise ConnectionResetError("the daemon closed the connection")
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _next_chunk(self, connection: socket.socket) -> bytes:
        """Return what comes next. Raises TimeoutError: the daemon is silent, or stopped."""
        give_up = time.monotonic() + self._silence_seconds
        while True:
            left = max(give_up - time.monotonic(), _POLL_SECONDS)
            connection.settimeout(min(left, LOOK_SECONDS))
            try:
                return connection.recv(_RECEIVE_BYTES)
            except TimeoutError:
                if _is_stopped(_peer_pid(connection)) or time.monotonic() >= give_up:
                    raise

    def _silence_text(self, op: str, error: Exception, pid: int) -> str:
        if isinstance(error, TimeoutError) and _is_stopped(pid):
            return _stopped_text(self._layout, [pid])
        if isinstance(error, TimeoutError):
            what = f"(pid {pid}) has not answered for {self._silence_seconds:.0f} s"
        else:
            what = f"(pid {pid}) went away during '{op}'"
        said = f"the daemon of {self._layout.root} {what}: see {self._layout.log}"
        return said if op in READING else f"{said}; 'statefs list' shows what it has done"

    def close(self) -> None:
        """Close the connection; the next call() makes a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_stopped(layout: StoreLayout) -> None:
    """Refuse what would wait for a daemon of which a process is stopped.

    Raises:
        DaemonUnreachable: the message names the processes.
    """
    try:
        owner = read_owner(layout)
    except PermissionError:  # of another user: whoever unmounts it will say so
        return
    if owner is None or not owner.alive or owner.role != "daemon":
        return
    pids = {owner.pid}
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LOOK_SECONDS)
        with socket_address(layout.control_socket) as address:
            connection.connect(address)
        pids.add(_peer_pid(connection))
    stopped = [pid for pid in sorted(pids) if _is_stopped(pid)]
    if stopped:
        raise DaemonUnreachable(_stopped_text(layout, stopped))


def _stopped_text(layout: StoreLayout, pids: Sequence[int]) -> str:
    return (
        f"the daemon of {layout.root} is stopped and does not answer: "
        f"'{typed('kill', '-CONT', *pids)}' has it go on"
    )


def _peer_pid(connection: socket.socket) -> int:
    """Return the process that listened on the socket, a worker. Source: unix(7), SO_PEERCRED."""
    pid: int = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )[0]
    return pid


def _is_stopped(pid: int) -> bool:
    """Return whether a signal, or a debugger, has stopped a process. Source: proc(5), stat."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("T", "t")
