"""Random steps, a power cut, and what must be there then: promises 2 and 3.

Names and attributes are those after some step, not before the last one whose durability was
acknowledged (close, save, tick): SQLite's log survives up to some commit. A file's bytes are those
of its last sync, where it was not changed since; where it was, each byte has some value that it had
since, or is zero where the file had none before.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from statefs.maintenance.store import init_store
from tests.crash.disk import WatchedDisk
from tests.crash.engine import (
    DURING,
    Handlers,
    Step,
    StepMaker,
    apply,
    gone_back,
    new_reference,
    without_runtime,
)
from tests.crash.meanwhile import Meanwhile
from tests.crash.rebuilt import Found, Place
from tests.harness.trees import Entry, Tree, differences
from tests.model.reference import Node, ReferenceTree
from tests.unit.engine_store import mirror

STEPS: Final = 60
SAVES_SHARE: Final = 0.3
"""Of the power cuts, those within a save."""
COMPARED_BYTES: Final = 512
"""Compared at once; one by one only where no version has them all."""
IGNORED: Final = ("mtime_ns", "content", "size")
DURABLE_STEPS: Final = (
    "save", "delete", "restore", "prune", "clone", "tick", "syncdir", "kill", "closed",
    "seal",
)  # fmt: skip
"""Steps after which all names and attributes are durable."""
SAVING_STEPS: Final = ("save", "restore")
"""Steps that take a snapshot: what came before it in the log is durable when it is."""
PUBLISHED_STEPS: Final = ("save", "delete", "restore", "prune")
"""Steps after which the plain files of documents tell of all snapshots."""


@dataclass
class Version:
    """What a file's bytes were after a step.

    Args:
        step: its number.
        content: all bytes.
    """

    step: int
    content: bytes


class Synced(NamedTuple):
    """A file's bytes were synced.

    Args:
        step: whose bytes.
        until: the step at whose end they were; another one when something was done meanwhile.
        is_own: whether that holds only where that step itself survived (a rename).
    """

    step: int
    until: int
    is_own: bool = False


@dataclass
class FileHistory:
    """A file's versions, and when its bytes were synced.

    Args:
        synced: when.
    """

    versions: list[Version] = field(default_factory=list)
    synced: list[Synced] = field(default_factory=list)


@dataclass
class Moment:
    """What the tree was after a step, and when the step began and ended.

    A step that becomes visible in parts, as a restore with the snapshot taken for it, has a moment
    for each of them.

    Args:
        begin: changes of the disk before it.
        end: changes of the disk when it was acknowledged.
        durable_step: the step until which names and attributes are durable then.
        clones: their trees by name.
        noted: names of snapshots beside whose documents it is noted what a restore changed.
        sealed: names of snapshots that have got a digest.
    """

    step: Step
    tree: Tree
    files: dict[bytes, Node]
    snapshots: dict[bytes, Tree]
    clones: dict[bytes, Tree] = field(default_factory=dict)
    noted: frozenset[bytes] = frozenset()
    sealed: frozenset[bytes] = frozenset()
    begin: int = 0
    end: int = 0
    durable_step: int = 0


@dataclass
class Before:
    """What was there when a step landed during another one, which promises that alone.

    Args:
        step: the newest one then.
        saved: the living tree.
        is_begun: whether the other one had ended an epoch.
        node: the file that is synced, if it is one.
        durable_step: the step that changed it last.
    """

    step: int
    saved: ReferenceTree | None = None
    is_begun: bool = False
    node: Node | None = None
    durable_step: int = 0


@dataclass(frozen=True)
class Span:
    """What a store is compared with.

    Args:
        last: the newest step that had begun.
        length: changes of the disk when the power was cut.
    """

    last: int
    length: int


class Recording:
    """Steps on a store, what its disk saw of them, and what must be there after a power cut.

    Args:
        root: of a store that is closed.
        before: the recording that made the store, which goes on with it; None for a new store.
    """

    def __init__(self, root: Path, before: Recording | None = None) -> None:
        self.disk = WatchedDisk(root)
        self.moments: list[Moment] = []
        self._histories: dict[Node, FileHistory] = {}
        self._reference = new_reference()
        self._saved: dict[bytes, ReferenceTree] = {}
        self._handlers: Handlers | None = None
        self._root = root
        if before is None:
            self._note((), {}, {}, 0)
        else:
            self._go_on_from(before)

    def _go_on_from(self, before: Recording) -> None:
        """Take over what an earlier recording knows, all of it durable."""
        known = copy.deepcopy((before._reference, before._histories, before._saved))
        self._reference, self._histories, self._saved = known
        last = before.moments[-1]
        self._note((), last.snapshots, last.clones, 0, noted=last.noted)
        self.moments[0].sealed = last.sealed
        for history in self._histories.values():
            history.versions = [replace(history.versions[-1], step=0)]
            history.synced = [Synced(0, 0)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the store open within the block, and close it cleanly."""
        with self.disk.watching():
            self._handlers = Handlers(self._root)
            self.moments[-1].end = len(self.disk.changes)
            yield
            begin, last = len(self.disk.changes), self.moments[-1]
            self._handlers.store.close()
            self._note(("closed",), last.snapshots, last.clones, begin)

    @property
    def reference(self) -> ReferenceTree:
        """What the living tree must hold now."""
        return self._reference

    @property
    def snapshots(self) -> list[bytes]:
        """What snapshots are there now, the oldest first."""
        return list(self.moments[-1].snapshots)

    def do(self, step: Step) -> None:
        """Do a step; the reference has it already, if it is one of those that change that."""
        assert self._handlers is not None
        if step[0] == DURING:
            self._do_during(self._handlers, *step[1:])
            return
        begin = len(self.disk.changes)
        answer = None
        if step[0] == "kill":
            self._kill(self._handlers)
        else:
            answer = self._handlers.do(step)
        self._note_done(step, answer, begin)

    def _do_during(self, handlers: Handlers, step: Step, other: Step, place: str) -> None:
        """Do a step, and another one while it waits; the reference has neither yet.

        What the step promises it promises of what was there before the other one landed; but a
        snapshot that is not begun by then is one of both.
        """
        begin, known = len(self.disk.changes), len(self.moments) - 1
        table = handlers.store.volume.table
        epoch, before = table.epoch, Before(known)
        if step[0] == "fsync":
            before.node = self.moments[-1].files[step[1]]
            before.durable_step = self._last_change_of(step[1])

        async def land() -> None:
            nonlocal begin
            begin = len(self.disk.changes)
            before.is_begun = table.epoch != epoch
            before.saved = copy.deepcopy(self._reference)
            assert apply(self._reference, other), other
            answer = await handlers.doing(other)
            self._note_done(other, answer, begin)
            begin = len(self.disk.changes)

        meanwhile = Meanwhile(place, land)
        answer = handlers.do(step, meanwhile)
        if step[0] == "rename":
            assert apply(self._reference, step), step
        if meanwhile.has_landed:
            is_of_both = step[0] in SAVING_STEPS and not before.is_begun
            self._note_done(step, answer, begin, None if is_of_both else before)
            return
        self._note_done(step, answer, begin)
        if apply(self._reference, other):  # nothing was waited for: one comes after the other
            self.do(other)

    def _note_done(self, step: Step, answer: Any, begin: int, before: Before | None = None) -> None:
        """Note what a step has made of the store.

        Args:
            before: another step, where it promises nothing of what that one did.
        """
        last = self.moments[-1]
        snapshots, clones = last.snapshots, last.clones
        name, sealed = step[0], last.sealed
        if name == "seal":
            sealed |= frozenset(answer)
        if name == "save":
            snapshots = self._with_snapshot(step[1], None if before is None else before.saved)
        elif name == "delete":
            snapshots = _without(snapshots, step[1])
        elif name == "clone":
            clones = clones | {step[1]: snapshots[self.snapshots[-1]]}
        elif name in ("prune", "restore", "seal") and not answer:
            step = ("nothing", *step)
        elif name == "prune":
            for gone in answer:
                snapshots = _without(snapshots, gone)
                self._note(step, snapshots, clones, begin)
            return
        elif name == "restore":
            self._note((name, step[1], "safety"), self._with_snapshot(answer), clones, begin)
            snapshots = self.moments[-1].snapshots
            self._go_back(step[1])
            self._note(step, snapshots, clones, begin, noted=last.noted | {answer})
            return
        self._note(step, snapshots, clones, begin, before=before)
        self.moments[-1].sealed = sealed & frozenset(snapshots)

    def _kill(self, killed: Handlers) -> None:
        """Have another process go on: it finds what was written, synced or not."""
        root = self._root.with_name(f"{self._root.name}-killed")
        mirror(self._root, root)
        self.disk.move_to(root)
        killed.store.objects.close()
        killed.store.database.close()
        self._root = root
        self._handlers = Handlers(root)

    def _with_snapshot(self, name: bytes, saved: ReferenceTree | None = None) -> dict[bytes, Tree]:
        self._saved[name] = saved or copy.deepcopy(self._reference)
        return self.moments[-1].snapshots | {name: without_runtime(self._saved[name].capture())}

    def _go_back(self, name: bytes) -> None:
        """Make the reference what it was when a snapshot was taken, but for runtime/."""
        self._reference = gone_back(self._reference, copy.deepcopy(self._saved[name]))

    def _note(
        self,
        step: Step,
        snapshots: dict[bytes, Tree],
        clones: dict[bytes, Tree],
        begin: int,
        noted: frozenset[bytes] | None = None,
        before: Before | None = None,
    ) -> None:
        tree = self._reference.capture()
        paths = (path for path, entry in tree.items() if entry.kind == "-")
        files = {path: self._reference.node(path) for path in paths}
        name = step[0] if step else ""
        if noted is None:
            noted = self.moments[-1].noted if self.moments else frozenset()
        noted &= frozenset(snapshots)
        sealed = self.moments[-1].sealed & frozenset(snapshots) if self.moments else frozenset()
        end = len(self.disk.changes)
        moment = Moment(step, tree, files, snapshots, clones, noted, sealed, begin, end)
        number = len(self.moments)
        self.moments.append(moment)
        for node in set(files.values()):
            self._note_file(number, node)
        synced = Synced(number if before is None else before.step, number, name == "rename")
        if name in DURABLE_STEPS:
            is_late = before is not None and name not in SAVING_STEPS
            moment.durable_step = synced.step if is_late else number
        if name in ("save", "tick", "kill", "closed") or step[2:] == ("safety",):
            for history in self._histories.values():
                history.synced.append(synced)
        elif name == "restore":
            for node in files.values():
                self._histories[node].synced.append(synced)
        elif before is not None and before.node is not None:
            self._histories[before.node].synced.append(synced)
            moment.durable_step = before.durable_step
        elif name in ("close", "fsync"):
            self._histories[files[step[1]]].synced.append(synced)
            moment.durable_step = self._last_change_of(step[1])
        elif name == "rename" and step[2] in self.moments[-2].tree:
            moved = files.get(step[2])  # what replaces another is synced first
            if moved is not None:
                self._histories[moved].synced.append(synced)

    def _last_change_of(self, path: bytes) -> int:
        """Return the step that changed a file, its own names or its attributes last."""
        node = self.moments[-1].files[path]
        for number in range(len(self.moments) - 1, 0, -1):
            moment, before = self.moments[number], self.moments[number - 1]
            if _known(before, node) != _known(moment, node):
                return number
            if moment.step[0] == "rename" and node in map(moment.files.get, moment.step[1:3]):
                return number
        return 0

    def _note_file(self, number: int, node: Node) -> None:
        """Note a new version of a file, if the step has made one."""
        history = self._histories.setdefault(node, FileHistory())
        content = bytes(node.content)
        if not history.versions or history.versions[-1].content != content:
            history.versions.append(Version(number, content))

    def steps_at(self, length: int) -> tuple[int, int]:
        """Return the newest step acknowledged after so many changes, and the newest begun."""
        ended = sum(moment.end <= length for moment in self.moments)
        begun = sum(moment.begin < length for moment in self.moments)
        return max(0, ended - 1), max(0, ended - 1, begun - 1)

    def wrong(self, length: int, found: Found, *, is_all_kept: bool = False) -> list[str]:
        """Return what is wrong with a store, compared with the step that it is nearest to.

        Args:
            length: changes of the disk when the power was cut.
            is_all_kept: nothing was lost, so that all names and attributes that were acknowledged
                must be there. Bytes not: nobody knows that they have come to the disk.
        """
        moments = self.moments
        acknowledged, last = self.steps_at(length)
        first = max(moment.durable_step for moment in moments[: acknowledged + 1])
        if is_all_kept:
            first = acknowledged
        span = Span(last, length)
        wrong = self._wrong_documents(acknowledged, found, span)
        if wrong:
            return wrong
        nearest: list[str] | None = None
        for index in range(span.last, first - 1, -1):
            wrong = self._wrong_at(index, found, span)
            if not wrong:
                return []
            if nearest is None or len(wrong) < len(nearest):
                at = f"step {index} of {first}..{span.last} {moments[index].step[:2]}"
                nearest = [at, *wrong]
        return nearest or ["no step fits"]

    def _wrong_documents(self, acknowledged: int, found: Found, span: Span) -> list[str]:
        """Return what the plain files failed to tell before the store was opened."""
        first = max(
            (
                number
                for number, moment in enumerate(self.moments[: acknowledged + 1])
                if moment.step[:1] and moment.step[0] in PUBLISHED_STEPS
            ),
            default=0,
        )
        possible = [frozenset(each.snapshots) for each in self.moments[first : span.last + 1]]
        if found.listed not in possible:
            return [f"index.json listed {sorted(found.listed)}"]
        lost = frozenset.intersection(*possible) - found.documented
        return [f"the documents of {sorted(lost)} were lost"] if lost else []

    def _wrong_at(self, index: int, found: Found, span: Span) -> list[str]:
        """Return how a store differs from what it was after a step."""
        moment = self.moments[index]
        wrong = differences(moment.tree, found.living, ignore=IGNORED)
        wrong += _wrong_trees("snapshots", moment.snapshots, found.snapshots)
        wrong += _wrong_trees("clones", moment.clones, found.clones)
        if moment.end <= span.length and not moment.noted <= found.noted:
            wrong.append(f"what restores changed is noted of {found.noted}, not {moment.noted}")
        if moment.end <= span.length and not moment.sealed <= found.sealed:
            wrong.append(f"digests of {found.sealed}, not {moment.sealed}")
        if not wrong:
            for path, node in moment.files.items():
                wrong += self._wrong_content(node, path, found.contents[path], index, span)
        return wrong

    def _wrong_content(
        self, node: Node, path: bytes, found: bytes, index: int, span: Span
    ) -> list[str]:
        history, last = self._histories[node], span.last
        base = max(
            (
                each.step
                for each in history.synced
                if (
                    each.until <= index
                    if each.is_own
                    else self.moments[each.until].end <= span.length
                )
            ),
            default=-1,
        )
        before = [version for version in history.versions if version.step <= base]
        since = [version for version in history.versions if base < version.step <= last]
        versions = [*before[-1:], *since]
        if not before:
            versions.insert(0, Version(-1, b""))
        sizes = [len(version.content) for version in versions]
        if not min(sizes) <= len(found) <= max(sizes):
            return [f"{path!r} has {len(found)} bytes, not {min(sizes)} to {max(sizes)}"]
        for start in range(0, len(found), COMPARED_BYTES):
            part = found[start : start + COMPARED_BYTES]
            if any(version.content[start : start + len(part)] == part for version in versions):
                continue
            for place, byte in enumerate(part, start):
                may_be_zero = place >= min(sizes)
                if not (_had(versions, place, byte) or (may_be_zero and not byte)):
                    return [f"{path!r} has never had byte {byte} at {place} since step {base}"]
        return []


def _had(versions: list[Version], place: int, byte: int) -> bool:
    """Return whether one of some versions has a byte at a place."""
    return any(version.content[place : place + 1] == bytes((byte,)) for version in versions)


def _known(moment: Moment, node: Node) -> Entry | None:
    """Return what is known of a file, without its paths, which change with the folders above."""
    for path, found in moment.files.items():
        if found is node:
            return replace(moment.tree[path], links=())
    return None


def _wrong_trees(kind: str, wanted: dict[bytes, Tree], found: dict[bytes, Tree]) -> list[str]:
    """Return how snapshots, or clones, differ from those of a step."""
    if wanted.keys() != found.keys():
        return [f"{kind} {sorted(found)} instead of {sorted(wanted)}"]
    return [
        f"{name!r}: {line}"
        for name in wanted
        for line in differences(wanted[name], found[name], ignore=("mtime_ns",))
    ]


def _without(snapshots: dict[bytes, Tree], name: bytes) -> dict[bytes, Tree]:
    return {each: tree for each, tree in snapshots.items() if each != name}


class PowerCuts:
    """Random steps on a new store, and any number of power cuts during them.

    Args:
        folder: an empty folder, best in memory.
        seed: decides everything.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._place = Place(folder / "cut")
        init_store(folder / "store")
        self._recording = Recording(folder / "store")

    def run(self) -> None:
        """Do the steps, and close the store."""
        recording, maker = self._recording, StepMaker(self._rng)
        with recording.running():
            for _ in range(STEPS):
                recording.do(maker.next(recording.reference))
                maker.labels = recording.snapshots

    def cut(self) -> list[str]:
        """Cut the power at a random moment, recover, and return what is wrong then."""
        recording = self._recording
        moments, changes = recording.moments, recording.disk.changes
        saves = [moment for moment in moments if moment.step[:1] in (("save",), ("restore",))]
        if saves and self._rng.random() < SAVES_SHARE:
            save = self._rng.choice(saves)
            length = self._rng.randrange(save.begin, save.end)
        else:
            length = self._rng.randrange(moments[0].end, len(changes) + 1)
        found = self._place.opened(recording.disk.after_power_cut(length, self._rng))
        return found.problems or recording.wrong(length, found)
