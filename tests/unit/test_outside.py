"""Calls on the own mount are made by a thread that holds none of the process's files."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from statefs.mounts.outside import call_outside


def open_descriptors() -> set[int]:
    """Return the descriptors of this thread that are open."""
    return {
        int(name)
        for name in os.listdir("/proc/thread-self/fd")
        if os.path.exists(f"/proc/thread-self/fd/{name}")
    }


def test_the_thread_has_no_file_of_the_process() -> None:
    """Only the three standard ones, and what is to be kept; those of the process stay open."""
    one, other = os.pipe()
    try:
        assert call_outside(open_descriptors) <= {0, 1, 2}
        assert call_outside(open_descriptors, keep=(other,)) - {0, 1, 2} == {other}
        assert {one, other} <= open_descriptors()
        os.write(other, b"x")
        assert os.read(one, 1) == b"x"
    finally:
        os.close(one)
        os.close(other)


def test_results_and_errors_come_back() -> None:
    """As if the call had been made here, from a thread of its own."""
    assert call_outside(threading.get_ident) != threading.get_ident()
    with pytest.raises(OSError) as refused:
        call_outside(lambda: os.stat("/does/not/exist"))
    assert refused.value.errno == errno.ENOENT
