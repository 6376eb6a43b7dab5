"""A mount namespace of a child process, in which every user may open /dev/fuse.

The machine's own /dev/fuse stays as it is: what is mounted in the child's namespace is seen there
only, and goes away with its last process.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.harness.processes import run_as

CLONE_NEWNS: Final = 0x20000
"""Source: linux/sched.h."""
FUSE_DEVICE: Final = os.makedev(10, 229)
"""Source: Linux, Documentation/admin-guide/devices.txt."""
COMMAND_SECONDS: Final = 30.0


class NoNamespaceError(Exception):
    """This machine does not let the child have a /dev/fuse of its own; the message says why."""


def with_open_fuse(
    folder: Path, shown: dict[str, Path], function: Callable[[], Any] = lambda: None
) -> Any:
    """Return what `function` returned in a child whose /dev/fuse every user may open.

    Args:
        folder: an empty folder; in the child, and only there, it holds the device and `shown`.
        shown: name in `folder` -> another folder, however private its parents are.
        function: its result and its exceptions must be picklable.

    Raises:
        NoNamespaceError: not possible here.
        Exception: the one that `function` raised in the child.
    """
    outcome, value = run_as(None, lambda: _in_namespace(folder, shown, function))
    if outcome == "impossible":
        raise NoNamespaceError(value)
    return value


def _in_namespace(
    folder: Path, shown: dict[str, Path], function: Callable[[], Any]
) -> tuple[str, Any]:
    try:
        _enter(folder, shown)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        return "impossible", f"{error} {said.decode(errors='replace')}".strip()
    return "done", function()


def _enter(folder: Path, shown: dict[str, Path]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"a mount namespace of its own: {os.strerror(code)}")
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "-o", "mode=755,size=1m", "tmpfs", folder)
    for name, source in shown.items():
        (folder / name).mkdir()
        _run("mount", "--bind", source, folder / name)
    device = folder / "fuse"
    os.mknod(device, stat.S_IFCHR | 0o666, FUSE_DEVICE)
    device.chmod(0o666)
    _run("mount", "--bind", device, "/dev/fuse")
    os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))


def _run(*words: str | Path) -> None:
    subprocess.run(
        [str(word) for word in words], capture_output=True, check=True, timeout=COMMAND_SECONDS
    )
