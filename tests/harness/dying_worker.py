"""A daemon whose workers die when a test wants it: after a change, before the reply.

`python -m tests.harness.dying_worker STATE STORE OPTIONS ORDERS` is the daemon. A worker that has
done what a request asks looks at the file ORDERS: when that names the handler, the worker takes the
file away and kills itself. The reply is not sent, whatever was to be done has been done.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from statefs.daemon import worker
from statefs.daemon.background import start_daemon
from statefs.daemon.supervisor import run_foreground
from statefs.fuse.operations import Operations
from statefs.layout import StoreLayout
from statefs.maintenance.store import init_store
from statefs.mounts import MountOptions
from tests.harness.mounted_state import MountedState

ROOT: Final = Path(__file__).resolve().parents[2]
WORKER: Final = "worker"
HANDLERS: Final = (
    "create",
    "link",
    "lookup",
    "mkdir",
    "mknod",
    "open",
    "read",
    "removexattr",
    "rename",
    "rmdir",
    "setattr",
    "setxattr",
    "symlink",
    "unlink",
    "write",
)


class DyingState(MountedState):
    """A state whose workers die on request."""

    @property
    def orders(self) -> Path:
        """The file that says after which handler the worker dies."""
        return self.store.with_name("orders")

    def mount(self) -> None:
        """Mount the state; a new store is made where none is."""
        if not self.store.exists():
            init_store(self.store)
        words = (self.state, self.store, self.options, self.orders)
        command = [sys.executable, "-m", "tests.harness.dying_worker", *map(str, words)]
        process, _ = start_daemon(command, StoreLayout(self.store))
        process.returncode = 0  # it lives on, and ends with the mount

    def let_die_after(self, handler: str) -> None:
        """Have the worker die when it has next done what a handler does, before its reply."""
        assert handler in HANDLERS
        whole = self.orders.with_suffix(".new")
        whole.write_text(handler)
        whole.rename(self.orders)

    def is_obeyed(self) -> bool:
        """Whether the worker has died as it was told."""
        return not self.orders.exists()


def _dying(
    name: str, handler: Callable[..., Awaitable[Any]], orders: Path
) -> Callable[..., Awaitable[Any]]:
    async def answer(self: Operations, *args: Any) -> Any:
        try:
            return await handler(self, *args)
        finally:
            if orders.exists() and orders.read_text() == name:
                orders.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    return answer


def _serve(orders: Path, end: socket.socket) -> int:
    for name in HANDLERS:
        setattr(Operations, name, _dying(name, getattr(Operations, name), orders))
    return worker.main(end)


def _spawn(orders: str, end: socket.socket) -> int:
    end.set_inheritable(True)
    command = [sys.executable, "-m", "tests.harness.dying_worker", WORKER, orders]
    command.append(str(end.fileno()))
    return os.posix_spawn(command[0], command, os.environ, setsid=True)


def main() -> int:
    """Be the supervisor or a worker."""
    if sys.argv[1] == WORKER:
        orders, fd = sys.argv[2:4]
        return _serve(Path(orders), socket.socket(fileno=int(fd)))
    state, store, options, orders = sys.argv[1:5]
    os.chdir(ROOT)  # where workers find this module, until the supervisor stands elsewhere
    os.environ["PYTHONPATH"] = str(ROOT)
    spawn = partial(_spawn, orders)
    run_foreground(Path(state), Path(store), MountOptions.parse(options), spawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
