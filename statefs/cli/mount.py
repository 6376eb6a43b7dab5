"""`statefs mount`: show a store as files, and keep doing so in the background."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.init import require_same_app
from statefs.cli.options import TEXT, state_argument, store_option
from statefs.cli.output import print_line, warn
from statefs.cli.prepare import (
    adopted_names,
    choose_store,
    ensure_store,
    link_store,
    mount_point_made,
    names_text,
    refuse_covered_files,
    refuse_overlap,
)
from statefs.cli.progress import shown_progress
from statefs.durable import is_on_read_only
from statefs.errors import AlreadyMounted, MountPointNotEmpty, StaleMount, typed
from statefs.layout import StoreLayout
from statefs.snapshots.naming import CURRENT
from statefs.target import find_target, mount_of_store, require_state, store_exists

if TYPE_CHECKING:
    from statefs.mounts import MountInfo, MountOptions


def complete_options(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the words of -o, after those that are typed already."""
    from statefs.mounts.options import WORDS

    typed_before, comma, word = incomplete.rpartition(",")
    fitting = [each for each in WORDS if each.startswith(word)]
    return [CompletionItem(f"{typed_before}{comma}{each}") for each in fitting]


@click.command(
    cls=ExplainedCommand,
    short_help="Mount a state; make it first where there is none.",
    examples=[
        "statefs mount state",
        "statefs mount state -o allow_other",
        "statefs mount /srv/app/state --store /data/app.store",
        "statefs mount state --adopt      bring in files written there meanwhile",
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
    shell_complete=complete_options,
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
    from statefs.control.client import refuse_stopped
    from statefs.daemon.process import mounting
    from statefs.mounts import MountOptions, find_mount

    text = ",".join(option_words)
    options = MountOptions.parse(text)
    options = permitted(replace(options, adopt=options.adopt or adopt))
    mount_point = require_state(state)
    if not is_mounted(mount_point, store, repair):
        try:
            with mounting(mount_point), mount_point_made(mount_point):
                chosen = prepare(mount_point, store, options, app_id)
                if not foreground:
                    mount_in_background(mount_point, chosen, options)
            if foreground:
                from statefs.daemon.supervisor import run_foreground

                run_foreground(mount_point, chosen, options)
            return
        except (AlreadyMounted, MountPointNotEmpty):
            if not is_mounted(mount_point, store, repair=False):
                raise
    mounted = find_mount(mount_point)
    if mounted is not None:
        refuse_stopped(StoreLayout(Path(mounted.source)))
    refuse_changes(mount_point, options, MountOptions.named(text) - {"adopt"}, app_id)
    # Another command may have mounted it just now, and it may not be usable yet.
    with api.open_target(find_target(mount_point, None)) as opened:
        status = opened.status()
    print_line(f"{mount_point} is already mounted")
    if status["mounted"] and status["supervisor_pid"] is None:
        from statefs.telemetry.health import ORPHANED

        warn(f"{mount_point}: {ORPHANED}")


def mount_in_background(mount_point: Path, store: Path, options: MountOptions) -> None:
    """Mount `store`, return when it is usable, and tell what has been done."""
    from statefs.daemon.background import start_background

    covered = adopted_names(mount_point)
    with shown_progress(as_json=False) as on_progress:
        remark = start_background(mount_point, store, options, on_progress)
    print_line(f"mounted {mount_point}")
    if covered:
        print_line(f"brought into {mount_point / CURRENT}: {names_text(covered)}")
    if remark:
        warn(remark)


def permitted(options: MountOptions) -> MountOptions:
    """Return what this user gets of `options`; warn of what has no effect."""
    if os.geteuid() == 0 or not (options.suid or options.dev):
        return options
    warn("suid and dev have no effect for an ordinary user: fusermount3 leaves them off")
    return replace(options, suid=False, dev=False)


def refuse_changes(
    mount_point: Path, options: MountOptions, named: frozenset[str], app_id: str | None
) -> None:
    """Raise AlreadyMounted where a mounted state is asked for with other options than it has.

    Args:
        mount_point: mounted now.
        options: what is asked for.
        named: the fields of `options` that count, because the command line names them.
        app_id: --app-id of the command line, None where it was left out.
    """
    if not named and app_id is None:
        return
    from statefs.mounts import MountOptions

    with api.open_target(find_target(mount_point, None)) as opened:
        status = opened.status()
    if not status["mounted"]:
        raise StaleMount(f"{mount_point} is just being unmounted: try again")
    if app_id is not None and status["app_id"] != app_id:
        raise AlreadyMounted(
            f"{mount_point} is mounted, and its application is {status['app_id'] or 'none'}, "
            f"not {app_id}: leave --app-id out, or '{umount_text(mount_point)}' first and mount "
            "another store"
        )
    present = MountOptions.parse(status["mount_options"])
    differences = present.differences(options, named)
    if differences:
        raise AlreadyMounted(
            f"{mount_point} is mounted already, {' and '.join(differences)}: "
            f"'{umount_text(mount_point)}' first"
        )


def prepare(
    mount_point: Path, store: Path | None, options: MountOptions, app_id: str | None
) -> Path:
    """Make what is missing for a mount, refuse what would go wrong; return the store to mount.

    Args:
        mount_point: an existing folder, not mounted now.
        store: --store of the command line.
        options: of the mount.
        app_id: for a new store; an existing one must have the same.
    """
    from statefs.mounts import require_fuse, require_mount_point

    chosen = choose_store(mount_point, store)
    refuse_overlap(mount_point, chosen)
    refuse_second_mount(chosen, mount_point)
    require_fuse(options)
    require_mount_point(mount_point)
    if options.adopt:
        from statefs.daemon.adopt import refuse_reserved

        refuse_reserved(mount_point)
    else:
        refuse_covered_files(mount_point)
    if store_exists(chosen) and is_on_read_only(chosen):
        from statefs.maintenance.opening import refuse_change

        refuse_change(StoreLayout(chosen))
    if ensure_store(chosen, app_id):
        print_line(f"made the store {chosen}")
    else:
        require_same_app(mount_point, chosen, app_id)
    warning = link_store(mount_point, chosen)
    if warning:
        warn(warning)
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
                f"a crashed daemon left {mount_point} mounted: "
                f"'{typed('statefs', 'mount', '--repair', mount_point)}' mounts it again, "
                f"'{umount_text(mount_point)}' frees it"
            )
        unmount(mount_point, is_dead=True)
        return False
    if store is not None and store.resolve() != Path(mount.source):
        raise AlreadyMounted(
            f"{mount_point} shows another store, {mount.source}; '{umount_text(mount_point)}' first"
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
        f"or '{umount_text(elsewhere.mount_point)}' first"
    )


def umount_text(mount_point: Path) -> str:
    """Return what to type to unmount."""
    return typed("statefs", "umount", mount_point)
