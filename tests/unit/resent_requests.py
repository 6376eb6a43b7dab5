"""A connection on which the kernel sends requests again, and a worker that settles them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from statefs.daemon.service import Service
from statefs.fuse.resent import RESENT, Resent
from statefs.maintenance.store import Store

THREAD: Final = 77
"""Who asks in tests."""
ASK_AGAIN: Final = struct.pack("<IiQ", 16, 7, 0)


def request(opcode: int, node: int, body: bytes, unique: int = 6, thread: int = THREAD) -> bytes:
    """Return a request of root as it is sent for the second time."""
    head = struct.pack(
        "<IIQQIIIHH", 40 + len(body), opcode, unique | RESENT, node, 0, 0, thread, 0, 0
    )
    return head + body


class Answers:
    """What a worker has said to the kernel.

    Args:
        messages: each of them whole.
    """

    def __init__(self, messages: list[bytes]) -> None:
        self.asked_again = messages.count(ASK_AGAIN)
        replies = [each for each in messages if each != ASK_AGAIN]
        self.replies = {
            unique & ~RESENT: (-error, each[16:])
            for each in replies
            for _, error, unique in [struct.unpack_from("<IiQ", each)]
        }


def settled(store: Store, requests: list[bytes], dead_threads: tuple[int, ...] = ()) -> Answers:
    """Have the successor of a worker settle requests, with the note that this one has left."""
    service = Service(store, "close")
    with _connection() as (kernel, device):
        for each in requests:
            kernel.send(each)
        underway = store.volume.table.underway
        Resent(device, underway, store.database, service.operations, dead_threads).settle()
        messages = []
        try:
            while True:
                messages.append(kernel.recv(4096, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return Answers(messages)


@contextmanager
def _connection() -> Iterator[tuple[socket.socket, int]]:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        os.set_blocking(device.fileno(), False)
        yield kernel, device.fileno()
