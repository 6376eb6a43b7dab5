"""Programs that tests start: found, run, listened to while they run, and always stopped."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from statefs.hooks.commands import Account

RUN_SECONDS: Final = 60.0
"""What one program of a test may take; each takes a few seconds on an idle machine."""
STOP_SECONDS: Final = 20.0
"""A server that was asked to stop writes back what it holds first."""

Word = str | Path


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test where one of `programs` is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(
    *command: Word,
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
    stdin: str = "",
) -> str:
    """Run a program that must succeed and return its standard output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=RUN_SECONDS,
    )
    said = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{command}: exit {done.returncode}: {said}"
    return done.stdout


@contextmanager
def started(
    *command: Word,
    log: Path,
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    stdout: int | None = None,
    stop_signals: Sequence[int] = (signal.SIGTERM,),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside the test and stop it at the end of the block, whatever happens there.

    Args:
        command: the program and its arguments.
        log: takes its errors, and its output when `stdout` is None.
        account: whom it runs as.
        env: its environment; None is the test's.
        stdin: a file that it reads; None is an empty one.
        stdout: where its output goes, as subprocess names it.
        stop_signals: sent in turn until it ends; then it is killed.
    """
    with open(stdin or "/dev/null", "rb") as source, open(log, "ab") as said:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd="/",
            env=env,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            stdin=source,
            stdout=said if stdout is None else stdout,
            stderr=said,
        )
    try:
        yield process
    finally:
        stop(process, stop_signals)


def stop(process: subprocess.Popen[bytes], stop_signals: Sequence[int]) -> None:
    """End a process: by each of the signals in turn, at last by SIGKILL."""
    for number in (*stop_signals, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
    raise AssertionError(f"process {process.pid} ({process.args!r}) does not end")


class Reporting:
    """A running program that writes one line for each thing that it has done for good.

    Args:
        process: its standard output is a pipe, which is read to the end in a thread.
        log: where its errors are.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        assert process.stdout is not None
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """Return what it has reported so far."""
        with self._changed:
            return list(self._lines)

    def lines_after(self, further: int) -> list[str]:
        """Wait until it has reported `further` things more and return everything reported."""
        with self._changed:
            wanted = len(self._lines) + further
            self._changed.wait_for(lambda: self._ended or len(self._lines) >= wanted, RUN_SECONDS)
            assert len(self._lines) >= wanted, self._complaint(f"{wanted} lines were awaited")
            return list(self._lines)

    def lines_at_end(self) -> list[str]:
        """Wait until it has ended well and return everything reported."""
        code = self._process.wait(timeout=RUN_SECONDS)
        self._thread.join(timeout=RUN_SECONDS)
        assert code == 0, self._complaint(f"it ended with {code}")
        return self.lines()

    def assert_running(self) -> None:
        """Fail when it has ended, which it does by itself only after an error."""
        assert self._process.poll() is None, self._complaint("it has ended")

    def _complaint(self, what: str) -> str:
        said = self._log.read_text(errors="replace")
        return f"{self._process.args!r}: {what}; {len(self._lines)} lines came; errors: {said}"

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.decode().rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextmanager
def reporting(
    *command: Word,
    log: Path,
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
) -> Iterator[Reporting]:
    """Run a program beside the test and listen to it; it is stopped at the end of the block."""
    with started(
        *command, log=log, account=account, env=env, stdin=stdin, stdout=subprocess.PIPE
    ) as process:
        yield Reporting(process, log)


def wait_until(ready: Sequence[Word], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the command `ready` succeeds, which tells that the server `process` serves."""
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        if subprocess.run([str(word) for word in ready], capture_output=True).returncode == 0:
            return
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"{process.args!r} does not serve: {log.read_text(errors='replace')}")
