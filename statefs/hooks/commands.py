"""Running a program that must end before a deadline, in a process group that can be ended whole."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from statefs.errors import HookFailed

GRACE_SECONDS: Final = 1.0
"""Between asking a group of processes to end and killing it."""
END_SECONDS: Final = 5.0
"""A killed process that is not gone by then waits for a device; nobody waits for it."""
SAID_CHARACTERS: Final = 500
"""How much of what a failed program said is put into the error."""


class Deadline:
    """A moment until which work must be done.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left_seconds(self) -> float:
        """Return how much time is left, 0 at least."""
        return max(0.0, self._end - time.monotonic())

    def require(self, what: str) -> float:
        """Return how much time is left. Raises HookFailed when there is none."""
        left = self.left_seconds()
        if not left:
            raise HookFailed(f"{what}: not done within {self.seconds:g} s")
        return left


@dataclass(frozen=True)
class Account:
    """The user that a program runs as, where that is not the user of this process."""

    uid: int
    gid: int

    @property
    def home(self) -> str:
        """The user's home, / where the user is known by number only."""
        try:
            return pwd.getpwuid(self.uid).pw_dir
        except KeyError:
            return "/"

    @property
    def groups(self) -> list[int]:
        """All groups of the user."""
        try:
            return os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)
        except KeyError:
            return [self.gid]


def owner_of(path: Path) -> Account | None:
    """Return the owner of a path where this process may and must become them; None otherwise."""
    if os.geteuid() != 0:
        return None
    found = path.stat()
    return Account(found.st_uid, found.st_gid) if found.st_uid else None


def start(
    command: Sequence[str],
    *,
    output: int | IO[bytes],
    errors: int | IO[bytes],
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
) -> subprocess.Popen[bytes]:
    """Start a program at the head of a process group of its own.

    Args:
        env: what is added to the environment of this process.

    Raises:
        OSError: there is no such program, or it may not be run.
    """
    added = {"HOME": account.home, **(env or {})} if account else env or {}
    return subprocess.Popen(
        list(command),
        cwd=cwd,
        env={**os.environ, **added},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=account.groups if account else None,
        start_new_session=True,
    )


def run(
    command: Sequence[str],
    deadline: Deadline,
    *,
    output: int | None = None,
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
) -> str:
    """Run a program to its end and return what it wrote to its standard output.

    Args:
        output: a file that takes the standard output instead.

    Raises:
        HookFailed: it cannot be run, fails, or has not ended at the deadline; its whole process
            group is ended then.
    """
    deadline.require(command[0])
    # Files, not pipes: what a program left in the background may hold a pipe open for ever.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        try:
            process = start(
                command,
                output=said if output is None else output,
                errors=errors,
                account=account,
                env=env,
                cwd=cwd,
            )
        except OSError as error:
            raise HookFailed(f"{command[0]}: {error.strerror}") from error
        try:
            process.wait(deadline.left_seconds())
        except subprocess.TimeoutExpired:
            end_group(process)
            raise HookFailed(
                f"{command[0]}: not done within {deadline.seconds:g} s, ended{_tail(errors, said)}"
            ) from None
        except BaseException:
            end_group(process)
            raise
        if process.returncode != 0:
            ending = _ending(process.returncode)
            raise HookFailed(f"{command[0]}: {ending}{_tail(errors, said)}")
        said.seek(0)
        return said.read().decode(errors="replace")


def end_group(
    process: subprocess.Popen[bytes],
    first: int = signal.SIGTERM,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """End a program and every process of its group, by force where asking does not help."""
    _signal_group(process, first)
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        pass
    _signal_group(process, signal.SIGKILL)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL  # it waits for a device; Popen need not warn of it


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # all have ended, or have become another user


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _tail(*files: IO[bytes]) -> str:
    """Return the end of what was written to the first file that is not empty, in one line."""
    for file in files:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4 * SAID_CHARACTERS))
        words = " ".join(file.read().decode(errors="replace").split())
        if words:
            return f": {words[-SAID_CHARACTERS:]}"
    return ""
