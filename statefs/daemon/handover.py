"""What supervisor and worker say to each other, and the descriptors that go with it.

    supervisor  Begin   the store's lock, the page of changes under way
    worker      Working where that takes long, here and before Ready; only the first worker says it
    worker      Opened  the store is open; or Failed
    supervisor  Serve   the connection to the kernel
    worker      Ready   programs are answered; or Failed
    worker      Ended   the mount has ended and the store is closed

A successor is given Begin and Serve at once. One may be started long before: it says Loaded and
waits. For an upgrade:

    worker      Upgrade   another version is installed: somebody else is to serve
    supervisor  Refused   nobody can; otherwise this worker is killed, and followed

When either end is closed without Ended, the process
at the other end is dead, even if the kernel has not let go of it yet.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from statefs.control.messages import ErrorBody
from statefs.telemetry.lines import TEXT

MESSAGE_BYTES_MAX: Final = 1 << 16
"""More than any message has: a path, an error, a FUSE_INIT."""
DESCRIPTORS_MAX: Final = 2


class Begin(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Open the store.

    Args:
        state: the mount point.
        store: whose lock comes with this.
        options: of the mount, as text.
        supervisor_pid: who says so.
        oom_score_adj: what the worker is to have (proc(5)); the supervisor has less.
        restarts: workers that have died before this one.
        since: when the mount became usable, ISO 8601; "" for its first worker.
        dead: the pids of earlier workers whose threads the kernel may not have let go of.
    """

    state: str
    store: str
    options: str
    supervisor_pid: int
    oom_score_adj: int
    restarts: int = 0
    since: str = ""
    dead: tuple[int, ...] = ()


class Serve(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Answer the kernel; the connection comes with this.

    Args:
        init_request: the kernel's FUSE_INIT.
        init_reply: what it was told; empty for the first worker.
    """

    init_request: bytes
    init_reply: bytes = b""


class Working(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The mount is not usable yet; said about once a second.

    Args:
        what: is done meanwhile, in words.
        done: how much of that.
        total: how much there is to do, None where that is not known.
        unit: of both: `seconds`, `bytes`.
    """

    what: str
    done: int
    total: int | None
    unit: str


class Opened(msgspec.Struct, tag=True, frozen=True):
    """The store is open."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The mount is usable.

    Args:
        since: since when, ISO 8601.
        init_reply: what the kernel was told.
        remark: a line for whoever mounts, "" for none.
        log_format: how the log is written (statefs.toml).
    """

    since: str
    init_reply: bytes
    remark: str = ""
    log_format: str = TEXT


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The mount cannot be served, and why."""

    error: ErrorBody


class Ended(msgspec.Struct, tag=True, frozen=True):
    """The mount has ended, and the store is closed."""


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """The worker waits to be told what to do, with all its code loaded.

    Args:
        version: of statefs.
        basis: what two workers must agree on to serve one mount in turn.
    """

    version: str
    basis: str


class Upgrade(msgspec.Struct, tag=True, frozen=True):
    """A new process, of what is installed now, is to serve the mount in place of this one."""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The worker goes on, and why."""

    error: ErrorBody


Message = Begin | Serve | Working | Opened | Ready | Failed | Ended | Loaded | Upgrade | Refused
_encoder: Final = msgspec.json.Encoder()
_decoder: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Message)


class Channel:
    """One end of the line between supervisor and worker.

    Args:
        end: of a pair of SOCK_SEQPACKET sockets; closed with this.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Return the descriptor, readable when there is a message or the other end is closed."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and descriptors that the other process gets as its own.

        Raises:
            BrokenPipeError: the other end is closed.
            OSError: it cannot be sent.
        """
        try:
            socket.send_fds(self._socket, [_encoder.encode(message)], descriptors)
        except ConnectionResetError as error:  # closed with something unread in it
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message and its descriptors, None when the other end is closed. Blocks.

        Raises:
            msgspec.MsgspecError: the other process is another version and says something else.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None  # closed with something unread in it
        if not data:
            return None
        try:
            return _decoder.decode(data), descriptors
        except msgspec.MsgspecError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """Close this end; harmless twice."""
        self._socket.close()
