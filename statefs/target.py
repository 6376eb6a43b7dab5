"""Which state and which store somebody means. Looks at paths and the mount table, opens nothing.

A mount whose daemon died or hangs blocks whoever touches it, so nothing here looks below a mount:
the mount table of the kernel is asked instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from statefs.errors import NoSuchStore, UsageError, typed
from statefs.layout import STORE_SUFFIX, StoreLayout, default_store

if TYPE_CHECKING:
    from statefs.mounts import MountInfo

STATE_VARIABLE: Final = "STATEFS_STATE"
"""The environment variable that stands for STATE where it is left out."""


@dataclass(frozen=True)
class Target:
    """What a command works on.

    Args:
        state: the mount point, mounted or not; None where only a store is known.
        store: the store's folder, absolute; it need not exist.
        mount: the mount that shows the store, None where it is not mounted.
    """

    state: Path | None
    store: Path
    mount: MountInfo | None

    @property
    def layout(self) -> StoreLayout:
        """The paths inside the store."""
        return StoreLayout(self.store)


def store_exists(store: Path) -> bool:
    """Return whether there is a store at `store`, perhaps one whose database is lost."""
    layout = StoreLayout(store)
    return layout.meta_db.exists() or layout.objects.is_dir()


def absolute_state(path: Path) -> Path:
    """Return the absolute path of a state, mounted or not, without looking inside a mount."""
    from statefs.mounts import find_mount, mount_containing

    mount = find_mount(path)
    if mount is not None:
        return mount.mount_point
    inside = mount_containing(path) is not None
    return Path(os.path.abspath(path)) if inside else path.resolve()


def find_state(given: Path | None) -> Path | None:
    """Return the state that is meant: named, else STATEFS_STATE, else the mount around the cwd."""
    if given is not None:
        return absolute_state(given)
    from_environment = os.environ.get(STATE_VARIABLE)
    if from_environment:
        return absolute_state(Path(from_environment))
    from statefs.mounts import mount_containing

    try:
        around = mount_containing(Path.cwd())
    except FileNotFoundError:  # the working directory was removed
        return None
    return None if around is None else around.mount_point


def require_state(given: Path | None) -> Path:
    """Return the state that is meant.

    Raises:
        UsageError: none is named and none can be inferred.
    """
    state = find_state(given)
    if state is None:
        raise UsageError(
            f"which state? name it (for example ./state), set {STATE_VARIABLE}, "
            "or change into a mounted one"
        )
    return state


def find_target(given: Path | None, store: Path | None) -> Target:
    """Return the state, store and mount a command means; the store exists.

    Args:
        given: STATE of the command line, None where it was left out.
        store: --store of the command line.

    Raises:
        UsageError: neither a state nor a store is named or can be inferred.
        NoSuchStore: there is no store where it should be.
    """
    if store is not None and given is None:
        target = _target_of_store(store.resolve())
    else:
        target = _target_of_state(require_state(given), store)
    if not store_exists(target.store):
        refuse_store(target.state)
        raise NoSuchStore(_no_store_text(target))
    return target


def find_target_of_paths(
    given: Path | None, store: Path | None, words: Sequence[str]
) -> tuple[Target, list[str]]:
    """Return what `find_target` does, and the PATHs of a command line relative to `current/`.

    Where nothing else says which state is meant, a PATH that leads into a mounted one does.

    Args:
        words: each relative to `current/` already, or the path of a file as every program knows it:
            one that leads into `current/`, or a snapshot, of the state.

    Raises:
        UsageError, NoSuchStore: see `find_target`.
    """
    from statefs.mounts import mount_containing

    if given is None and store is None and find_state(None) is None:
        around = (mount_containing(Path(word)) for word in words)
        given = next((mount.mount_point for mount in around if mount is not None), None)
    target = find_target(given, store)
    return target, [_tree_path(target, word) for word in words]


def _tree_path(target: Target, word: str) -> str:
    from statefs.mounts import place_in_mount

    try:
        place = place_in_mount(Path(word)) if word else None
    except FileNotFoundError:  # the working directory was removed
        place = None
    if place is None or Path(place[0].source) != target.store:
        return word
    if _is_below_current(place[0].mount_point, word):
        return word
    top, *below = place[1].parts or ("",)
    if top == "snapshots" and below:
        return "/".join(below[1:]) or "."
    return ("/".join(below) or ".") if top == "current" else word


def _is_below_current(mount_point: Path, word: str) -> bool:
    """Return whether a word typed inside of the state is meant as `statefs diff` prints it.

    That is where its first part is no name in the working directory, and is one in `current/`.
    """
    first = next(iter(Path(word).parts), ".")
    is_elsewhere = first in ("/", "..") or os.path.lexists(first)
    return not is_elsewhere and os.path.lexists(mount_point / "current" / first)


def refuse_store(state: Path | None) -> None:
    """Refuse a store that was named where a state was meant.

    Raises:
        UsageError: the message says what to type.
    """
    if state is not None and store_exists(state):
        raise UsageError(
            f"{state} is a store, not a state: name it with '{typed('--store', state)}' in place "
            "of the state"
        )


def _target_of_store(store: Path) -> Target:
    mount = mount_of_store(store)
    return Target(None if mount is None else mount.mount_point, store, mount)


def _target_of_state(state: Path, store: Path | None) -> Target:
    from statefs.mounts import find_mount, mount_containing

    mount = find_mount(state)
    if mount is None and store is None and not is_present(default_store(state)):
        mount = mount_containing(state)
    if mount is None:
        named = default_store(state) if store is None else store
        return Target(state, named.resolve(), mount_of_store(named.resolve()))
    mounted_store = Path(mount.source)
    if store is not None and store.resolve() != mounted_store:
        raise UsageError(f"{mount.mount_point} shows the store {mounted_store}; leave --store out")
    return Target(mount.mount_point, mounted_store, mount)


def mount_of_store(store: Path) -> MountInfo | None:
    """Return a mount that shows `store` (an absolute path without symbolic links)."""
    from statefs.mounts import statefs_mounts

    return next((mount for mount in statefs_mounts() if Path(mount.source) == store), None)


def names_state(path: Path) -> bool:
    """Return whether a path is that of a state: mounted, or with a store beside it.

    Also of a store itself, which can be meant for nothing else and is refused then.
    """
    from statefs.mounts import find_mount

    if find_mount(path) is not None:
        return True
    return is_present(default_store(path.absolute())) or store_exists(path)


def is_present(path: Path) -> bool:
    """Return whether anything, be it a link that leads nowhere, is at `path`."""
    return path.exists() or path.is_symlink()


def _no_store_text(target: Target) -> str:
    if target.state is None:
        return (
            f"{target.store} is not a store: name the folder that holds meta.db, or make one with "
            f"'{typed('statefs', 'init', 'STATE', '--store', target.store)}'"
        )
    link = default_store(target.state)
    if link.is_symlink() and link.resolve() == target.store:
        return f"{link} leads to {target.store}, where there is no store; name it with --store DIR"
    if not target.state.exists() and (near := _near_state(target.state)):
        return f"there is no {target.state}: did you mean {near}?"
    return (
        f"no store for {target.state}: run '{typed('statefs', 'init', target.state)}', "
        "or name the store with --store DIR"
    )


def _near_state(state: Path) -> Path | None:
    """Return the state beside whose store a path's folder holds, and whose name is most alike."""
    from difflib import get_close_matches

    try:
        stores = [name for name in os.listdir(state.parent) if name.endswith(STORE_SUFFIX)]
    except OSError:
        return None
    names = [name.removesuffix(STORE_SUFFIX) for name in stores]
    near = get_close_matches(state.name, names, n=1)
    return state.with_name(near[0]) if near else None


def known_snapshot_names(given: Path | None, store: Path | None) -> list[str]:
    """Return names and labels of snapshots for shell completion, from the store's index.json."""
    import json

    target = find_target(given, store)
    index = json.loads(target.layout.index_json.read_text(encoding="utf-8"))
    names = ["latest"]
    for snapshot in reversed(index.get("snapshots", [])):
        names.append(snapshot["name"])
        label = (snapshot.get("labels") or {}).get("name")
        if label:
            names.append(label)
    return names
