"""Every operation that can be asked of an open store, by name: the one list.

The daemon runs them for its control socket, the command line runs them where no daemon has the
store; both through `Commands.start`. An operation is a function in `_OPERATIONS`:

* It takes the `Commands` it belongs to, a `Call` (whom to tell of progress) and its own named
  arguments, which come from JSON, and returns plain values, which go there.
* It is a generator of blocking steps (maintenance/steps.py). What only reads past trees runs in one
  such step, on a `Reader` of its own, so a mount goes on beside it.
* control/kinds.py names those that change the list of snapshots or the tree behind the mount's
  back, of which one runs at a time, and those that write nothing at all.

To add one: write it in the module it belongs to, list it here and add its method to `api.State`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, get_type_hints

import msgspec

from statefs.content.checks import DamagedBytes
from statefs.errors import CorruptStore, UsageError
from statefs.maintenance import (
    checking,
    cloning,
    comparing,
    exporting,
    pruning,
    restoring,
    saving,
)
from statefs.maintenance.progress import reporting
from statefs.maintenance.rereading import verify_data
from statefs.maintenance.scrubbing import scrub
from statefs.maintenance.sealing import seal
from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot, document_of
from statefs.snapshots.documents import Operation
from statefs.snapshots.restore_plan import Scope, parsed_paths, quoted
from statefs.telemetry.tallies import RESTORE

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

Document = dict[str, Any]
T = TypeVar("T")


EVENTS_SECONDS: Final = 1.0
"""How long who waits for events is kept waiting before asking again: an unmount waits for that."""
EVENTS_POLL_SECONDS: Final = 0.1


class Call(Protocol):
    """Who asked, and listens: of the control socket or of the command line."""

    def report(self, progress: Document) -> None:
        """Tell how far the work is; from any thread, as often as it likes."""

    @property
    def pid(self) -> int:
        """The process that asked."""

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for the result; what can be given up then should be."""


class Commands:
    """The operations of one open store.

    Args:
        store: opened under its lock.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def start(self, op: str, arguments: Document, call: Call) -> Steps[Any]:
        """Return an operation, ready to run.

        Raises:
            UsageError: there is no such operation, or it takes other arguments.
        """
        operation = _OPERATIONS.get(op)
        if operation is None:
            raise UsageError(f"unknown operation '{op}': this daemon is of another version")
        try:
            inspect.signature(operation).bind(self, call, **arguments)
            known = get_type_hints(operation)
            checked = {
                name: msgspec.convert(value, known.get(name, Any), str_keys=True)
                for name, value in arguments.items()
            }
        except (TypeError, msgspec.ValidationError) as error:
            raise UsageError(f"the operation '{op}' cannot be run so: {error}") from None
        return self._telling(op, operation(self, call, **checked))

    def _telling(self, op: str, steps: Steps[T]) -> Steps[T]:
        """Have damaged bytes that an operation came across known, and named by their path."""
        try:
            return (yield from self._counted(op, steps))
        except DamagedBytes as damage:
            told = self.store.tell_damage(damage)
            raise CorruptStore(f"{told}: 'statefs verify --read-data' names all damage") from damage

    def _counted(self, op: str, steps: Steps[T]) -> Steps[T]:
        try:
            return (yield from steps)
        except Exception:
            if op in (RESTORE, "undo"):  # a save tells of it itself, whoever asks for it
                self.store.tallies.failed(RESTORE)
            raise


def _save(
    commands: Commands,
    _call: Call,
    *,
    message: str,
    reason: str,
    labels: dict[str, str],
    operation: Operation | None = None,
) -> Steps[Document]:
    steps = saving.save(commands.store, reason, message, labels, operation)
    return document_of((yield from steps))


def _restore(
    commands: Commands,
    call: Call,
    *,
    snapshot: str,
    paths: list[str],
    force: bool,
    dry_run: bool,
) -> Steps[Document]:
    store = commands.store
    chosen = store.catalog.choose(snapshot)
    scope = Scope(parsed_paths(paths))
    named = [quoted(path) for path in sorted(scope.paths or ())]
    operation = Operation(kind="restore", phase="before", other=chosen.uuid, paths=named)
    message = restoring.restore_message(chosen.name, named)
    return (
        yield from restoring.bring_back(
            store, call, chosen, scope, operation, message, force=force, dry_run=dry_run
        )
    )


def _undo(
    commands: Commands, call: Call, *, force: bool, of: str | None = None, dry_run: bool = False
) -> Steps[Document]:
    return (yield from restoring.undo(commands.store, call, force=force, of=of, dry_run=dry_run))


def _scrub(commands: Commands, call: Call, *, start: bool) -> Steps[Document]:
    return (yield from scrub(commands.store, call, start=start))


def _seal(commands: Commands, call: Call, *, snapshot: str) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    return document_of((yield from seal(commands.store, chosen, call)))


def _list(commands: Commands, _call: Call) -> Steps[Document]:
    yield from ()
    return {"snapshots": [_shown(commands, each) for each in commands.store.catalog.snapshots]}


def _show(commands: Commands, _call: Call, *, snapshot: str) -> Steps[Document]:
    yield from ()
    return _shown(commands, commands.store.catalog.choose(snapshot))


def _shown(commands: Commands, snapshot: Snapshot) -> Document:
    """Return a snapshot's document, with what only the process knows that seals."""
    return document_of(snapshot) | {"unsealable": commands.store.sealer.why_not(snapshot)}


def _delete(commands: Commands, _call: Call, *, snapshot: str) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    return document_of((yield from saving.delete(commands.store, chosen)))


def _prune(commands: Commands, call: Call, *, dry_run: bool) -> Steps[Document]:
    plan = yield from pruning.prune(commands.store, dry_run=dry_run, call=call)
    return pruning.document_of(plan, is_done=not dry_run)


def _pin(
    commands: Commands, _call: Call, *, snapshot: str, reason: str, by: str, until: str
) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    steps = pruning.pin(commands.store, chosen, reason=reason, by=by, until=until)
    return document_of((yield from steps))


def _unpin(commands: Commands, _call: Call, *, snapshot: str) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    return document_of((yield from pruning.unpin(commands.store, chosen)))


def _sizes(commands: Commands, call: Call) -> Steps[Document]:
    return (yield from pruning.sizes(commands.store, call))


def _diff(commands: Commands, call: Call, *, older: str, newer: str) -> Steps[Document]:
    return comparing.diff(commands.store, call, older, newer)


def _log(commands: Commands, _call: Call, *, path: str) -> Steps[list[Document]]:
    return comparing.log(commands.store, path)


def _locate(
    commands: Commands,
    _call: Call,
    *,
    snapshot: str,
    path: str,
    ino: int,
    offset: int,
    end: int,
    check: bool = False,
) -> Steps[Document]:
    return comparing.locate(
        commands.store,
        snapshot=snapshot,
        path=path,
        ino=ino,
        offset=offset,
        end=end,
        check=check,
    )


def _clone(
    commands: Commands, call: Call, *, snapshot: str, name: str, path: str
) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    on_progress = reporting(call, f"copying {chosen.name}", "files")
    return (yield from cloning.clone(commands.store, chosen, name.encode(), path, on_progress))


def _delete_clone(commands: Commands, _call: Call, *, name: str) -> Steps[None]:
    yield from cloning.delete(commands.store, name.encode())


def _clones(commands: Commands, _call: Call) -> Steps[list[Document]]:
    yield from ()
    return [cloning.document_of(each) for each in commands.store.clones.listing()]


def _events(commands: Commands, call: Call, *, after: int, wait: bool) -> Steps[list[Document]]:
    kept = commands.store.kept_events
    give_up = time.monotonic() + EVENTS_SECONDS
    while wait and kept.newest <= after and call.is_wanted and time.monotonic() < give_up:
        yield partial(time.sleep, EVENTS_POLL_SECONDS)
    return kept.after(after)


def _metrics(commands: Commands, _call: Call) -> Steps[str]:
    store = commands.store
    status = store.status() | store.host.of_mount()

    def text() -> str:
        from statefs.telemetry.metrics import exposition  # slow to load, and seldom wanted

        return exposition(status, store.tallies).decode()

    said: str = yield text
    return said


def _status(commands: Commands, _call: Call) -> Steps[Document]:
    yield from ()
    return commands.store.status()


def _verify(
    commands: Commands, call: Call, *, snapshot: str | None = None, read_data: bool = False
) -> Steps[Document]:
    store = commands.store
    chosen = None if snapshot is None else store.catalog.choose(snapshot)
    table = store.volume.table
    store.settle()
    totals = None if store.host.is_mounted else (table.files, table.bytes)
    on_rule = reporting(call, "checking rules", "rules")
    problems = yield lambda: store.verify_files(totals, on_rule)
    read = None
    if read_data:
        data, read = yield from verify_data(store, chosen, call)
        problems += data
    store.tell_damages("verify", (problem.message for problem in problems))
    return {"problems": msgspec.to_builtins(problems), "read": read}


def _export(
    commands: Commands, call: Call, *, snapshot: str, pipe: str, paths: Sequence[str] = ()
) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    wanted = parsed_paths(paths)
    return (yield from exporting.export(commands.store, call, chosen, pipe, wanted))


def _check(
    commands: Commands, call: Call, *, snapshot: str, original: str | None = None
) -> Steps[Document]:
    def opened(count: int) -> None:
        call.report({"what": "opening", "done": count, "total": None, "unit": "files"})

    chosen = commands.store.catalog.choose(snapshot)
    listener = checking.Listener(opened, lambda: call.is_wanted)
    report: Document = msgspec.to_builtins(
        (yield from checking.check(commands.store, chosen, listener, original))
    )
    return report


def _write_down_check(
    commands: Commands, _call: Call, *, snapshot: str, outcome: str | None, volumes: list[Document]
) -> Steps[Document]:
    chosen = commands.store.catalog.choose(snapshot)
    checked = msgspec.convert(volumes, list[checking.CheckedVolume])
    return document_of((yield from checking.write_down(commands.store, chosen, outcome, checked)))


_OPERATIONS: Final[dict[str, Callable[..., Steps[Any]]]] = {
    "save": _save,
    "seal": _seal,
    "scrub": _scrub,
    "list": _list,
    "show": _show,
    "delete": _delete,
    "restore": _restore,
    "undo": _undo,
    "prune": _prune,
    "pin": _pin,
    "unpin": _unpin,
    "sizes": _sizes,
    "clone": _clone,
    "delete_clone": _delete_clone,
    "clones": _clones,
    "diff": _diff,
    "log": _log,
    "locate": _locate,
    "status": _status,
    "events": _events,
    "metrics": _metrics,
    "verify": _verify,
    "check": _check,
    "write_down_check": _write_down_check,
    "export": _export,
}
