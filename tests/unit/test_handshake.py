from __future__ import annotations

import os
import socket
import struct

import pytest

from statefs.errors import FuseUnavailable
from statefs.fuse import handshake
from statefs.fuse.handshake import (
    AUTO_INVAL_DATA,
    DONT_MASK,
    EXPLICIT_INVAL_DATA,
    FUSE_INIT,
    HANDLE_KILLPRIV_V2,
    WANTED,
    Greeting,
    Handshake,
    InitReply,
    adjusted_reply,
)

ALL = (1 << 32) - 1
POSIX_ACL = 1 << 20
"""A flag that libfuse sets by itself. Source: linux/fuse.h."""
TAIL = bytes(range(40))
"""What follows the head of fuse_init_out: max_write and more, none of our business."""


def init_request(flags: int, readahead: int = 131072, opcode: int = FUSE_INIT) -> bytes:
    """Return a kernel's FUSE_INIT, protocol 7.45."""
    body = struct.pack("<IIII", 7, 45, readahead, flags) + bytes(48)
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def libfuse_reply(flags: int, error: int = 0) -> bytes:
    """Return libfuse's answer: protocol 7.38, no background limits of its own."""
    body = struct.pack("<IIIIHH", 7, 38, 131072, flags, 0, 0) + TAIL
    return struct.pack("<IiQ", 16 + len(body), error, 2) + body


def flags_of(reply: bytes) -> int:
    """Return the flags that a reply accepts."""
    return InitReply.unpack(reply).flags


def test_everything_wanted_is_asked_for_when_offered() -> None:
    """Against a kernel that offers all, the reply has each wanted bit."""
    reply = adjusted_reply(init_request(ALL), libfuse_reply(0))
    assert flags_of(reply) == WANTED


def test_nothing_is_asked_for_that_is_not_offered() -> None:
    """A kernel without HANDLE_KILLPRIV_V2 is not told that we do its work."""
    reply = adjusted_reply(init_request(ALL & ~HANDLE_KILLPRIV_V2), libfuse_reply(0))
    assert not flags_of(reply) & HANDLE_KILLPRIV_V2
    assert flags_of(adjusted_reply(init_request(0), libfuse_reply(0))) == 0


def test_what_libfuse_asks_for_is_kept() -> None:
    """POSIX_ACL is there when the operations enable it, and only then."""
    assert flags_of(adjusted_reply(init_request(ALL), libfuse_reply(POSIX_ACL))) & POSIX_ACL
    assert not flags_of(adjusted_reply(init_request(ALL), libfuse_reply(0))) & POSIX_ACL


def test_explicit_invalidation_takes_the_place_of_automatic() -> None:
    """The kernel would prefer the automatic one if both were set."""
    flags = flags_of(adjusted_reply(init_request(ALL), libfuse_reply(AUTO_INVAL_DATA)))
    assert flags & EXPLICIT_INVAL_DATA and not flags & AUTO_INVAL_DATA


def test_automatic_invalidation_stays_where_there_is_no_other() -> None:
    """An old kernel keeps what libfuse has asked for."""
    old = ALL & ~EXPLICIT_INVAL_DATA
    flags = flags_of(adjusted_reply(init_request(old), libfuse_reply(AUTO_INVAL_DATA)))
    assert flags & AUTO_INVAL_DATA and not flags & EXPLICIT_INVAL_DATA


@pytest.mark.parametrize(("offer", "expected"), [(131072, 131072), (8 << 20, 1 << 20)])
def test_the_limits_are_set(offer: int, expected: int) -> None:
    """Readahead is the kernel's offer up to 1 MiB; background limits are ours."""
    reply = InitReply.unpack(adjusted_reply(init_request(0, offer), libfuse_reply(0)))
    assert reply.max_readahead == expected
    assert (reply.max_background, reply.congestion_threshold) == (64, 48)
    assert (reply.major, reply.minor) == (7, 38)


def test_the_rest_of_the_reply_is_untouched() -> None:
    """Header and tail are libfuse's, byte for byte, and the length is the same."""
    before = libfuse_reply(POSIX_ACL)
    after = adjusted_reply(init_request(ALL), before)
    assert after[:16] == before[:16] and after[36:] == TAIL


def test_an_error_reply_is_passed_on_as_it_is() -> None:
    """The kernel must learn that libfuse has refused it."""
    refusal = struct.pack("<IiQ", 16, -71, 2)
    assert adjusted_reply(init_request(ALL), refusal) == refusal
    assert adjusted_reply(init_request(ALL), libfuse_reply(0, -71)) == libfuse_reply(0, -71)


def test_what_is_no_handshake_is_refused() -> None:
    """Another request, a short request and a short reply each end the handshake with a reason."""
    with pytest.raises(FuseUnavailable, match="number 3, not FUSE_INIT: mount it again"):
        adjusted_reply(init_request(ALL, opcode=3), libfuse_reply(0))
    with pytest.raises(FuseUnavailable, match="first request is cut short: mount it again"):
        adjusted_reply(init_request(ALL)[:50], libfuse_reply(0))
    with pytest.raises(FuseUnavailable, match="answer to FUSE_INIT is cut short: install libfuse3"):
        adjusted_reply(init_request(ALL), b"")


def test_the_two_halves_lead_from_kernel_to_libfuse_and_back() -> None:
    """Each side sees what the other has sent; then the number leads to the kernel itself."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        exchange = Handshake(device.fileno())
        kernel.send(init_request(ALL))
        exchange.start()
        assert exchange.session_mount_point == f"/dev/fd/{exchange.session_fd}"
        assert os.read(exchange.session_fd, 4096) == init_request(ALL)
        os.write(exchange.session_fd, libfuse_reply(POSIX_ACL))
        greeting = exchange.complete()
        told = kernel.recv(4096)
        assert flags_of(told) == WANTED | POSIX_ACL
        assert greeting == Greeting(init_request(ALL), told)
        kernel.send(b"the first real request")
        assert os.read(exchange.session_fd, 4096) == b"the first real request"
        os.close(exchange.session_fd)


def test_a_silent_libfuse_ends_the_handshake() -> None:
    """complete() does not wait: libfuse has answered by then, or never will."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        exchange = Handshake(device.fileno())
        kernel.send(init_request(DONT_MASK))
        exchange.start()
        with pytest.raises(FuseUnavailable, match=r"libfuse gave no answer.*: install libfuse3"):
            exchange.complete()
        exchange.close()
        os.close(exchange.session_fd)


def test_a_silent_kernel_ends_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """start() gives up after its deadline."""
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.01)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        exchange = Handshake(device.fileno())
        with pytest.raises(FuseUnavailable, match=r"did not begin.*: mount it again"):
            exchange.start()
        exchange.close()
        os.close(exchange.session_fd)


def take_over(reply_of_libfuse: bytes, told_before: bytes) -> None:
    """Lead a successor's libfuse through the handshake that the kernel had with another process."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        exchange = Handshake(device.fileno(), Greeting(init_request(ALL), told_before))
        try:
            exchange.start()
            assert os.read(exchange.session_fd, 4096) == init_request(ALL)
            os.write(exchange.session_fd, reply_of_libfuse)
            exchange.complete()
            kernel.send(b"the next request")
            assert os.read(exchange.session_fd, 4096) == b"the next request"
            with pytest.raises(BlockingIOError):
                kernel.recv(4096, socket.MSG_DONTWAIT)
        finally:
            exchange.close()
            os.close(exchange.session_fd)


def test_a_successor_shakes_hands_with_libfuse_alone() -> None:
    """The kernel is told nothing twice."""
    told = adjusted_reply(init_request(ALL), libfuse_reply(POSIX_ACL))
    take_over(libfuse_reply(POSIX_ACL), told)


def test_a_successor_that_would_say_something_else_is_refused() -> None:
    """The kernel goes on as it was told; another version must not serve it in another way."""
    told = adjusted_reply(init_request(ALL), libfuse_reply(POSIX_ACL))
    with pytest.raises(FuseUnavailable, match="another statefs or libfuse"):
        take_over(libfuse_reply(0), told)
