"""A supervisor on a stage: its mount is a pair of sockets, its workers are scripts, forked."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from statefs.daemon import child
from statefs.daemon import supervisor as module
from statefs.daemon.background import ReadyNotice
from statefs.daemon.child import Worker
from statefs.daemon.handover import (
    Begin,
    Channel,
    Ended,
    Opened,
    Ready,
    Serve,
    Working,
)
from statefs.daemon.spawning import Spawn, start
from statefs.daemon.supervisor import Supervisor
from statefs.fuse.handshake import FUSE_INIT
from statefs.layout import StoreLayout
from statefs.mounts import MountInfo, MountOptions

INIT: Final = struct.pack("<IIQQIIIHH", 56, FUSE_INIT, 1, 0, 0, 0, 0, 0, 0) + bytes(16)
RESEND: Final = struct.pack("<IiQ", 16, 7, 0)
SINCE: Final = "2026-03-13T12:00:00Z"

Life = Callable[[Channel], None]


@dataclass
class Stage:
    """A supervisor whose mount is a pair of sockets, and whose workers are scripts.

    Args:
        supervisor: not running yet.
        kernel: the other end of the connection.
        device: the end that is the supervisor's once it has mounted.
        spawn: starts the next worker.
        done: what was done to the mount, in order.
        lives: what each worker does with its channel, forked; the first is started first.
    """

    supervisor: Supervisor
    layout: StoreLayout
    kernel: socket.socket
    device: socket.socket
    spawn: Spawn
    done: list[str] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run the supervisor to its end, with the signals of this process as they were after it."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.supervisor.run(Worker(*start(self.spawn)))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Told(ReadyNotice):
    """Notes that the mount is said to be usable."""

    def __init__(self, stage: list[str]) -> None:
        super().__init__(None)
        self._stage = stage

    def work(self, progress: Working) -> None:
        """Note how far the worker is."""
        self._stage.append(f"{progress.what} {progress.done} {progress.unit}")

    def succeed(self, remark: str = "") -> None:
        """Note it, with what the worker remarks."""
        self._stage.append(f"usable{remark}")


@contextmanager
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Give a supervisor that has yet to run, in a folder of its own."""
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "state.store").mkdir()
    layout = StoreLayout(tmp_path / "state.store")
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.send(INIT)
    done: list[str] = []
    lives: list[Life] = []
    told: list[str] = []
    mount = MountInfo(state, str(layout.root), "fuse.statefs", device=(0, 1 << 30))
    found = iter([None, mount])

    def spawn(end: socket.socket) -> int:
        life = lives.pop(0)
        pid = os.fork()
        if pid == 0:
            try:
                device.close()  # a worker has only what it is sent
                fd = end.detach()
                os.closerange(3, fd)
                os.closerange(fd + 1, 256)
                life(Channel(socket.socket(fileno=fd)))
            finally:
                os._exit(3)
        return pid

    def mount_fuse(*_: object) -> int:
        done.append("mounted")
        return device.detach()

    def unmounted(mount: MountInfo | None) -> None:
        if mount is not None:
            done.append("unmounted")

    cwd = Path.cwd()
    monkeypatch.setattr(module, "find_mount", lambda _state: next(found))
    monkeypatch.setattr(module, "mount_fuse", mount_fuse)
    monkeypatch.setattr(module, "_unmount_leftover", unmounted)
    monkeypatch.setattr(module, "OOM_FILE", tmp_path / "oom_score_adj")
    module.OOM_FILE.write_text("0\n")
    monkeypatch.setattr(child, "END_SECONDS", 5.0)
    monkeypatch.setattr(child, "REAP_SECONDS", 5.0)  # the log tells how each ended, on any machine
    supervisor = Supervisor(state, layout, MountOptions(), Told(told), spawn)
    try:
        yield Stage(supervisor, layout, kernel, device, spawn, done, lives, told)
    finally:
        kernel.close()
        device.close()
        os.chdir(cwd)


def begun(channel: Channel) -> Begin:
    """Take the first message of a worker's life, and say that the store is open."""
    received = channel.receive()
    assert received is not None and isinstance(received[0], Begin) and len(received[1]) == 2
    if not received[0].restarts:
        channel.send(Opened())
    return received[0]


def served(channel: Channel) -> tuple[Serve, int]:
    """Take the connection and say that the mount is usable."""
    received = channel.receive()
    assert received is not None and isinstance(received[0], Serve)
    channel.send(Ready(SINCE, b"reply"))
    return received[0], received[1][0]


def ended(channel: Channel) -> None:
    """Say that the mount has ended, and end."""
    channel.send(Ended())
    os._exit(0)


def a_whole_life(channel: Channel) -> None:
    """Serve, and end as one should."""
    begun(channel)
    served(channel)
    ended(channel)


def a_sudden_death(channel: Channel) -> None:
    """Serve, and be killed."""
    begun(channel)
    served(channel)
    os.kill(os.getpid(), signal.SIGKILL)
