"""Starting the daemon in the background, and what it says to the one who started it.

The daemon writes JSON lines into a pipe: how far it is where that takes long, and last that the
mount is usable, or why it will not be. If the pipe closes without that, the daemon has died. A
daemon on a leash, another pipe, unmounts when that closes: when whoever needed the mount for a
while is done with it, or is killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

import statefs
from statefs.control.messages import ErrorBody, error_body, raised_error
from statefs.daemon.handover import Working
from statefs.daemon.spawning import LEASH_VARIABLE, READY_VARIABLE
from statefs.durable import open_plain
from statefs.errors import StatefsError
from statefs.layout import StoreLayout
from statefs.mounts import MountOptions

READY_SECONDS: Final = 60.0
"""How long a daemon may take to start, or to say that it is still at it: that takes a second."""
CLOSE_SECONDS: Final = 60.0
"""How long a daemon on a leash may take to unmount and to close the store."""
END_SECONDS: Final = 60.0
"""How long a daemon that was not ready in time may take to end before it is killed.

More than it takes itself to end a worker that hangs, and to unmount (child.END_SECONDS, twice).
"""
LOG_BYTES_MAX: Final = 8 << 20
"""A log larger than this is set aside as statefs.log.1 when a daemon starts."""
_DAEMON: Final = (sys.executable, "-P", "-m", "statefs.daemon")
"""`-P`: the working directory, which may be anybody's, stays out of the import path."""

OnProgress = Callable[[dict[str, Any]], None]


class Readiness(msgspec.Struct, omit_defaults=True):
    """A line in the pipe: an error, or none when the mount is usable.

    Args:
        remark: a line for whoever mounts, "" for none.
        progress: how far the daemon is (docs/cli.md, "Progress"): it is not usable yet.
    """

    error: ErrorBody | None = None
    remark: str = ""
    progress: Working | None = None


class ReadyNotice:
    """The daemon's end of the pipe; says one thing at last, and nothing when nobody asked.

    Args:
        fd: the descriptor to write to, or None.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @classmethod
    def from_environment(cls) -> ReadyNotice:
        """Take the descriptor that start_background() has passed on, so that no child gets it."""
        word = os.environ.pop(READY_VARIABLE, "")
        if not word.isdecimal():
            return cls(None)
        os.set_inheritable(int(word), False)
        return cls(int(word))

    def succeed(self, remark: str = "") -> None:
        """Say that the mount is usable."""
        self._say(Readiness(remark=remark))

    def fail(self, error: StatefsError) -> None:
        """Say why the mount will not be usable."""
        self._say(Readiness(error_body(error)))

    def work(self, progress: Working) -> None:
        """Say that the mount is not usable yet, and how far it is."""
        if self._fd is not None:
            self._write(self._fd, Readiness(progress=progress))

    def _say(self, readiness: Readiness) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            self._write(fd, readiness)
        finally:
            os.close(fd)

    def _write(self, fd: int, readiness: Readiness) -> None:
        with suppress(BrokenPipeError):  # whoever started us has gone; it is usable all the same
            os.write(fd, msgspec.json.encode(readiness) + b"\n")


@contextmanager
def mounted_meanwhile(store: Path) -> Iterator[Path]:
    """Mount a store that nobody has open, in a new folder, for as long as the block runs.

    Not longer than this process lives, however that ends.

    Args:
        store: an existing store; closed again after the block.

    Yields:
        The mount point, which only this user may enter.

    Raises:
        StatefsError: as `start_background`.
    """
    mount_point = Path(tempfile.mkdtemp(prefix="statefs-mount-"))
    reader, leash = os.pipe()
    try:
        process, _ = _started(mount_point, store, MountOptions(), {LEASH_VARIABLE: reader})
        try:
            yield mount_point
        finally:
            os.close(leash)
            leash = -1
            _wait_until_closed(process, StoreLayout(store))
    finally:
        os.close(reader)
        if leash >= 0:
            os.close(leash)
        with suppress(OSError):  # the daemon has removed it, or will when it has unmounted it
            mount_point.rmdir()


def _wait_until_closed(process: subprocess.Popen[bytes], layout: StoreLayout) -> None:
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        raise StatefsError(
            f"the daemon {process.pid} has not closed {layout.root} within {CLOSE_SECONDS:.0f} s:"
            f" see {layout.log}"
        ) from None


def obey_leash() -> bool:
    """In the daemon: end as on SIGTERM when the leash, if there is one, is let go of.

    Returns:
        Whether there is one: then the mount point is to go with the mount.
    """
    word = os.environ.pop(LEASH_VARIABLE, "")
    if not word.isdecimal():
        return False
    fd = int(word)
    os.set_inheritable(fd, False)

    def wait() -> None:
        os.read(fd, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="leash", daemon=True).start()
    return True


def start_background(
    state: Path, store: Path, options: MountOptions, on_progress: OnProgress | None = None
) -> str:
    """Start a daemon for `state` and return when the mount is usable.

    Args:
        state: the mount point, an existing folder.
        store: an existing store; the daemon's log is written there.
        options: of the mount.
        on_progress: told how far it is, where that takes more than a second.

    Returns:
        A line to tell the user, "" for none.

    Raises:
        StatefsError: what the daemon raised, or that it died, or was not ready in time.
    """
    process, remark = _started(state, store, options, {}, on_progress)
    process.returncode = 0  # it lives on; Popen need not warn that nobody waits for it
    return remark


def _started(
    state: Path,
    store: Path,
    options: MountOptions,
    descriptors: Mapping[str, int],
    on_progress: OnProgress | None = None,
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a daemon and return it, and its remark, when its mount is usable.

    Args:
        descriptors: that it inherits, by the variables that tell it of them.
    """
    layout = StoreLayout(store.absolute())
    command = [*_DAEMON, str(state.absolute()), str(layout.root), options.text()]
    return start_daemon(command, layout, descriptors, on_progress)


def start_daemon(
    command: Sequence[str],
    layout: StoreLayout,
    descriptors: Mapping[str, int] | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a program that is a daemon, and return it, and its remark, when its mount is usable.

    Args:
        command: the program and its arguments.
        layout: of the store, whose log it writes.
        descriptors: that it inherits, by the variables that tell it of them.
        on_progress: see `start_background`.

    Raises:
        StatefsError: see `start_background`.
    """
    reader, writer = os.pipe()
    passed = {READY_VARIABLE: writer, **(descriptors or {})}
    try:
        with os.fdopen(_open_log(layout), "ab") as log:
            process = subprocess.Popen(
                command,
                env=os.environ | _import_path() | {key: str(fd) for key, fd in passed.items()},
                pass_fds=list(passed.values()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(writer)
        writer = -1
        try:
            remark = _await_readiness(reader, process, layout, on_progress or _ignore)
        except BaseException:
            _end(process)
            raise
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    return process, remark


def _open_log(layout: StoreLayout) -> int:
    try:
        if layout.log.lstat().st_size > LOG_BYTES_MAX:
            layout.log.rename(layout.log.with_name(layout.log.name + ".1"))
    except FileNotFoundError:
        pass
    return open_plain(layout.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _import_path() -> dict[str, str]:
    """Return what lets the daemon import statefs when it is run from its source folder."""
    root = Path(statefs.__file__).resolve().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return {}
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}{os.pathsep}{known}" if known else str(root)}


def _await_readiness(
    reader: int, process: subprocess.Popen[bytes], layout: StoreLayout, on_progress: OnProgress
) -> str:
    while True:
        readiness = msgspec.json.decode(_line(reader, process, layout), type=Readiness)
        if readiness.progress is None:
            break
        on_progress(msgspec.structs.asdict(readiness.progress))
    if readiness.error is not None:
        raise raised_error(readiness.error)
    return readiness.remark


def _ignore(_: dict[str, Any]) -> None:
    """Be told how far it is, and do nothing."""


def _line(reader: int, process: subprocess.Popen[bytes], layout: StoreLayout) -> bytes:
    """Return the next line of the pipe; it is read by the byte, as another may follow."""
    give_up = time.monotonic() + READY_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        left = give_up - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise StatefsError(
                f"the daemon said nothing for {READY_SECONDS:.0f} s, and the mount is not usable: "
                f"see the end of {layout.log}, and try again"
            )
        byte = os.read(reader, 1)
        if not byte:
            raise StatefsError(
                f"the daemon ended before the mount was usable{_ending(process)}: "
                f"see the end of {layout.log}"
            )
        line += byte
    return line


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    if code < 0:
        return f" (killed by {signal.Signals(-code).name})"
    return f" (exit code {code})"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon that has failed or is not wanted any more, and wait for it."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
