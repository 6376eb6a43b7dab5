"""Who gets at what in a live mount, and what a live daemon does with what nobody should send."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import statefs
from statefs.control.address import socket_address
from statefs.errors import UsageError
from statefs.layout import StoreLayout
from tests.harness.mounted_state import MountedState, mounted
from tests.harness.processes import NOBODY, Person, run_as
from tests.harness.tar_mutations import mutated, valid_archives

NOBODYS = Person(NOBODY, NOBODY)
ANSWER_SECONDS = 30.0
"""Ends a test that hangs: an answer takes milliseconds."""


@pytest.mark.usefixtures("as_root")
def test_what_is_closed_in_current_is_closed_everywhere(own_state: MountedState) -> None:
    """By its mode or that of a folder above: in snapshots and clones, and past the socket, too."""
    state = own_state
    state.current.chmod(0o755)
    (state.files / "closed").mkdir(mode=0o700)
    for name, mode in (("x", 0o600), ("closed/y", 0o644), ("open", 0o644)):
        (state.files / name).write_bytes(name.encode())
        (state.files / name).chmod(mode)
    snapshot = state.save()
    state.command("clone", state.state, snapshot, "copy")
    for tree in (state.current, state.snapshots / snapshot, state.state / "clones" / "copy"):
        assert run_as(NOBODYS, (tree / "files/open").read_bytes) == b"open"
        for path in (tree / "files/x", tree / "files/closed/y"):
            with pytest.raises(PermissionError):
                run_as(NOBODYS, path.read_bytes)
    with pytest.raises(PermissionError):
        run_as(NOBODYS, lambda: _connect(StoreLayout(state.store)).close())
    state.current.chmod(0o700)
    closed = state.save()
    with pytest.raises(PermissionError):
        run_as(NOBODYS, (state.snapshots / closed / "files/open").read_bytes)


def _connect(layout: StoreLayout) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_SECONDS)
    try:
        with socket_address(layout.control_socket) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


@pytest.mark.usefixtures("as_root")
def test_setuid_and_device_nodes_have_no_effect_by_default(wide_folder: Path) -> None:
    """In current/, in a snapshot and in a clone, for another user and for root."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    with mounted(folder, "allow_other") as state:
        state.current.chmod(0o755)
        shutil.copy(shutil.which("id") or "/usr/bin/id", state.files / "id")
        (state.files / "id").chmod(0o4755)
        os.mknod(state.files / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        snapshot = state.save()
        state.command("clone", state.state, snapshot, "copy")
        for tree in (state.current, state.snapshots / snapshot, state.state / "clones" / "copy"):
            program = str(tree / "files/id")
            assert run_as(NOBODYS, partial(_output, program)) == str(NOBODY)
            with pytest.raises(PermissionError):
                (tree / "files/zero").read_bytes()


def _output(program: str) -> str:
    return subprocess.run([program, "-u"], capture_output=True, check=True).stdout.decode().strip()


def test_a_live_daemon_outlives_garbage(own_state: MountedState) -> None:
    """Lines that are no requests, and requests of another shape, end no worker."""
    layout, worker = StoreLayout(own_state.store), own_state.worker_pid()
    for line in (
        b'{"id":1,"op":"list","args":{"a":' + b"[" * 100_000,
        b'{"id":1,"op":"\xff"}',
        b'{"id":1,"op":"restore","args":{"snapshot":5}}',
        b'{"id":1,"op":"export","args":{"snapshot":"@0","pipe":"meta.db"}}',
        b'{"id":1,"op":"pin","args":[]}',
        b"x" * (2 << 20),
    ):
        with _connect(layout) as connection, suppress(ConnectionError):
            connection.sendall(line + b"\n")
            assert b'"error"' in connection.recv(1 << 16)
    assert own_state.worker_pid() == worker
    own_state.verify_mounted()


def test_mutated_archives_harm_no_mounted_state(own_state: MountedState) -> None:
    """Each is imported or refused, nothing beside the state is touched, and the store verifies."""
    beside = sorted(os.listdir(own_state.state.parent))
    archives = valid_archives()
    with statefs.open(own_state.state) as state:
        for seed in range(12):
            data = mutated(archives[seed % len(archives)], seed)
            with suppress(UsageError, OSError):  # a device of no kernel, a size of no disk
                state.import_(io.BytesIO(data), replace=True)
    assert sorted(os.listdir(own_state.state.parent)) == beside
    assert not [name for name in os.listdir(own_state.current) if name.startswith(".")]
    own_state.verify_mounted()
