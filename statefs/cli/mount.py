"""`statefs mount`: show a store as files, and keep doing so in the background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from statefs.cli.explained import ExplainedCommand
from statefs.cli.init import require_same_app
from statefs.cli.options import TEXT, state_argument, store_option
from statefs.cli.output import print_line
from statefs.cli.prepare import (
    choose_store,
    covered_files,
    ensure_store,
    link_store,
    make_mount_point,
    names_text,
    refuse_covered_files,
    refuse_overlap,
)
from statefs.cli.target import mount_of_store, require_state
from statefs.errors import AlreadyMounted, StaleMount

if TYPE_CHECKING:
    from statefs.mounts import MountInfo, MountOptions


@click.command(
    cls=ExplainedCommand,
    short_help="Mount a state; make it first where there is none.",
    examples=[
        "statefs mount state",
        "statefs mount state -o allow_other",
        "statefs mount /srv/app/state --store /data/app.store",
        "statefs mount state --adopt      import files written there while it was not mounted",
        "statefs mount state --repair     after a crash",
    ],
)
@state_argument
@store_option
@click.option("--foreground", is_flag=True, help="Serve in this process until it is unmounted.")
@click.option(
    "-o",
    "option_words",
    multiple=True,
    metavar="OPT,...",
    help="Mount options: ro, allow_other, allow_root, suid, dev, noexec, "
    "durability=close|fsync|write; those of /etc/fstab are understood too.",
)
@click.option("--app-id", type=TEXT, metavar="ID", help="For a new store: its application.")
@click.option("--adopt", is_flag=True, help="Bring files found under the mount point in.")
@click.option("--repair", is_flag=True, help="Clear away the stale mount of a crashed daemon.")
def command(
    state: Path | None,
    store: Path | None,
    foreground: bool,
    option_words: tuple[str, ...],
    app_id: str | None,
    adopt: bool,
    repair: bool,
) -> None:
    """Mount STATE: programs write to STATE/current, snapshots are folders in STATE/snapshots.

    Returns when the mount is usable; a daemon goes on serving it. Makes the folder and the store
    where they are missing. Harmless where STATE is mounted already.
    """
    from statefs.mounts import MountOptions

    options = MountOptions.parse(",".join(option_words))
    options = replace(options, adopt=options.adopt or adopt)
    mount_point = require_state(state)
    if is_mounted(mount_point, store, repair):
        print_line(f"{mount_point} is already mounted")
        return
    chosen = prepare(mount_point, store, options, app_id)
    if foreground:
        from statefs.daemon.lifecycle import run_foreground

        run_foreground(mount_point, chosen, options)
        return
    from statefs.daemon.background import start_background

    covered = covered_files(mount_point)
    start_background(mount_point, chosen, options)
    print_line(f"mounted {mount_point}")
    if covered:
        print_line(f"brought into current/: {names_text(covered)}")


def prepare(
    mount_point: Path, store: Path | None, options: MountOptions, app_id: str | None
) -> Path:
    """Make what is missing for a mount, refuse what would go wrong; return the store to mount.

    Args:
        mount_point: not mounted now.
        store: --store of the command line.
        options: of the mount.
        app_id: for a new store; an existing one must have the same.
    """
    chosen = choose_store(mount_point, store)
    refuse_overlap(mount_point, chosen)
    refuse_second_mount(chosen, mount_point)
    make_mount_point(mount_point)
    if not options.adopt:
        refuse_covered_files(mount_point)
    if ensure_store(chosen, app_id):
        print_line(f"made the store {chosen}")
    else:
        require_same_app(mount_point, chosen, app_id)
    warning = link_store(mount_point, chosen)
    if warning:
        click.echo(f"statefs: warning: {warning}", err=True)
    return chosen


def is_mounted(mount_point: Path, store: Path | None, repair: bool) -> bool:
    """Return whether `mount_point` is mounted as asked; clear a stale mount away with --repair.

    Raises:
        StaleMount: a daemon died there, and --repair was not given.
        AlreadyMounted: another store is mounted there.
    """
    from statefs.mounts import find_mount, is_stale, unmount

    mount = find_mount(mount_point)
    if mount is None:
        return False
    if is_stale(mount):
        if not repair:
            raise StaleMount(
                f"a crashed daemon left {mount_point} mounted: 'statefs mount --repair "
                f"{mount_point}' mounts it again, 'statefs umount {mount_point}' frees it"
            )
        unmount(mount_point, is_dead=True)
        return False
    if store is not None and store.resolve() != Path(mount.source):
        raise AlreadyMounted(
            f"{mount_point} shows another store, {mount.source}; "
            f"'statefs umount {mount_point}' first"
        )
    return True


def refuse_second_mount(store: Path, mount_point: Path) -> None:
    """Raise AlreadyMounted where the store is mounted at another place and served there."""
    from statefs.mounts import is_stale

    elsewhere: MountInfo | None = mount_of_store(store)
    if elsewhere is None or elsewhere.mount_point == mount_point or is_stale(elsewhere):
        return
    raise AlreadyMounted(
        f"{store} is mounted at {elsewhere.mount_point}; a store has one mount: use that, "
        f"or 'statefs umount {elsewhere.mount_point}' first"
    )
