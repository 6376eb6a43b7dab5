from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.harness.processes import Child


def test_a_fifo_joins_two_processes(place: Path) -> None:
    """Bytes written at one end of a named pipe come out at the other."""
    os.mkfifo(place / "pipe", 0o600)
    assert stat.S_ISFIFO(os.stat(place / "pipe").st_mode)

    def write() -> None:
        (place / "pipe").write_bytes(b"through the pipe")

    with Child({"write": write}) as child:
        child.ask("write")
        assert (place / "pipe").read_bytes() == b"through the pipe"
        child.answer()


def test_a_unix_socket_accepts_connections(place: Path) -> None:
    """A socket bound in the tree is a socket file, and clients reach it by its path."""
    name = f"/proc/self/fd/{os.open(place, os.O_PATH)}/s"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        assert stat.S_ISSOCK(os.stat(place / "s").st_mode)
        server.listen(1)
        client.connect(name)
        accepted, _ = server.accept()
        client.sendall(b"hello")
        assert accepted.recv(10) == b"hello"
        accepted.close()
    os.close(int(name.split("/")[4]))
    os.unlink(place / "s")
    assert os.listdir(place) == []


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("kind", "letter"), [(stat.S_IFCHR, "c"), (stat.S_IFBLK, "b")])
def test_a_device_node_keeps_its_numbers(place: Path, kind: int, letter: str) -> None:
    """Kind, mode and both numbers of a device node are kept, also large ones."""
    for number, (major, minor) in enumerate(((1, 3), (0, 0), (4095, 1_048_575))):
        path = place / f"node{number}"
        os.mknod(path, kind | 0o640, os.makedev(major, minor))
        status = os.stat(path)
        assert stat.filemode(status.st_mode) == f"{letter}rw-r-----"
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (major, minor)


@pytest.mark.usefixtures("as_root")
def test_a_device_node_leads_to_its_device(place: Path) -> None:
    """Where the mount allows devices, a node of /dev/zero's numbers reads zeros."""
    os.mknod(place / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with open(place / "zero", "rb", buffering=0) as device:
        assert device.read(16) == bytes(16)


def test_mknod_makes_ordinary_files(place: Path) -> None:
    """S_IFREG through mknod is an empty file like one that open made."""
    os.mknod(place / "f", stat.S_IFREG | 0o600)
    status = os.stat(place / "f")
    assert stat.S_ISREG(status.st_mode) and status.st_size == 0
    (place / "f").write_bytes(b"x")
    assert (place / "f").read_bytes() == b"x"


def test_special_files_are_renamed_linked_and_removed_as_others(place: Path) -> None:
    """Names of special files behave as names of any file."""
    os.mkfifo(place / "a")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "c")
    assert os.stat(place / "c").st_nlink == 2
    os.unlink(place / "b")
    os.unlink(place / "c")
    assert os.listdir(place) == []
