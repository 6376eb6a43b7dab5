"""Which trees a writer may have left, given what it was doing: before, after, or within a write.

A write(2) that is not acknowledged may be there in part: the kernel splits it where a page is only
partly overwritten, and a kill or a save may come between the parts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.crash.clients import apply
from tests.crash.journal import Step
from tests.harness.trees import Tree, differences
from tests.model.reference import Node, ReferenceTree

WRITES: Final = ("write", "append", "truncate")
NEVER_NS: Final = 1 << 63


def check_end(reference: ReferenceTree, steps: Sequence[Step], folder: Path, found: Tree) -> None:
    """A folder has everything acknowledged, and the last step, if it was not, wholly or not.

    Args:
        reference: of the folder before the first step; it is changed.
        steps: all that the writer did.
        folder: where `found` was captured.
        found: the folder as it is.
    """
    for step in steps[:-1]:
        apply(reference, step.name, step.arguments)
    last = steps[-1]
    wrong = _wrong_around(reference, last, folder, found, may_be_missing=last.done_ns is None)
    assert not wrong, f"{folder}: after {len(steps)} steps, at {last}: {wrong}"


def check_instant(
    reference: ReferenceTree, steps: Sequence[Step], save: Step, folder: Path, found: Tree
) -> None:
    """A snapshot shows a folder as it was at one instant of the save.

    Args:
        reference: of the folder before the first step; it is changed.
        steps: all that the writer did.
        save: begins and ends the time in which the instant lies.
        folder: in the snapshot.
        found: the folder as the snapshot shows it.
    """
    end_ns = NEVER_NS if save.done_ns is None else save.done_ns
    nearest: list[str] | None = None
    candidates = 0
    for step in steps:
        if step.begun_ns > end_ns:
            break
        if step.done_ns is not None and step.done_ns < save.begun_ns:
            apply(reference, step.name, step.arguments)
            continue
        wrong = _wrong_around(reference, step, folder, found, may_be_missing=True)
        candidates += 1
        if not wrong:
            return
        nearest = wrong if nearest is None else min(nearest, wrong, key=len)
    if nearest is None:
        nearest = differences(reference.capture(), found)
    assert not nearest, f"{folder} was never like this ({candidates} states): {nearest}"


def _wrong_around(
    reference: ReferenceTree, step: Step, folder: Path, found: Tree, *, may_be_missing: bool
) -> list[str]:
    """Do a step on the reference; return what is wrong with a tree that was found around it.

    Args:
        may_be_missing: whether the tree may also be as before the step, or in the midst of it.

    Returns:
        Nothing where the tree is right, else the differences to the nearest.
    """
    before = differences(reference.capture(), found) if may_be_missing else None
    node = _written(reference, step)
    old = bytes(node.content) if node is not None else b""
    apply(reference, step.name, step.arguments)
    after = differences(reference.capture(), found)
    if before is None:
        return after
    if not before or not after:
        return []
    if node is not None and _is_mixed(reference, step, node, old, folder, found):
        return []
    return min(before, after, key=len)


def _written(reference: ReferenceTree, step: Step) -> Node | None:
    """Return the file that a step writes, None where it writes none."""
    if step.name not in WRITES:
        return None
    try:
        node = reference.node(_path(step))
        node.must_be_file()
    except OSError:
        return None
    return node


def _path(step: Step) -> bytes:
    return str(step.arguments[0]).encode("latin-1")


def _is_mixed(
    reference: ReferenceTree, step: Step, node: Node, old: bytes, folder: Path, found: Tree
) -> bool:
    """Return whether the tree differs only in one file, whose bytes are old or new ones."""
    path, new = _path(step), bytes(node.content)
    expected = reference.capture()
    for name in expected[path].links:
        if name not in found:
            return False
        entry = found[name]
        expected[name] = replace(
            expected[name], size=entry.size, content=entry.content, mtime_ns=None
        )
    if differences(expected, found):
        return False
    got = Path(os.fsdecode(os.path.join(os.fsencode(folder), path))).read_bytes()
    if not min(len(old), len(new)) <= len(got) <= max(len(old), len(new)):
        return False
    return all(
        byte in (*old[place : place + 1], *new[place : place + 1], 0)
        for place, byte in enumerate(got)
    )
