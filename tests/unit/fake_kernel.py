"""The kernel's side of a FUSE connection, made up: for tests of the session without a mount."""

from __future__ import annotations

import socket
import struct
from typing import Final

import trio

from statefs.fuse.handshake import InitReply

FUSE_STATFS: Final = 17
FUSE_FSYNC: Final = 20
FUSE_INIT: Final = 26


class FakeKernel:
    """The kernel's side of a connection: a socket in place of /dev/fuse, and requests by number."""

    def __init__(self) -> None:
        ours, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = trio.socket.from_stdlib_socket(ours)
        ours.send(self._request(FUSE_INIT, 1, struct.pack("<IIII", 7, 38, 131072, 0xFFFFFFFF)))

    @staticmethod
    def _request(opcode: int, unique: int, body: bytes) -> bytes:
        length = 40 + len(body)
        return struct.pack("<IIQQIIIHH", length, opcode, unique, 1, 0, 0, 0, 0, 0) + body

    async def handshake(self) -> InitReply:
        """Return what the session has answered to FUSE_INIT."""
        return InitReply.unpack(await self.socket.recv(65536))

    async def send(self, opcode: int, unique: int) -> None:
        """Send a statfs or an fsync."""
        await self.socket.send(self._request(opcode, unique, bytes(16)))

    async def answer(self) -> tuple[int, int]:
        """Return the number and the error code of the next reply."""
        _, error, unique = struct.unpack_from("<IiQ", await self.socket.recv(65536))
        return unique, error

    def close(self) -> None:
        """Close both ends."""
        self.socket.close()
        self.device.close()
