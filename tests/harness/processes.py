"""Runs a function in a child process, as another user if asked, and hands back what it did."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Final, NamedTuple

NOBODY: Final = 65534
"""The user that owns nothing on a Debian or Ubuntu machine."""


class Person(NamedTuple):
    """Who a child process is: user, group and further groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def run_as(person: Person | None, function: Callable[[], Any]) -> Any:
    """Return what `function` returned in a child process that runs as `person`.

    Args:
        person: None runs as the caller.
        function: its result and its exceptions must be picklable.

    Raises:
        Exception: the one that `function` raised in the child.
    """
    reader, writer = os.pipe()
    pid = _fork()
    if pid == 0:
        _run_and_exit(person, function, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    if not answer:
        raise RuntimeError("the child process ended without an answer")
    succeeded, value = pickle.loads(answer)  # written by our own child a moment ago
    if not succeeded:
        raise value
    return value


def start(function: Callable[[], None]) -> int:
    """Run `function` in a child process and return its pid; wait for it with os.waitpid.

    The child's exit code is 0, or 1 after an exception, whose traceback goes to standard error.
    """
    pid = _fork()
    if pid:
        return pid
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Child:
    """A child process that does steps on request, so that two processes can take turns.

    Args:
        steps: functions by name; each runs in the child when asked for by `do`.
        person: who the child runs as; None is the caller.
    """

    def __init__(self, steps: dict[str, Callable[[], Any]], person: Person | None = None) -> None:
        to_child, self._requests = os.pipe()
        self._answers, from_child = os.pipe()
        self._pid = _fork()
        if self._pid == 0:
            os.close(self._requests)
            os.close(self._answers)
            _serve_steps(steps, person, to_child, from_child)
        os.close(to_child)
        os.close(from_child)
        self._stream = os.fdopen(self._answers, "rb")

    def ask(self, name: str) -> None:
        """Start a step and return at once; `answer` waits for it."""
        os.write(self._requests, f"{name}\n".encode())

    def answer(self) -> Any:
        """Return the result of the oldest step asked for, or raise what it raised."""
        succeeded, value = pickle.load(self._stream)
        if not succeeded:
            raise value
        return value

    def do(self, name: str) -> Any:
        """Run one step in the child and return its result."""
        self.ask(name)
        return self.answer()

    def kill(self) -> None:
        """End the child at once and wait until it is gone."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
            os.close(self._requests)
            self._stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _fork() -> int:
    """Fork without the warning about threads: the child runs plain Python and then _exits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(person: Person | None) -> None:
    if person is not None:
        os.setgroups(list(person.groups))
        os.setresgid(person.gid, person.gid, person.gid)
        os.setresuid(person.uid, person.uid, person.uid)


def _outcome(function: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps((True, function()))
    except OSError as error:
        return pickle.dumps((False, OSError(error.errno, error.strerror, error.filename)))
    except Exception:
        return pickle.dumps((False, AssertionError(traceback.format_exc())))


def _run_and_exit(person: Person | None, function: Callable[[], Any], writer: int) -> None:
    try:
        _become(person)
        os.write(writer, _outcome(function))
    finally:
        os._exit(0)


def _serve_steps(
    steps: dict[str, Callable[[], Any]], person: Person | None, to_child: int, from_child: int
) -> None:
    try:
        _become(person)
        with os.fdopen(to_child, "r") as requests:
            for line in requests:
                os.write(from_child, _outcome(steps[line.strip()]))
    finally:
        os._exit(0)
