"""What `init` and `mount` do before there is a mount: the folder, the store, the link between them.

Opens no store that exists; the daemon does that.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from statefs.errors import MountPointNotEmpty, NoSpace, NoSuchStore, UsageError, typed
from statefs.layout import default_store
from statefs.snapshots.naming import CURRENT
from statefs.target import store_exists
from statefs.units import size_text

NEW_STORE_FREE_BYTES: Final = 16 << 20
"""A new store needs about 1 MiB; with less than this around it, it would be full at once."""

_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_NAMED_FILES: Final = 3
"""How many of the files under a mount point a message names."""


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make a folder, with its parents, where it is not there; when the block raises it is gone.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in missing:
            with suppress(OSError):  # not made yet, or somebody else has put something in
                each.rmdir()
        raise


@contextmanager
def mount_point_made(state: Path) -> Iterator[None]:
    """Make the folder of a mount point where it is not there; when the block raises it is gone.

    Raises:
        UsageError: something that is no folder is in the way, or a store.
    """
    if store_exists(state):
        raise UsageError(
            f"{state} is a store, not a state: name the folder to mount it at, as in "
            f"'{typed('statefs', 'mount', 'STATE', '--store', state)}'"
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_made(state))
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{state} is not a folder; name a folder to mount on") from None
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            raise UsageError(
                f"{state} cannot be made ({error.strerror}): name a place this user may write to"
            ) from None
        yield


def choose_store(state: Path, named: Path | None) -> Path:
    """Return the store to use for `state`: the one named, else what STATE.store is or leads to.

    Raises:
        UsageError: STATE.store is there and is another store than the one named.
        NoSuchStore: STATE.store is a link that leads nowhere.
    """
    beside = default_store(state)
    if named is None:
        if beside.is_symlink() and not beside.exists():
            raise NoSuchStore(
                f"{beside} leads to {beside.resolve()}, which is not there; "
                f"bring it back, or remove {beside} to start anew"
            )
        return beside.resolve()
    store = named.resolve()
    if not store_exists(store) and store_exists(default_store(store)):
        raise UsageError(
            f"{store} is a state: its store is '{typed('--store', default_store(store))}'"
        )
    if (beside.exists() or beside.is_symlink()) and beside.resolve() != store:
        raise UsageError(
            f"{state} has a store already, {beside.resolve()}; "
            f"leave --store out, or move {beside} away"
        )
    return store


def refuse_overlap(state: Path, store: Path) -> None:
    """Raise UsageError where the mount would cover its own store, or one of them lie in a store."""
    for path in (state, store):
        around = next((parent for parent in path.parents if store_exists(parent)), None)
        if around is not None:
            raise UsageError(f"{path} lies in the store {around}: name a place outside of it")
    if store == state or state in store.parents:
        raise UsageError(
            f"the store {store} cannot lie in its own mount point {state}: "
            "name another place with --store DIR"
        )


def make_store(store: Path, app_id: str | None) -> bool:
    """Make a new store; return False where another command has just made it.

    Raises:
        UsageError: something else is there.
        NoSpace: its filesystem is nearly full.
    """
    refuse_foreign(store)
    require_space(store, NEW_STORE_FREE_BYTES)
    from statefs.maintenance.store import init_store

    try:
        with folder_made(store.parent):
            init_store(store, app_id)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:  # the path is that of a store in the making
            raise UsageError(
                f"{store} cannot be made ({error.strerror}): name another place with --store DIR"
            ) from None
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not store_exists(store):
            raise
        return False
    return True


def refuse_foreign(store: Path) -> None:
    """Raise UsageError where a new store would be made and something else already is."""
    if not store.exists() or (store.is_dir() and not os.listdir(store)):
        return
    raise UsageError(f"{store} is there and is no store; name a new or empty folder")


def ensure_store(store: Path, app_id: str | None) -> bool:
    """Make the store where there is none; return whether it was made."""
    return not store_exists(store) and make_store(store, app_id)


def link_store(state: Path, store: Path) -> str | None:
    """Make STATE.store lead to a store elsewhere, so that --store is needed only once.

    Returns:
        None, or a warning: the link could not be made.
    """
    beside = default_store(state)
    if beside == store or beside.is_symlink() or beside.exists():
        return None
    try:
        beside.symlink_to(store)
    except OSError as error:
        return (
            f"cannot make the link {beside} ({error.strerror}): "
            f"give {typed('--store', store)} with each command while {state} is not mounted"
        )
    return None


def require_space(store: Path, needed_bytes: int) -> None:
    """Raise NoSpace where the filesystem that holds `store`, or will, has too little room."""
    place = store
    while not place.exists() and place != place.parent:
        place = place.parent
    free_bytes = _free_bytes(place)
    if free_bytes < needed_bytes:
        raise NoSpace(
            f"only {size_text(free_bytes)} free where {store} lies, {size_text(needed_bytes)} "
            "needed: free some, or choose another place with --store DIR"
        )


def _free_bytes(place: Path) -> int:
    usage = os.statvfs(place)
    return usage.f_bavail * usage.f_frsize


def covered_files(state: Path) -> list[str]:
    """Return the names in the folder `state`, which is not mounted, in order."""
    return sorted(os.listdir(state))


def refuse_covered_files(state: Path) -> None:
    """Raise MountPointNotEmpty where files lie in the folder that a mount would hide."""
    names = covered_files(state)
    if names:
        raise MountPointNotEmpty(
            f"{state} is not mounted and holds files that a mount would hide "
            f"({names_text(names)}): '{typed('statefs', 'mount', '--adopt', state)}' brings them "
            "into current/, or move them away"
        )


def adopted_names(state: Path) -> list[str]:
    """Return the names in current/ of what lies in the folder `state`, in order."""
    current, names = state / CURRENT, set(covered_files(state))
    if CURRENT in names and current.is_dir() and not current.is_symlink():
        names = names - {CURRENT} | set(os.listdir(current))
    return sorted(names)


def names_text(names: Sequence[str]) -> str:
    """Return the first few of `names`, as a shell takes them, and how many more there are."""
    shown = ", ".join(map(typed, names[:_NAMED_FILES]))
    more = len(names) - _NAMED_FILES
    return f"{shown} and {more} more" if more > 0 else shown
