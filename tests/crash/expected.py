"""What a store must hold after steps of which some have failed.

A step that failed has happened or not, a write perhaps in part, and an operation of several
transactions perhaps some of them; all that was acknowledged is there.
"""

from __future__ import annotations

from typing import Any, Final

from tests.crash.engine import (
    Step,
    clones_of,
    copy_of,
    gone_back,
    ino_of,
    key_of,
    living_tree_of,
    new_reference,
    snapshot_trees_of,
    without_runtime,
)
from tests.harness.trees import Tree, differences
from tests.model.reference import ReferenceTree
from tests.unit.engine_store import EngineStore

IGNORED: Final = ("mtime_ns",)


class Expected:
    """The living tree, the snapshots and the clones of a store, at first those of a new one.

    A step of the living tree is applied to `reference` by who does it (`engine.apply`).
    """

    def __init__(self) -> None:
        self.reference = new_reference()
        self.snapshots: dict[bytes, Tree] = {}
        self._clones: dict[bytes, Tree] = {}
        self._saved: dict[bytes, ReferenceTree] = {}

    def copy(self) -> Expected:
        """Return one that changes on its own."""
        other = Expected()
        other.reference = copy_of(self.reference)
        other.snapshots, other._clones = dict(self.snapshots), dict(self._clones)
        other._saved = dict(self._saved)
        return other

    def note(self, step: Step, answer: Any = None) -> None:
        """Take a step for done.

        Args:
            answer: what `Handlers.do` has returned.
        """
        if step[0] == "save":
            self._note_snapshot(step[1])
        elif step[0] == "delete":
            del self.snapshots[step[1]]
        elif step[0] == "prune":
            for name in answer:
                del self.snapshots[name]
        elif step[0] == "clone":
            self._clones[step[1]] = list(self.snapshots.values())[-1]
        elif step[0] == "restore" and answer:
            self._note_snapshot(answer)
            self._go_back(step[1])

    def _note_snapshot(self, name: bytes) -> None:
        self.snapshots[name] = without_runtime(self.reference.capture())
        self._saved[name] = copy_of(self.reference)

    def _go_back(self, name: bytes) -> None:
        self.reference = gone_back(self.reference, copy_of(self._saved[name]))

    def adopt(self, engine: EngineStore, step: Step, before: ReferenceTree) -> list[str]:
        """Find out how far a step that failed has come, and take that for right.

        Args:
            before: what the reference was before the step.

        Returns:
            How the store differs from all that it may be.
        """
        found = {key_of(each) for each in engine.store.catalog.snapshots}
        if step[0] in ("save", "delete"):
            if (step[1] in found) != (step[1] in self.snapshots):
                self.note(step)
            return self.compare(engine)
        if step[0] == "prune":
            self.note(step, [name for name in [*self.snapshots][:-1] if name not in found])
        elif step[0] == "clone" and step[1] in clones_of(engine):
            self.note(step)
        elif step[0] == "restore":
            return self._adopt_restore(engine, step, [*(found - self.snapshots.keys())])
        wrong = self.compare(engine)
        if wrong:
            after, self.reference = self.reference, before
            wrong = self.compare(engine)
        if wrong and step[0] in ("write", "append"):
            self._adopt_part(engine, step[1], after)
            wrong = self.compare(engine)
        return [f"after {step[:2]} failed: {line}" for line in wrong]

    def _adopt_restore(self, engine: EngineStore, step: Step, safety: list[bytes]) -> list[str]:
        """Find out how far a restore got: not at all, to its snapshot, or to its end."""
        for name in safety[:1]:
            self._note_snapshot(name)
        wrong = self.compare(engine)
        if wrong and safety:
            self._go_back(step[1])
            wrong = self.compare(engine)
        return [f"after {step[:2]} failed: {line}" for line in wrong]

    def _adopt_part(self, engine: EngineStore, path: bytes, after: ReferenceTree) -> None:
        """Take a file for right if each of its bytes is an old or a new one."""
        node = self.reference.node(path)
        old, new = bytes(node.content), bytes(after.node(path).content)
        found = engine.content(ino_of(engine, path))
        if len(old) <= len(found) <= len(new) and all(
            byte
            in (*old[place : place + 1], *new[place : place + 1], *(b"\0" * (place >= len(old))))
            for place, byte in enumerate(found)
        ):
            node.content[:] = found

    def compare(self, engine: EngineStore, *, with_past: bool = True) -> list[str]:
        """Return how a store differs from what it should hold.

        Args:
            with_past: also in what its snapshots and clones show, which nothing changes.
        """
        wrong = differences(self.reference.capture(), living_tree_of(engine), ignore=IGNORED)
        if wrong or not with_past:
            return wrong
        snapshots = snapshot_trees_of(engine)
        if self.snapshots.keys() != snapshots.keys():
            return [*wrong, f"snapshots {sorted(snapshots)}, not {sorted(self.snapshots)}"]
        clones = clones_of(engine)
        if self._clones.keys() != clones.keys():
            return [*wrong, f"clones {sorted(clones)}, not {sorted(self._clones)}"]
        for wanted, trees in ((self.snapshots, snapshots), (self._clones, clones)):
            for name, tree in wanted.items():
                wrong += differences(tree, trees[name], ignore=IGNORED)
        return wrong
