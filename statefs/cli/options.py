"""The arguments and options that several commands share. Reads the command line, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from statefs.errors import StatefsError, UsageError
from statefs.snapshots.naming import CURRENT
from statefs.target import Target, find_state, find_target, find_target_of_paths, names_state

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_PAIR: Final = 2
WITH_CURRENT: Final = ("diff", "cat")
"""Commands that take `current` where a snapshot could stand."""


class FolderPath(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A folder's path, which is not looked at: a mount without a daemon would hang the look."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path as given; an empty word (an unset shell variable) is refused."""
        if not str(value):
            self.fail("a path cannot be empty", param, ctx)
        return Path(value)

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete folders."""
        return [CompletionItem(incomplete, type="dir")]


FOLDER: Final = FolderPath()


class Utf8Text(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A text that goes into documents, which are UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; what is no UTF-8 is refused."""
        text = str(value)
        if not is_utf8(text):
            self.fail(f"'{text}' is not UTF-8", param, ctx)
        return text


def is_utf8(text: str) -> bool:
    """Return whether a word of the command line was UTF-8; other bytes come as surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


TEXT: Final = Utf8Text()

state_argument: Final[Decorator] = click.argument(
    "state", required=False, type=FOLDER, metavar="[STATE]"
)

store_option: Final[Decorator] = click.option(
    "--store",
    type=FOLDER,
    metavar="DIR",
    help="The store, where it is not STATE.store beside the mount point.",
)

json_option: Final[Decorator] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, stable between versions."
)


def complete_snapshot(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the snapshots of the state named so far, or folders where none is named."""
    from statefs.target import known_snapshot_names

    named = ctx.params.get("words") or ()
    state = Path(named[0]) if named else None
    try:
        names = known_snapshot_names(state, ctx.params.get("store"))
    except Exception:  # completion must never print an error into the user's command line
        names = []
    if ctx.info_name in WITH_CURRENT:
        names = [*names, CURRENT]
    # Folders stand first: bash drops what is offered before them, and takes them if no name fits.
    folders = [] if named else [CompletionItem(incomplete, type="dir")]
    return folders + [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_snapshot_and_path(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer snapshots, and after one of them the paths that it has, where the state is mounted."""
    words: tuple[str, ...] = ctx.params.get("words") or ()
    has_state = bool(words) and names_state(Path(words[0]))
    if len(words) == has_state:
        return complete_snapshot(ctx, parameter, incomplete)
    return _paths_below(words[0] if has_state else None, words[has_state], incomplete)


def complete_path(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer what lies in current/, and folders where no state is named yet."""
    words: tuple[str, ...] = ctx.params.get("words") or ()
    folders = [] if words else [CompletionItem(incomplete, type="dir")]
    return folders + _paths_below(words[0] if words else None, CURRENT, incomplete)


def complete_clone(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer what `clone` takes next; with --delete the clones that there are."""
    if not ctx.params.get("delete"):
        return complete_snapshot_and_path(ctx, parameter, incomplete)
    words: tuple[str, ...] = ctx.params.get("words") or ()
    folders = [] if words else [CompletionItem(incomplete, type="dir")]
    top = _served(words[0] if words else None)
    names = [] if top is None else os.listdir(top / "clones")
    return folders + [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _paths_below(state: str | None, moment: str, incomplete: str) -> list[CompletionItem]:
    """Return the paths in a tree of a mounted state that begin as what is typed; folders with /."""
    top = _served(state)
    if top is None:
        return []
    tree = top / CURRENT if moment == CURRENT else top / "snapshots" / moment
    folder, slash, name = incomplete.rpartition("/")
    try:
        with os.scandir(tree / folder) as entries:
            fitting = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if entry.name.startswith(name)
            )
    except OSError:  # no such folder or snapshot
        return []
    return [CompletionItem(f"{folder}{slash}{n}{'/' if is_dir else ''}") for n, is_dir in fitting]


def _served(state: str | None) -> Path | None:
    """Return where the state meant is mounted, None where nobody would answer a look into it."""
    from statefs.doors import daemon_has

    try:
        target = find_target(None if state is None else Path(state), None)
    except StatefsError:  # completion must never print an error into the user's command line
        return None
    if target.mount is None or not daemon_has(target):
        return None
    return target.mount.mount_point


snapshot_argument: Final[Decorator] = click.argument(
    "words", nargs=-1, metavar="[STATE] SNAPSHOT", shell_complete=complete_snapshot
)


moments_argument: Final[Decorator] = click.argument(
    "words", nargs=-1, metavar="[STATE] A [B]", shell_complete=complete_snapshot
)
moment_path_argument: Final[Decorator] = click.argument(
    "words", nargs=-1, metavar="[STATE] SNAPSHOT PATH", shell_complete=complete_snapshot_and_path
)
path_argument: Final[Decorator] = click.argument(
    "words", nargs=-1, metavar="[STATE] PATH", shell_complete=complete_path
)


def snapshot_usage(command: str) -> str:
    """Return how `command` is given a snapshot, for messages."""
    return f"'statefs {command} STATE SNAPSHOT', where SNAPSHOT is latest or one of 'statefs list'"


def split_state(
    words: tuple[str, ...], count: int, usage: str
) -> tuple[Path | None, tuple[str, ...]]:
    """Return the state, None where it was left out, and the `count` words after it.

    Raises:
        UsageError: with `usage`: the words are too few or too many, or one is empty.
    """
    if len(words) not in (count, count + 1) or not all(words):
        raise UsageError(usage)
    has_state = len(words) > count
    return (Path(words[0]) if has_state else None), words[has_state:]


def check_moments(*names: str) -> None:
    """Refuse what no snapshot can be called. Raises UsageError: one is no UTF-8."""
    for name in names:
        if not is_utf8(name):
            raise UsageError(f"'{name}' is not UTF-8, and names of snapshots are")


def find_snapshot(words: tuple[str, ...], store: Path | None, command: str) -> tuple[Target, str]:
    """Return what the words `[STATE] SNAPSHOT` of a command line mean; the store exists.

    Args:
        words: what stood on the command line.
        store: --store of the command line.
        command: the command's name, for the message.

    Raises:
        UsageError: the snapshot, or the state, is missing, or the snapshot is no UTF-8.
        NoSuchStore: there is no store where it should be.
    """
    state, snapshot = _state_and_snapshot(words, store, command)
    return find_target(state, store), snapshot


def _state_and_snapshot(
    words: tuple[str, ...], store: Path | None, command: str
) -> tuple[Path | None, str]:
    usage = snapshot_usage(command)
    missing = "the snapshot is missing" if len(words) < _PAIR else "give one snapshot"
    state, (snapshot,) = split_state(words, 1, f"{missing}: {usage}")
    check_moments(snapshot)
    if state is None and _is_state_alone(snapshot, store):
        raise UsageError(f"'{snapshot}' is the state, {missing}: {usage}")
    return state, snapshot


def _is_state_alone(word: str, store: Path | None) -> bool:
    """Return whether the one word of a `[STATE] SNAPSHOT` pair is the state, not the snapshot."""
    # Where the state is known already, its snapshots may be called anything but a path.
    is_known = store is not None or find_state(None) is not None
    return _is_path(word) if is_known else _is_state(word)


def _is_state(word: str) -> bool:
    """Return whether a word names a state that is there, mounted or not."""
    return _is_path(word) or names_state(Path(word))


def _is_path(word: str) -> bool:
    """Return whether no snapshot and no label can be called so."""
    return "/" in word or word in (".", "..")


def find_moments(words: tuple[str, ...], store: Path | None) -> tuple[Target, str, str]:
    """Return what the words `[STATE] A [B]` mean; the store exists, B is current where left out.

    Of two words the first is the state if it can be one.

    Raises:
        UsageError: A or the state is missing, or there is too much. NoSuchStore.
    """
    usage = "'statefs diff STATE A [B]', where A and B are latest, current or one of 'statefs list'"
    if not 1 <= len(words) <= _PAIR + 1 or not all(words):
        raise UsageError(f"{'give one or two snapshots' if words else 'A is missing'}: {usage}")
    if len(words) == 1 and _is_state_alone(words[0], store):
        raise UsageError(f"'{words[0]}' is the state, A is missing: {usage}")
    has_state = len(words) > _PAIR or (len(words) == _PAIR and _is_state(words[0]))
    older, newer = [*words[has_state:], CURRENT][:2]
    check_moments(older, newer)
    return find_target(Path(words[0]) if has_state else None, store), older, newer


def find_path(words: tuple[str, ...], store: Path | None) -> tuple[Target, str]:
    """Return what the words `[STATE] PATH` mean; the store exists.

    Raises:
        UsageError: the path or the state is missing, or there is too much. NoSuchStore.
    """
    usage = "give one path, as it is below current/: 'statefs log STATE PATH'"
    state, paths = split_state(words, 1, usage)
    _refuse_state_alone(state, paths[0], store, usage)
    target, (path,) = find_target_of_paths(state, store, paths)
    return target, path


def _refuse_state_alone(state: Path | None, first: str, store: Path | None, usage: str) -> None:
    """Say that the path is missing where the first word can only be the state.

    Raises:
        UsageError: with `usage`.
    """
    is_known = state is not None or store is not None or find_state(None) is not None
    if not is_known and names_state(Path(first)):
        raise UsageError(f"'{first}' is the state, PATH is missing: {usage}")


def find_moment_and_path(words: tuple[str, ...], store: Path | None) -> tuple[Target, str, str]:
    """Return what the words `[STATE] SNAPSHOT PATH` mean; the store exists.

    Raises:
        UsageError: something is missing, or there is too much. NoSuchStore.
    """
    typed = "'statefs cat STATE SNAPSHOT PATH'"
    usage = f"give a snapshot and one path, as it is below current/: {typed}"
    state, (moment, path) = split_state(words, 2, usage)
    check_moments(moment)
    _refuse_state_alone(state, moment, store, usage)
    target, (path,) = find_target_of_paths(state, store, [path])
    return target, moment, path


def find_snapshot_and_paths(
    words: tuple[str, ...], store: Path | None, command: str
) -> tuple[Target, str, list[str]]:
    """Return what the words `[STATE] SNAPSHOT [PATH]...` of a command line mean.

    The first word is the state if there is a state of that name, or a slash in it.

    Raises:
        UsageError, NoSuchStore: see `find_snapshot`.
    """
    has_state = bool(words) and _is_state(words[0])
    count = 2 if has_state else 1
    state, name = _state_and_snapshot(words[:count], store, command)
    target, paths = find_target_of_paths(state, store, words[count:])
    return target, name, paths
