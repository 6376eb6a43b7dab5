from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from statefs.errors import StoreLocked
from statefs.state.locks import ProcessLock, holder_of
from tests.harness.processes import start


def held_by_child(path: Path, then: Callable[[], None]) -> int:
    """Return the pid of a child that has taken the lock, and does `then` with it."""
    reader, writer = os.pipe()

    def hold() -> None:
        ProcessLock(path).acquire()
        os.write(writer, b"x")
        then()

    pid = start(hold)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
    return pid


def end(pid: int) -> None:
    """Kill a child and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_refusal_names_who_has_the_store(tmp_path: Path) -> None:
    """One line with the pid; and the lock is free when that process has been killed."""
    path = tmp_path / ".lock"
    pid = held_by_child(path, signal.pause)
    try:
        with pytest.raises(StoreLocked, match=f"^{tmp_path} is in use by pid {pid}: try again"):
            ProcessLock(path).acquire()
        holder = holder_of(path)
        assert holder is not None and holder.pid == pid
    finally:
        end(pid)
    assert holder_of(path) is None
    with ProcessLock(path):
        holder = holder_of(path)
        assert holder is not None and holder.pid == os.getpid()
    assert holder_of(path) is None and path.read_bytes() == b""


def test_a_second_one_in_the_same_process_is_refused(tmp_path: Path) -> None:
    """It is told that this process has it, not some pid to look for."""
    with ProcessLock(tmp_path / ".lock"), pytest.raises(StoreLocked, match="in this process"):
        ProcessLock(tmp_path / ".lock").acquire()


def test_what_a_process_that_is_gone_has_left_is_taken_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its record stays in the file when it is killed."""
    path = tmp_path / ".lock"
    pid = held_by_child(path, signal.pause)
    end(pid)
    with caplog.at_level(logging.WARNING), ProcessLock(path):
        assert f"the lock of process {pid}, which has ended, is taken over" in caplog.text


def test_a_killed_process_that_nobody_has_waited_for_holds_nobody_up(tmp_path: Path) -> None:
    """In a container without an init process it stays in the table for ever."""
    path = tmp_path / ".lock"
    pid = held_by_child(path, signal.pause)
    os.kill(pid, signal.SIGKILL)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        with ProcessLock(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    finally:
        os.waitpid(pid, 0)


def test_a_pid_that_another_process_has_now_is_stale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start time tells them apart."""
    path = tmp_path / ".lock"
    start_time = psutil.Process(os.getppid()).create_time()
    path.write_text(json.dumps({"pid": os.getppid(), "start_time": start_time - 60}))
    with caplog.at_level(logging.WARNING), ProcessLock(path):
        assert f"process {os.getppid()}" in caplog.text


def test_a_living_holder_is_believed_where_the_kernel_sees_no_lock(tmp_path: Path) -> None:
    """On a filesystem whose locks end at a machine or a container, say."""
    path = tmp_path / ".lock"
    start_time = psutil.Process(os.getppid()).create_time()
    path.write_text(json.dumps({"pid": os.getppid(), "start_time": start_time}))
    with pytest.raises(StoreLocked, match=f"pid {os.getppid()}"):
        ProcessLock(path).acquire()


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "\0" * 40])
def test_a_record_that_says_nothing_holds_nobody_up(tmp_path: Path, record: str) -> None:
    """A kill can tear it; the kernel's lock decides."""
    path = tmp_path / ".lock"
    path.write_text(record)
    with ProcessLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_that_a_child_of_a_dead_process_keeps_is_explained(tmp_path: Path) -> None:
    """The record names a process that is gone, and the lock is not free."""
    path = tmp_path / ".lock"
    reader, writer = os.pipe()

    def leave_a_child() -> None:
        child = start(signal.pause)
        os.write(writer, f"{child}\n".encode())

    pid = held_by_child(path, leave_a_child)
    os.waitpid(pid, 0)
    child = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    try:
        with pytest.raises(StoreLocked, match=f"pid {pid}, which has ended, has started"):
            ProcessLock(path).acquire()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_has_no_lock_to_let_go_of(tmp_path: Path) -> None:
    """What it unwinds leaves the lock with its parent, who still writes."""
    path = tmp_path / ".lock"
    with ProcessLock(path) as lock:
        pid = start(lock.release)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        holder = holder_of(path)
        assert holder is not None and holder.pid == os.getpid()
        with pytest.raises(StoreLocked):
            ProcessLock(path).acquire()
