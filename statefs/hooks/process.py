"""The process that does the work: a daemon never opens files of the mount it serves.

One line of JSON each way: a request, its answer, and for a save a second request that says how it
ended. A process that hears nothing more, because whoever started it has been killed, releases the
applications by itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

import statefs
from statefs.config import VolumeConfig, from_file_value, to_file_value
from statefs.errors import HookFailed
from statefs.hooks.check import check_tree
from statefs.hooks.quiesce import Preparation
from statefs.hooks.results import Finding, VolumeResult

T = TypeVar("T")

MARGIN_SECONDS: Final = 20.0
"""Beyond all deadlines: starting the process, ending late commands."""
END_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0
"""How often it is looked whether somebody still waits."""
FOLDERS_UMASK: Final = 0o066
"""Folders made around a copy are passed through by its owner, and listed by nobody."""
LINE_BYTES_MAX: Final = 1 << 16
"""How much of an answer is read at once."""
_PROGRAM: Final = (
    "import sys; sys.path[0] = sys.argv[1]; from statefs.hooks.process import main; main()"
)


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a save ended.

    Args:
        snapshot: the name of the new one, None when it failed.
        error: why it failed.
    """

    snapshot: str | None
    error: str = ""


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A tree to be checked; see `check.check_tree`.

    Args:
        is_writable: whether it is a clone, in which databases are opened in place.
        folders: where in it to look.
        silent_seconds: how long nothing may be found at most.
    """

    tree: str
    original: str
    is_writable: bool = False
    folders: tuple[str, ...] = ("",)
    item_seconds: float = 600.0
    silent_seconds: float = 3600.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done: prepare `volumes` of `current`, or what `check` says."""

    current: str
    volumes: tuple[VolumeConfig, ...] = ()
    reason: str = ""
    check: CheckRequest | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; `error` when it failed."""

    error: str | None = None
    results: tuple[VolumeResult, ...] = ()
    problems: tuple[str, ...] = ()
    finding: Finding | None = None


class Held:
    """Applications around one save, from the side of the daemon; blocking, so run in a thread.

    Args:
        volumes: all of statefs.toml; with none, nothing is done.
        current: the folder that programs write to.
        reason: why the save is made.
    """

    def __init__(self, volumes: Sequence[VolumeConfig], current: Path, reason: str) -> None:
        self._volumes = tuple(volumes)
        self._request = Request(current=str(current), volumes=self._volumes, reason=reason)
        # Commands before and after, and those of a failure, have the deadline each.
        deadlines = sum(volume.deadline_seconds for volume in self._volumes)
        self._seconds = 2 * deadlines + MARGIN_SECONDS
        self._companion: _Companion | None = None

    def prepare(self) -> tuple[VolumeResult, ...]:
        """Bring the applications to rest.

        Raises:
            HookFailed: something failed or was late; everything has been released again.
        """
        if not self._volumes:
            return ()
        self._companion = _Companion()
        try:
            self._companion.tell(self._request)
            answer = self._companion.hear(Answer, self._seconds)
        except BaseException:
            self._close()
            raise
        if answer.error is not None:
            problems = self.release(Ending(snapshot=None, error=answer.error))
            raise HookFailed("; ".join([answer.error, *problems]))
        return answer.results

    def release(self, ending: Ending) -> tuple[str, ...]:
        """Let the applications go on.

        Returns:
            What failed, a line each.
        """
        if self._companion is None:
            return ()
        try:
            self._companion.tell(ending)
            return self._companion.hear(Answer, self._seconds).problems
        except HookFailed as error:
            return (str(error),)
        finally:
            self._close()

    def let_go(self) -> None:
        """Wait for nothing any more: what is still held is released by the process itself."""
        if self._companion is not None:
            self._companion.leave()
        self._companion = None

    def _close(self) -> None:
        if self._companion is not None:
            self._companion.close()
        self._companion = None


def check_in_process(
    request: CheckRequest, is_wanted: Callable[[], bool] = lambda: True
) -> Iterator[Finding]:
    """Open everything known in a tree (check.py); yield what came of each.

    Args:
        is_wanted: asked about once a second; the check is given up when it says no.

    Raises:
        HookFailed: the process failed or was silent for too long.
    """
    companion = _Companion()
    first: signal.Signals | None = signal.SIGTERM  # for a check that is given up
    try:
        companion.tell(Request(current=request.original, check=request))
        while True:
            answer = companion.hear(Answer, request.silent_seconds, is_wanted)
            if answer.error is not None:
                raise HookFailed(answer.error)
            if answer.finding is None:
                first = None
                return
            yield answer.finding
    finally:
        companion.close(first)


class _Companion:
    """A process that was started, spoken to over pipes."""

    def __init__(self) -> None:
        root = str(Path(statefs.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, root],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._heard = b""

    def tell(self, message: msgspec.Struct) -> None:
        try:
            self._to.write(_encoded(message))
            self._to.flush()
        except BrokenPipeError:
            pass  # its answer, or that there is none, is heard next

    def hear(
        self, kind: type[T], seconds: float, is_wanted: Callable[[], bool] = lambda: True
    ) -> T:
        end = time.monotonic() + seconds
        while b"\n" not in self._heard:
            if not is_wanted():
                raise HookFailed("nobody waits for the work with applications any more")
            left = end - time.monotonic()
            if left <= 0:
                raise HookFailed(f"the work with applications was not done within {seconds:g} s")
            if not select.select([self._from], [], [], min(left, LOOK_SECONDS))[0]:
                continue
            data = os.read(self._from.fileno(), LINE_BYTES_MAX)
            if not data:
                raise HookFailed("the process that works with applications has ended")
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return _decoded(line, kind)

    def leave(self) -> None:
        """Close what it listens to, at which it releases what it holds and ends."""
        self._close_pipes()
        if self._process.poll() is None:
            self._process.returncode = 0  # Popen need not warn that nobody waits for it

    def _close_pipes(self) -> None:
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # it has ended before it has heard everything

    def close(self, first: signal.Signals | None = None) -> None:
        """Have the process end, and wait for it.

        Args:
            first: a signal that it gets at once.
        """
        self._close_pipes()
        for number in (first, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._process.send_signal(number)
            try:
                self._process.wait(END_SECONDS)
                return
            except subprocess.TimeoutExpired:
                continue


def _encoded(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message, enc_hook=to_file_value) + b"\n"


def _decoded(line: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(line, type=kind, dec_hook=from_file_value)


def main() -> None:
    """Be the process: read a request, do it, answer."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # releases on its way out
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever is printed goes to the log, not between the answers
    line = sys.stdin.buffer.readline()
    if not line:
        return
    request = _decoded(line, Request)
    if request.check is None:
        _hold(request, answers)
    else:
        _check(request.check, answers)


def _hold(request: Request, answers: int) -> None:
    def answer(told: Answer) -> None:
        try:
            _answer(answers, told)
        except BrokenPipeError:
            pass  # nobody listens any more; the work is done all the same

    preparation = Preparation(request.volumes, Path(request.current), request.reason)
    error = "statefs ended before the save did"
    ending: Ending | None = None
    try:
        try:
            results = tuple(preparation.prepare())
        except HookFailed as failure:
            error = str(failure)
            answer(Answer(error=error))
        else:
            answer(Answer(results=results))
        if line := sys.stdin.buffer.readline():
            ending = _decoded(line, Ending)
    finally:
        ending = ending or Ending(snapshot=None, error=error)
        problems = preparation.release(ending.snapshot, ending.error)
        answer(Answer(problems=tuple(problems)))


def _check(request: CheckRequest, answers: int) -> None:
    tree, original = Path(request.tree), Path(request.original)
    os.umask(FOLDERS_UMASK)
    with tempfile.TemporaryDirectory(prefix="statefs-check-") as folder:
        findings = check_tree(
            tree,
            original,
            Path(folder),
            request.item_seconds,
            request.folders,
            is_writable=request.is_writable,
        )
        try:
            for finding in findings:
                _answer(answers, Answer(finding=finding))
        except BrokenPipeError:
            return  # nobody listens any more
        except OSError as error:
            _answer(answers, Answer(error=f"{error.filename or tree}: {error.strerror}"))
        else:
            _answer(answers, Answer())


def _answer(fd: int, answer: Answer) -> None:
    data = _encoded(answer)
    while data:
        data = data[os.write(fd, data) :]
