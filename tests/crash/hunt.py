"""Rounds of work on a state whose daemon is killed at a random instant, each followed by a check.

A round: writers and a saver work; the daemon is killed; the state is mounted again; what was
acknowledged must be there. The same store goes through all rounds, so that what one recovery
leaves is what the next begins with.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from statefs.control.client import ControlClient
from statefs.layout import StoreLayout
from statefs.locking import read_owner
from tests.crash.clients import Saver, Writer, new_reference
from tests.crash.fork_server import ForkedState, marker_of
from tests.crash.journal import JournalWriter, Step, read_journal
from tests.crash.outcomes import check_end, check_instant
from tests.harness.mounted_state import END_SECONDS, detach, eventually, wait_until_gone
from tests.harness.processes import start
from tests.harness.trees import DOCUMENT, Tree, capture, differences, tree_digest

WRITERS: Final = 2
KINDS: Final = ("create", "append", "rename", "save", "delete", "checkpoint")
"""What a kill must fall in the middle of, each of them."""
OF_SAVER: Final = ("save", "delete")
STEPS_MIN: Final = 20
"""A round in which less was acknowledged shows nothing and does not count."""
RUN_SECONDS_MAX: Final = 0.15
"""How long the clients work, at most, before the daemon is killed."""
LONG_RUN_SECONDS_MAX: Final = 2.0
"""In some rounds: long enough for what the daemon does once a second."""
LONG_RUN_SHARE: Final = 0.03
AIMED_SHARE: Final = 0.6
"""Of the rounds, those whose kill is aimed at the kind that was hit least."""
AIM_SECONDS_MAX: Final = 0.5
"""How long a kill waits for what it is aimed at to begin."""
WITHIN_SECONDS_MAX: Final = {"save": 0.02, "delete": 0.01, "checkpoint": 0.002}
"""How long after its beginning the aimed kill falls, at most; other operations are over in a
fraction of a millisecond, so that the kill comes at once."""
MOUNT_KILLED_SHARE: Final = 0.15
"""Of the rounds, those after which the daemon is killed once more while it recovers the store."""
RECOVERY_SECONDS_MAX: Final = 0.03
"""From the lock, in which the store is recovered."""
VERIFY_EVERY: Final = 3
"""Rounds between two runs of `verify`, which also runs at the end."""
DEATH_SECONDS: Final = 1.0
"""How long a killed process takes to be gone, but for the case that `CrashHunt._kill` explains."""
LINE_BYTES_MAX: Final = 8192
"""More than a line of a journal."""


@dataclass
class Round:
    """What one round left: journals, and where they point."""

    number: int
    folder: Path
    writers: list[list[Step]] = field(default_factory=list)
    saver: list[Step] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """How many operations returned before the kill."""
        return sum(step.done_ns is not None for steps in self.writers for step in steps)


@dataclass
class Tally:
    """What hunts have seen.

    Args:
        kills: rounds that show something.
        void_kills: rounds whose kill came before enough was acknowledged.
        acknowledged: operations of writers.
        saves: begun.
        cut: kind of operation -> kills that fell between its beginning and its acknowledgement;
            "mount" among them.
        failures: seeds of the hunts in which a check failed.
    """

    kills: int = 0
    void_kills: int = 0
    acknowledged: int = 0
    saves: int = 0
    cut: dict[str, int] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)

    def count_cut(self, kind: str) -> None:
        """Count a kill that fell in the middle of an operation."""
        self.cut[kind] = self.cut.get(kind, 0) + 1

    def add(self, other: Tally) -> None:
        """Add what another hunt has seen."""
        self.kills += other.kills
        self.void_kills += other.void_kills
        self.acknowledged += other.acknowledged
        self.saves += other.saves
        for kind, count in other.cut.items():
            self.cut[kind] = self.cut.get(kind, 0) + count
        self.failures += other.failures

    def __str__(self) -> str:
        cut = ", ".join(f"{kind} {count}" for kind, count in sorted(self.cut.items()))
        return (
            f"{self.kills} kills ({self.void_kills} more came too early), "
            f"{self.acknowledged} operations, {self.saves} saves; killed within: {cut}"
        )


class CrashHunt:
    """Drives a state through rounds.

    Args:
        state: mounted.
        outside: a folder on the disk for journals.
        seed: decides everything but the scheduling of processes.
        tally: what is seen is added to it.
    """

    def __init__(self, state: ForkedState, outside: Path, seed: int, tally: Tally) -> None:
        self._state = state
        self._outside = outside
        self._marker = marker_of(state.store)
        self._rng = random.Random(seed)
        self._digests: dict[str, str] = {}
        self._previous: tuple[Path, Tree] | None = None
        self._number = 0
        self._tally = tally

    def run_round(self) -> None:
        """Let the clients work, kill the daemon, mount again and check everything."""
        self._number += 1
        work = self._work()
        self._count(work)
        if self._rng.random() < MOUNT_KILLED_SHARE:
            self._mount_and_kill()
        self._state.mount()
        self._check_previous()
        self._check_writers(work)
        self._check_snapshots(work)
        self._check_documents()
        if self._number % VERIFY_EVERY == 0:
            self._verify()
        if self._previous is not None:
            shutil.rmtree(self._previous[0])
        self._previous = work.folder, capture(work.folder)

    def _count(self, work: Round) -> None:
        tally = self._tally
        tally.saves += sum(step.name == "save" for step in work.saver)
        if work.acknowledged < STEPS_MIN:
            tally.void_kills += 1
        else:
            tally.kills += 1
            tally.acknowledged += work.acknowledged
        for steps in (work.saver, *work.writers):
            if steps and steps[-1].done_ns is None:
                tally.count_cut(steps[-1].name)
        if self._marker.exists():
            tally.count_cut("checkpoint")
            self._marker.unlink()

    def _verify(self) -> None:
        """The store keeps every rule of its format, as the daemon sees it."""
        with ControlClient(StoreLayout(self._state.store)) as client:
            problems = client.call("verify", {})["problems"]
        assert problems == [], problems

    def _work(self) -> Round:
        number = self._number
        work = Round(number, self._state.files / f"round-{number}")
        folders = [work.folder / f"writer-{index}" for index in range(WRITERS)]
        for folder in folders:
            folder.mkdir(parents=True)
        daemon = self._state.daemon_pid()
        journals = [
            self._outside / f"{number}-{name}" for name in ("saver", *map(str, range(WRITERS)))
        ]
        clients = self._start_clients(number, folders, journals)
        self._wait_for_the_instant(journals)
        self._kill(daemon)
        codes = [_ended(pid) for pid in clients]
        assert codes == [0] * len(clients), f"a client failed before the kill: {codes}"
        work.saver, *work.writers = map(read_journal, journals)
        for journal in journals:
            journal.unlink()
        return work

    def _start_clients(
        self, number: int, folders: Sequence[Path], journals: Sequence[Path]
    ) -> list[int]:
        seeds = [self._rng.randrange(1 << 32) for _ in journals]
        for journal in journals:
            journal.touch()

        def save_and_delete() -> None:
            existing, prefix = list(self._digests), f"r{number}-"
            writer = JournalWriter(journals[0])
            Saver(self._state.snapshots, writer, seeds[0], existing, prefix).run()

        def write(index: int) -> None:
            writer = JournalWriter(journals[1 + index])
            Writer(folders[index], writer, seeds[1 + index]).run()

        writers = [start(partial(write, index)) for index in range(WRITERS)]
        return [start(save_and_delete), *writers]

    def _wait_for_the_instant(self, journals: Sequence[Path]) -> None:
        """Return at the instant of the kill: any, or within what was hit least so far."""
        end = time.monotonic() + END_SECONDS
        while min(os.stat(journal).st_size for journal in journals[1:]) < 100 * STEPS_MIN:
            assert time.monotonic() < end, "the clients make no progress"
            time.sleep(0.002)
        is_long = self._rng.random() < LONG_RUN_SHARE
        time.sleep(self._rng.random() * (LONG_RUN_SECONDS_MAX if is_long else RUN_SECONDS_MAX))
        if self._rng.random() < AIMED_SHARE:
            cut = self._tally.cut
            kind = min(KINDS, key=lambda kind: (cut.get(kind, 0), self._rng.random()))
            self._wait_for(kind, journals[:1] if kind in OF_SAVER else journals[1:])

    def _wait_for(self, kind: str, journals: Sequence[Path]) -> None:
        """Return when an operation of a kind is under way, or after a while."""
        end = time.monotonic() + AIM_SECONDS_MAX
        while time.monotonic() < end:
            if kind == "checkpoint":
                is_under_way = self._marker.exists()
            else:
                is_under_way = any(_begun(journal) == kind for journal in journals)
            if is_under_way:
                time.sleep(self._rng.random() * WITHIN_SECONDS_MAX.get(kind, 0))
                return
            time.sleep(0.0001)

    def _mount_and_kill(self) -> None:
        """Begin to mount, and kill the daemon while it recovers what the last kill left."""
        pid = self._state.begin_mount()
        layout = StoreLayout(self._state.store)
        end = time.monotonic() + END_SECONDS
        while (owner := read_owner(layout)) is None or owner.pid != pid:
            assert time.monotonic() < end, "the daemon does not take the lock"
        time.sleep(self._rng.random() * RECOVERY_SECONDS_MAX)
        self._kill(pid)
        if self._state.end_mount():
            self._tally.count_cut("mount")
        self._marker.unlink(missing_ok=True)

    def _kill(self, group: int) -> None:
        """Kill a supervisor and its worker at once, and take their mount away.

        A worker that has just asked its own mount for something ends when the mount's connection
        is aborted only, as `statefs mount --repair` does: a system call that waits for an answer
        cannot be killed.
        """
        os.killpg(group, signal.SIGKILL)
        end = time.monotonic() + DEATH_SECONDS
        while (left := _members(group)) and time.monotonic() < end:
            time.sleep(0.001)
        if left:
            self._tally.count_cut("own request")
        detach(self._state.state)
        for pid in left:
            wait_until_gone(pid)

    def _check_previous(self) -> None:
        """What the round before last left in current was not touched by anybody since."""
        if self._previous is not None:
            folder, tree = self._previous
            assert differences(tree, capture(folder)) == []

    def _check_writers(self, work: Round) -> None:
        for index, steps in enumerate(work.writers):
            folder = work.folder / f"writer-{index}"
            found = capture(folder)
            check_end(new_reference(folder), steps, folder, found)

    def _check_snapshots(self, work: Round) -> None:
        """Each listed snapshot is complete and as it was; acknowledged ones are listed."""
        wanted = dict(self._digests)
        maybe: set[str] = set()
        windows: dict[str, Step] = {}
        for step in work.saver:
            name = str(step.arguments[0])
            if step.done_ns is None and step.name != "digest":
                maybe.add(name)
            if step.name == "save":
                windows[name] = step
                wanted[name] = ""
            elif step.name == "digest" and step.answer is not None:
                wanted[name] = step.answer
            elif step.name == "delete" and step.done_ns is not None:
                del wanted[name]
        labels = {snapshot["labels"]["name"] for snapshot in self._index()["snapshots"]}
        assert wanted.keys() - maybe <= labels, "an acknowledged save is lost"
        assert labels <= wanted.keys(), "a deleted snapshot is back"
        self._digests = {name: self._digest_of(name, wanted[name]) for name in sorted(labels)}
        for name in labels & windows.keys():
            self._check_instant(work, self._state.snapshots / name, windows[name])

    def _digest_of(self, name: str, wanted: str) -> str:
        digest = tree_digest(capture(self._state.snapshots / name, leave_out=DOCUMENT))
        assert wanted in ("", digest), f"snapshot {name} has changed"
        return digest

    def _check_instant(self, work: Round, snapshot: Path, save: Step) -> None:
        """A snapshot shows each writer's folder as it was at one instant within the save."""
        inside = work.folder.relative_to(self._state.current)
        for index, steps in enumerate(work.writers):
            past = snapshot / inside / f"writer-{index}"
            reference = new_reference(work.folder / f"writer-{index}")
            check_instant(reference, steps, save, past, capture(past))

    def _check_documents(self) -> None:
        """index.json, the listing and the plain copies in the store name the same snapshots."""
        index = self._index()
        names = {snapshot["name"] for snapshot in index["snapshots"]}
        labels = {snapshot["labels"]["name"] for snapshot in index["snapshots"]}
        listed = set(os.listdir(self._state.snapshots)) - {"latest"}
        assert listed == names | labels
        kept = self._state.store / "index.json"
        shown = self._state.state / "index.json"
        # A snapshot may just be sealed: the file in the store follows a moment later.
        eventually(
            lambda: json.loads(kept.read_text()) == json.loads(shown.read_text()),
            "index.json in the store says what the mount says",
        )
        copies = {path.name for path in (self._state.store / "snapshots").iterdir()}
        assert copies == {f"{name}.json" for name in names}

    def _index(self) -> dict[str, list[dict[str, dict[str, str]]]]:
        index: dict[str, list[dict[str, dict[str, str]]]]
        index = json.loads((self._state.state / "index.json").read_text())
        return index


def _begun(journal: Path) -> str:
    """Return the operation that a client is doing, "" between two."""
    with open(journal, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = os.pread(file.fileno(), LINE_BYTES_MAX, max(0, size - LINE_BYTES_MAX))
    line = end[end.rfind(b"\n", 0, -1) + 1 :]
    if not (line.endswith(b"\n") and line.startswith(b'["I"')):
        return ""
    return str(json.loads(line)[2])


def _members(group: int) -> list[int]:
    """Return the processes of a group that are not dead."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # After the name in brackets, which may hold anything: state, parent, group.
                words = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(words[2]) == group and words[0] != "Z":
                    found.append(int(folder.name))
    return found


def _ended(pid: int) -> int:
    """Return the exit code of a client, which ends by itself when the mount is gone."""
    wait_until_gone(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
