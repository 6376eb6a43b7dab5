"""`statefs umount`: end a mount, and wait until its daemon has closed the store."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import state_argument, store_option
from statefs.cli.output import print_line, warn
from statefs.errors import NotMounted, typed
from statefs.layout import StoreLayout, default_store
from statefs.target import mount_of_store, refuse_store, require_state, store_exists

if TYPE_CHECKING:
    from statefs.mounts import MountInfo

CLOSE_WAIT_SECONDS: Final = 30.0
"""How long the daemon may take to close its store before we stop waiting for it."""
_POLL_SECONDS: Final = 0.01


@click.command(
    cls=ExplainedCommand,
    short_help="Unmount a state.",
    examples=[
        "statefs umount state",
        "statefs umount state --lazy      when programs still use it",
        "statefs umount --store /data/app.store",
    ],
)
@state_argument
@store_option
@click.option(
    "--lazy", is_flag=True, help="Unmount at once, though programs have files open there."
)
def command(state: Path | None, store: Path | None, lazy: bool) -> None:
    """Unmount STATE. Everything in it stays in the store.

    Returns when the daemon has closed the store, so it may be copied or moved then. A stale mount
    that a crash left is cleared away.
    """
    from statefs.mounts import is_stale, unmount

    mount = mounted_place(state, store)
    layout = StoreLayout(Path(mount.source))
    if not lazy:
        from statefs.control.client import refuse_stopped

        refuse_stopped(layout)
    stale = is_stale(mount)
    os.chdir("/")  # a working directory in the mount, even this command's own, keeps it busy
    unmount(mount.mount_point, lazy=lazy, is_dead=stale)
    if not lazy and not stale:
        wait_until_closed(layout)
    print_line(f"unmounted {mount.mount_point}" + (" (its daemon had crashed)" if stale else ""))


def mounted_place(state: Path | None, store: Path | None) -> MountInfo:
    """Return the mount that is meant: the state's, or where only --store is given, the store's.

    Raises:
        NotMounted: there is none.
    """
    from statefs.mounts import find_mount, mount_containing

    if store is not None and state is None:
        mount = mount_of_store(store.resolve())
        if mount is None:
            raise NotMounted(f"{store} is not mounted")
        return mount
    mount_point = require_state(state)
    mount = find_mount(mount_point)
    if mount is not None:
        return mount
    around = mount_containing(mount_point)
    if around is not None:
        raise NotMounted(
            f"{mount_point} lies in a mount and is none: "
            f"'{typed('statefs', 'umount', around.mount_point)}'"
        )
    refuse_store(mount_point)
    if store is None and not store_exists(default_store(mount_point)):
        raise NotMounted(
            f"{mount_point} is no statefs state: no statefs is mounted there, and there is no "
            f"store {default_store(mount_point)}; 'findmnt -t fuse.statefs' lists what is mounted"
        )
    raise NotMounted(f"{mount_point} is not mounted")


def wait_until_closed(layout: StoreLayout) -> None:
    """Wait until the daemon that served the mount has let go of the store.

    The kernel ends a mount before the daemon has closed its files; who copies the store right
    after would otherwise copy it half closed.
    """
    from statefs.locking import read_owner

    give_up = time.monotonic() + CLOSE_WAIT_SECONDS
    while True:
        owner = read_owner(layout)
        if owner is None or not owner.alive or owner.role != "daemon":
            return
        if time.monotonic() >= give_up:
            break
        time.sleep(_POLL_SECONDS)
    warn(
        f"the daemon (pid {owner.pid}) is still closing {layout.root}: "
        "wait for its end before you copy or move that"
    )
