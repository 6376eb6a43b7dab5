"""Random steps, a power cut, and what must be there then: promises 2 and 3.

Names and attributes are those after some step, not before the last one whose durability was
acknowledged (close, save, tick): SQLite's log survives up to some commit. A file's bytes are those
of its last sync, where it was not changed since; where it was, each byte has some value that it had
since, or is zero where the file had none before. What decision 0006 leaves open is left out: a
range overwritten for the first time since a snapshot, or a hole written to for the first time, and
not synced, may read zeros or be cut off with the file's end.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from unittest.mock import patch

from statefs.maintenance import store
from statefs.maintenance.store import init_store
from tests.crash.disk import WatchedDisk
from tests.crash.engine import (
    Handlers,
    Step,
    StepMaker,
    ino_of,
    new_reference,
    trees_of,
    without_runtime,
)
from tests.harness.trees import Entry, Tree, differences
from tests.model.reference import Node, ReferenceTree
from tests.unit.engine_store import EngineStore

STEPS: Final = 60
SAVES_SHARE: Final = 0.3
"""Of the power cuts, those within a save."""
INLINE_MAX_BYTES: Final = 8192
IGNORED: Final = ("mtime_ns", "content", "size")


@dataclass
class Version:
    """What a file's bytes were after a step.

    Args:
        step: its number.
        content: all bytes.
        first: range that was overwritten for the first time since a snapshot.
    """

    step: int
    content: bytes
    first: tuple[int, int] | None = None


@dataclass
class FileHistory:
    """A file's versions, and the steps at whose end its bytes were synced.

    Args:
        synced: step -> whether that holds only where the step itself survived (a rename).
        written: bytes written since the newest snapshot, by place; None when all are new.
        lowest: where the bytes begin that lie in object files; a file cut before has none, and
            what is written then is written for the first time, too.
    """

    versions: list[Version] = field(default_factory=list)
    synced: dict[int, bool] = field(default_factory=dict)
    written: bytearray | None = None
    lowest: int = 0
    is_inline: bool = True


@dataclass
class Moment:
    """What the tree was after a step, and when the step began and ended.

    Args:
        begin: changes of the disk before it.
        end: changes of the disk when it was acknowledged.
        durable_step: the step until which names and attributes are durable then.
    """

    step: Step
    tree: Tree
    files: dict[bytes, Node]
    snapshots: dict[bytes, Tree]
    begin: int = 0
    end: int = 0
    durable_step: int = 0


class PowerCuts:
    """Some steps on a new store, and any number of power cuts during them.

    Args:
        folder: an empty folder, best in memory.
        seed: decides everything.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._histories: dict[Node, FileHistory] = {}
        self._moments: list[Moment] = []
        init_store(folder / "store")
        self._disk = WatchedDisk(folder / "store")

    def run(self) -> None:
        """Do the steps, and close the store."""
        reference, maker = new_reference(), StepMaker(self._rng)
        snapshots: dict[bytes, Tree] = {}
        with self._disk.watching():
            handlers = Handlers(self._folder / "store")
            self._note((), reference, snapshots, len(self._disk.changes))
            for _ in range(STEPS):
                begin = len(self._disk.changes)
                step = maker.next(reference)
                handlers.do(step)
                if step[0] == "save":
                    maker.labels.append(step[1])
                    snapshots = snapshots | {step[1]: without_runtime(reference.capture())}
                elif step[0] == "delete":
                    maker.labels.remove(step[1])
                    snapshots = {name: t for name, t in snapshots.items() if name != step[1]}
                self._note(step, reference, snapshots, begin)
            handlers.store.close()

    def _note(
        self,
        step: Step,
        reference: ReferenceTree,
        snapshots: dict[bytes, Tree],
        begin: int,
    ) -> None:
        tree = reference.capture()
        files = {path: reference.node(path) for path, entry in tree.items() if entry.kind == "-"}
        name = step[0] if step else ""
        moment = Moment(step, tree, files, snapshots, begin, len(self._disk.changes))
        number = len(self._moments)
        self._moments.append(moment)
        for node in set(files.values()):
            self._note_file(number, step, node)
        if name in ("save", "delete", "tick"):
            moment.durable_step = number
        if name in ("save", "tick"):
            for node, history in self._histories.items():
                history.synced[number] = False
                if name == "save":
                    history.written = bytearray(len(node.content))
        elif name == "close":
            self._histories[files[step[1]]].synced[number] = False
            moment.durable_step = self._last_change_of(step[1])
        elif name == "rename" and step[2] in self._moments[-2].tree:
            moved = files.get(step[2])  # what replaces another is synced first
            if moved is not None:
                self._histories[moved].synced[number] = True

    def _last_change_of(self, path: bytes) -> int:
        """Return the step that changed a file, its own names or its attributes last."""
        node = self._moments[-1].files[path]
        for number in range(len(self._moments) - 1, 0, -1):
            moment, before = self._moments[number], self._moments[number - 1]
            if _known(before, node) != _known(moment, node):
                return number
            if moment.step[0] == "rename" and node in map(moment.files.get, moment.step[1:3]):
                return number
        return 0

    def _note_file(self, number: int, step: Step, node: Node) -> None:
        """Note a new version of a file, if the step has made one."""
        history = self._histories.setdefault(node, FileHistory())
        content = bytes(node.content)
        if history.versions and history.versions[-1].content == content:
            return
        old = history.versions[-1].content if history.versions else b""
        version = Version(number, content)
        is_write = bool(step) and step[0] in ("write", "append")
        start = step[2] if is_write and step[0] == "write" else len(old)
        if step[:1] == ("truncate",) and len(content) <= history.lowest and content:
            history.written = bytearray(len(content))
        if is_write and not history.is_inline and history.written is not None:
            end = start + len(step[-1])
            written = history.written
            written.extend(bytes(max(0, len(content) - len(written))))
            if not all(written[start:end]):
                version.first = (start, end)
            written[start:end] = b"\1" * (end - start)
        if len(content) > INLINE_MAX_BYTES and history.is_inline:
            history.is_inline, history.written, history.lowest = False, None, 0
            if not old:
                history.lowest = start
                history.written = bytearray(len(content)) if step[0] == "truncate" else None
        elif is_write and not history.is_inline:
            history.lowest = min(history.lowest, start)
        elif not content:
            history.is_inline = True
        history.versions.append(version)

    def cut(self) -> list[str]:
        """Cut the power at a random moment, recover, and return what is wrong then."""
        saves = [moment for moment in self._moments if moment.step[:1] == ("save",)]
        if saves and self._rng.random() < SAVES_SHARE:
            save = self._rng.choice(saves)
            length = self._rng.randrange(save.begin, save.end)
        else:
            length = self._rng.randrange(self._moments[0].end, len(self._disk.changes) + 1)
        root = self._folder / "cut"
        self._disk.after_power_cut(length, self._rng).write_to(root)
        try:
            with patch.object(store, "boot_id", lambda: "another"), EngineStore(root) as engine:
                living, snapshots = trees_of(engine)
                contents = {
                    path: engine.content(ino_of(engine, path))
                    for path, entry in living.items()
                    if entry.kind == "-"
                }
                problems = engine.problems()
            return problems or self._wrong(length, living, snapshots, contents)
        finally:
            shutil.rmtree(root)

    def _wrong(
        self, length: int, living: Tree, snapshots: dict[bytes, Tree], contents: dict[bytes, bytes]
    ) -> list[str]:
        """Return what is wrong with a tree, compared with the step that it is nearest to."""
        moments = self._moments
        acknowledged = [index for index, moment in enumerate(moments) if moment.end <= length]
        first = max(moments[index].durable_step for index in acknowledged)
        last = min(acknowledged[-1] + 1, len(moments) - 1)
        nearest: list[str] | None = None
        for index in range(last, first - 1, -1):
            moment = moments[index]
            wrong = differences(moment.tree, living, ignore=IGNORED)
            wrong += _wrong_snapshots(moment.snapshots, snapshots)
            if not wrong:
                for path, node in moment.files.items():
                    wrong += self._wrong_content(node, path, contents[path], index, last, length)
            if not wrong:
                return []
            if nearest is None or len(wrong) < len(nearest):
                nearest = [f"step {index} of {first}..{last} {moment.step[:2]}", *wrong]
        return nearest or ["no step fits"]

    def _wrong_content(
        self, node: Node, path: bytes, found: bytes, index: int, last: int, length: int
    ) -> list[str]:
        history = self._histories[node]
        base = max(
            (
                step
                for step, is_own in history.synced.items()
                if step <= index and (is_own or self._moments[step].end <= length)
            ),
            default=-1,
        )
        before = [version for version in history.versions if version.step <= base]
        since = [version for version in history.versions if base < version.step <= last]
        versions = [*before[-1:], *since]
        if not before:
            versions.insert(0, Version(-1, b""))
        sizes = [len(version.content) for version in versions]
        firsts = [version.first for version in since if version.first]
        tails = [first[0] for first in firsts]
        least = min(*sizes, *tails) if tails else min(sizes)
        if not least <= len(found) <= max(sizes):
            return [f"{path!r} has {len(found)} bytes, not {least} to {max(sizes)}"]
        for place, byte in enumerate(found):
            if any(
                byte == version.content[place]
                for version in versions
                if place < len(version.content)
            ):
                continue
            may_be_zero = place >= min(sizes) or any(a <= place < b for a, b in firsts)
            if byte or not may_be_zero:
                return [f"{path!r} has never had byte {byte} at {place} since step {base}"]
        return []


def _known(moment: Moment, node: Node) -> Entry | None:
    """Return what is known of a file, without its paths, which change with the folders above."""
    for path, found in moment.files.items():
        if found is node:
            return replace(moment.tree[path], links=())
    return None


def _wrong_snapshots(wanted: dict[bytes, Tree], found: dict[bytes, Tree]) -> list[str]:
    """Return how listed snapshots differ from those of a step."""
    if wanted.keys() != found.keys():
        return [f"snapshots {sorted(found)} instead of {sorted(wanted)}"]
    return [
        f"{name!r}: {line}"
        for name in wanted
        for line in differences(wanted[name], found[name], ignore=("mtime_ns",))
    ]
