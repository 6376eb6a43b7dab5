"""The first exchange with the kernel, led past libfuse so that flags it does not know can be asked.

    kernel --FUSE_INIT--> start() --> socket pair --> libfuse
    kernel <-- complete(), adjusted <-- socket pair <-- libfuse's reply

libfuse is given one end of a socket pair as its descriptor. start() puts the kernel's FUSE_INIT
into the other end; libfuse answers; complete() takes the answer, adds what statefs wants, writes it
to the kernel and puts the real connection under libfuse's descriptor number. Everything after that
goes between libfuse and the kernel directly. Does not mount or unmount.

The kernel shakes hands once. A process that takes a connection over from one that died is led
through the same exchange with the FUSE_INIT that was kept; its answer must be what the kernel has
been told then, and goes nowhere.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass, replace
from typing import Final, Self

from statefs.errors import FuseUnavailable

# Bits of `flags` in fuse_init_in and fuse_init_out. Source: linux/fuse.h, "INIT request/reply
# flags"; an offer is a bit in the kernel's request, an acceptance the same bit in the reply.
ATOMIC_O_TRUNC: Final = 1 << 3
DONT_MASK: Final = 1 << 6
AUTO_INVAL_DATA: Final = 1 << 12
PARALLEL_DIROPS: Final = 1 << 18
CACHE_SYMLINKS: Final = 1 << 23
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28
HAS_RESEND: Final = 1 << (39 - 32)
"""In the second word of flags, which follows the head of fuse_init_in (Linux 5.17)."""

WANTED: Final = (
    ATOMIC_O_TRUNC  # open(O_TRUNC) is one request, not an open and a setattr
    | DONT_MASK  # the umask reaches the filesystem, which must ignore it under a default ACL
    | PARALLEL_DIROPS  # lookups in one folder need not wait for each other
    | CACHE_SYMLINKS  # a target is read once; what changes it is invalidated
    | EXPLICIT_INVAL_DATA  # cached pages go when statefs says so, never because an mtime moved
    | HANDLE_KILLPRIV_V2  # statefs clears setuid bits itself; no getxattr before every write
)
"""What is accepted whenever the kernel offers it, whether or not libfuse knows of it."""

MAX_BACKGROUND: Final = 64
"""Requests the kernel may have under way without a program waiting (readahead, release)."""
CONGESTION_THRESHOLD: Final = 48
"""From this many on the kernel counts the filesystem as congested; three quarters, as its own."""
READAHEAD_MAX_BYTES: Final = 1 << 20
REQUEST_BYTES: Final = (1 << 20) + 4096
"""The largest request of all: 1 MiB of write data and its headers."""
HANDSHAKE_SECONDS: Final = 10.0
"""The kernel queues FUSE_INIT inside mount(2), so this only ends a wait that cannot succeed."""

_OF_KERNEL: Final = (
    "mount it again; should that fail, too, see the kernel's messages ('dmesg') and start the "
    "machine anew"
)
"""What to do when the kernel does not keep to the protocol."""
_OF_LIBFUSE: Final = "install libfuse3 anew ('apt install --reinstall libfuse3-3') and mount again"
"""The same of libfuse."""

FUSE_INIT: Final = 26
NOTIFY_RESEND: Final = 7
"""A notice to the kernel (Linux 6.9): send again what was read and not answered.
Source: linux/fuse.h, fuse_notify_code."""
_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, extension length, padding."""
_INIT_IN: Final = struct.Struct("<IIII")
"""The head of fuse_init_in: major, minor, max_readahead, flags."""
_OUT_HEADER: Final = struct.Struct("<IiQ")
"""fuse_out_header: len, error, unique."""
_INIT_OUT: Final = struct.Struct("<IIIIHH")
"""The head of fuse_init_out: major, minor, max_readahead, flags, max_background, congestion."""


@dataclass(frozen=True)
class InitReply:
    """The head of a fuse_init_out; what follows it stays as libfuse wrote it."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int

    @classmethod
    def unpack(cls, reply: bytes) -> Self:
        """Return the fields of a whole reply, its header included."""
        return cls(*_INIT_OUT.unpack_from(reply, _OUT_HEADER.size))

    def pack_into(self, reply: bytes) -> bytes:
        """Return `reply` with these fields in place of its own."""
        head = _INIT_OUT.pack(
            self.major,
            self.minor,
            self.max_readahead,
            self.flags,
            self.max_background,
            self.congestion_threshold,
        )
        start, end = _OUT_HEADER.size, _OUT_HEADER.size + _INIT_OUT.size
        return reply[:start] + head + reply[end:]


def adjusted_reply(init_request: bytes, reply: bytes) -> bytes:
    """Return libfuse's INIT reply with what statefs wants of the kernel's offer added.

    Args:
        init_request: the kernel's FUSE_INIT, header included.
        reply: what libfuse answers to it, header included.

    Returns:
        A reply of the same length; `reply` itself when it reports an error.

    Raises:
        FuseUnavailable: one of the two is not what it should be.
    """
    offered, readahead_bytes = _offer(init_request)
    if len(reply) < _OUT_HEADER.size:
        raise FuseUnavailable(f"libfuse's answer to FUSE_INIT is cut short: {_OF_LIBFUSE}")
    _, error, _ = _OUT_HEADER.unpack_from(reply)
    if error or len(reply) < _OUT_HEADER.size + _INIT_OUT.size:
        return reply
    asked = InitReply.unpack(reply)
    flags = asked.flags | (offered & WANTED)
    if flags & EXPLICIT_INVAL_DATA:
        flags &= ~AUTO_INVAL_DATA
    return replace(
        asked,
        flags=flags,
        max_readahead=min(readahead_bytes, READAHEAD_MAX_BYTES),
        max_background=MAX_BACKGROUND,
        congestion_threshold=CONGESTION_THRESHOLD,
    ).pack_into(reply)


def _offer(init_request: bytes) -> tuple[int, int]:
    """Return the flags and the readahead (bytes) that the kernel offers."""
    if len(init_request) < _IN_HEADER.size + _INIT_IN.size:
        raise FuseUnavailable(f"the kernel's first request is cut short: {_OF_KERNEL}")
    opcode = _IN_HEADER.unpack_from(init_request)[1]
    if opcode != FUSE_INIT:
        raise FuseUnavailable(
            f"the kernel's first request is number {opcode}, not FUSE_INIT: {_OF_KERNEL}"
        )
    _, _, max_readahead, flags = _INIT_IN.unpack_from(init_request, _IN_HEADER.size)
    return flags, max_readahead


def read_init_request(fuse_fd: int) -> bytes:
    """Return the kernel's FUSE_INIT, the first request of a connection.

    Raises:
        FuseUnavailable: the kernel sent none in time, or the mount is gone.
    """
    poller = select.poll()
    poller.register(fuse_fd, select.POLLIN)
    if not poller.poll(HANDSHAKE_SECONDS * 1000):
        raise FuseUnavailable(f"the kernel did not begin the FUSE handshake: {_OF_KERNEL}")
    try:
        request = os.read(fuse_fd, REQUEST_BYTES)
    except OSError as error:
        raise FuseUnavailable(
            f"the mount ended in its handshake ({error.strerror}), as somebody has unmounted it or "
            "ended its connection: mount it again"
        ) from error
    _offer(request)
    return request


def ask_again(fuse_fd: int) -> bool:
    """Have the kernel send the requests again that were read and not answered.

    They come before all others, marked by the highest bit of their number.

    Returns:
        False when this kernel cannot (before Linux 6.9).

    Raises:
        OSError: the connection has ended.
    """
    try:
        os.write(fuse_fd, _OUT_HEADER.pack(_OUT_HEADER.size, NOTIFY_RESEND, 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def is_connected(fuse_fd: int) -> bool:
    """Return whether a connection still leads to a mounted filesystem."""
    poller = select.poll()
    poller.register(fuse_fd, select.POLLIN)
    return not any(events & select.POLLERR for _, events in poller.poll(0))


@dataclass(frozen=True)
class Greeting:
    """What kernel and libfuse have said to each other when the connection began.

    Args:
        request: the kernel's FUSE_INIT.
        reply: what the kernel was told; empty before it was told anything.
    """

    request: bytes
    reply: bytes = b""

    @property
    def can_ask_again(self) -> bool:
        """Whether this kernel can send requests again that were not answered (`ask_again`)."""
        start = _IN_HEADER.size + _INIT_IN.size
        flags2 = self.request[start : start + 4]
        return bool(int.from_bytes(flags2, "little") & HAS_RESEND)


class Handshake:
    """One exchange of FUSE_INIT for one session of libfuse.

    Args:
        fuse_fd: the connection, from mount_fuse(). It stays the caller's and becomes
            non-blocking: poll(2) may announce a request that is withdrawn before it is read.
        greeting: what has been read from the connection before; None to read it here.
    """

    def __init__(self, fuse_fd: int, greeting: Greeting | None = None) -> None:
        os.set_blocking(fuse_fd, False)
        self._fuse_fd = fuse_fd
        self._greeting = greeting
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # libfuse owns this number from now on, and closes it with its session.
        self.session_fd = theirs.detach()

    @property
    def session_mount_point(self) -> str:
        """What to give pyfuse3.init() as a mount point: libfuse takes the descriptor and mounts
        nothing.
        """
        return f"/dev/fd/{self.session_fd}"

    def start(self) -> None:
        """Queue the kernel's FUSE_INIT for libfuse.

        Raises:
            FuseUnavailable: the kernel sent none in time, or the mount is gone.
        """
        if self._greeting is None:
            self._greeting = Greeting(read_init_request(self._fuse_fd))
        self._ours.send(self._greeting.request)

    def complete(self) -> Greeting:
        """Hand libfuse's answer on to the kernel and give libfuse the real connection.

        To be called when libfuse has processed the request that start() queued.

        Returns:
            What a successor needs to take the connection over.

        Raises:
            FuseUnavailable: libfuse gave no answer or refused, or the kernel did not take it, or
                the kernel was told something else by an earlier process.
        """
        assert self._greeting is not None
        try:
            reply = self._ours.recv(REQUEST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise FuseUnavailable(f"libfuse gave no answer to FUSE_INIT: {_OF_LIBFUSE}") from None
        reply = adjusted_reply(self._greeting.request, reply)
        if not self._greeting.reply:
            self._tell_kernel(reply)
        elif self._greeting.reply != reply:
            raise FuseUnavailable(
                "the mount was made by another statefs or libfuse, and this one cannot go on with "
                "it: unmount it and mount it again"
            )
        os.dup2(self._fuse_fd, self.session_fd, inheritable=False)
        self.close()
        return Greeting(self._greeting.request, reply)

    def _tell_kernel(self, reply: bytes) -> None:
        try:
            os.write(self._fuse_fd, reply)
        except OSError as error:
            raise FuseUnavailable(
                f"the kernel refused the handshake ({error.strerror}): {_OF_KERNEL}"
            ) from error

    def close(self) -> None:
        """Close this side of the socket pair; harmless twice."""
        self._ours.close()
