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
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from statefs.layout import StoreLayout
from statefs.locking import read_owner
from tests.crash.clients import Saver, Writer, new_reference
from tests.crash.journal import JournalWriter, Step, read_journal
from tests.crash.outcomes import check_end, check_instant
from tests.harness.mounted_state import END_SECONDS, MountedState, detach, wait_until_gone
from tests.harness.processes import start
from tests.harness.trees import Tree, capture, differences, tree_digest

WRITERS: Final = 2
STEPS_MIN: Final = 20
"""A round in which less was acknowledged shows nothing and does not count."""
RUN_SECONDS_MAX: Final = 0.6
"""How long the clients work, at most, before the daemon is killed."""
LONG_RUN_SECONDS_MAX: Final = 3.0
"""In some rounds: long enough for a checkpoint, which the daemon looks for once a second."""
LONG_RUN_SHARE: Final = 0.1
MOUNT_KILLED_SHARE: Final = 0.2
"""Of the rounds, those after which the daemon is killed once more while it recovers the store."""
RECOVERY_SECONDS_MAX: Final = 0.05
"""Between the lock and the mount; most of a mount's time goes by before the lock."""
AIM_SECONDS_MAX: Final = 0.02
"""How long after the beginning of a save or a deletion the daemon is killed, when one is aimed at;
a save takes a few milliseconds."""
VERIFY_EVERY: Final = 5
"""Rounds between two runs of `statefs verify`, which also runs at the end."""


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


class CrashHunt:
    """Drives a state through rounds.

    Args:
        state: mounted.
        outside: a folder on the disk for journals.
        seed: decides everything but the scheduling of processes.
    """

    def __init__(self, state: MountedState, outside: Path, seed: int) -> None:
        self._state = state
        self._outside = outside
        self._rng = random.Random(seed)
        self._digests: dict[str, str] = {}
        self._previous: tuple[Path, Tree] | None = None
        self.rounds = 0
        self.void_rounds = 0
        self.acknowledged = 0
        self.saves = 0
        self.saves_cut = 0
        self.deletes_cut = 0
        self.mounts_cut = 0

    def run_round(self) -> None:
        """Let the clients work, kill the daemon, mount again and check everything."""
        work = self._work()
        if work.acknowledged < STEPS_MIN:
            self.void_rounds += 1
        else:
            self.rounds += 1
            self.acknowledged += work.acknowledged
        if self._rng.random() < MOUNT_KILLED_SHARE:
            self._mount_and_kill()
        self._state.mount()
        self._check_previous()
        self._check_writers(work)
        self._check_snapshots(work)
        self._check_documents()
        if (self.rounds + self.void_rounds) % VERIFY_EVERY == 0:
            self._state.verify_mounted()
        if self._previous is not None:
            shutil.rmtree(self._previous[0])
        self._previous = work.folder, capture(work.folder)

    def _work(self) -> Round:
        number = self.rounds + self.void_rounds
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
        os.kill(daemon, signal.SIGKILL)
        wait_until_gone(daemon)
        detach(self._state.state)
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
        """Return at the instant of the kill: any, or within a save, or within a deletion."""
        end = time.monotonic() + END_SECONDS
        while min(os.stat(journal).st_size for journal in journals[1:]) < 100 * STEPS_MIN:
            assert time.monotonic() < end, "the clients make no progress"
            time.sleep(0.005)
        is_long = self._rng.random() < LONG_RUN_SHARE
        time.sleep(self._rng.random() * (LONG_RUN_SECONDS_MAX if is_long else RUN_SECONDS_MAX))
        aim = self._rng.choice((None, b'"save"', b'"delete"'))
        end = time.monotonic() + RUN_SECONDS_MAX
        while aim is not None and time.monotonic() < end:
            if aim in journals[0].read_bytes()[-200:].splitlines()[-1]:
                time.sleep(self._rng.random() * AIM_SECONDS_MAX)
                return

    def _mount_and_kill(self) -> None:
        """Begin to mount, and kill the daemon while it recovers what the last kill left."""
        with self._state.mounting() as command:
            pid = self._pid_of_lock(command)
            if pid:
                time.sleep(self._rng.random() * RECOVERY_SECONDS_MAX)
                os.kill(pid, signal.SIGKILL)
                wait_until_gone(pid)
                self.mounts_cut += command.wait(END_SECONDS) != 0
        detach(self._state.state)

    def _pid_of_lock(self, command: subprocess.Popen[bytes]) -> int:
        """Return the daemon that holds the store, as soon as there is one; 0 when there is none."""
        while command.poll() is None:
            owner = read_owner(StoreLayout(self._state.store))
            if owner is not None and owner.alive and owner.role == "daemon":
                return owner.pid
        return 0

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
                self.saves_cut += step.name == "save"
                self.deletes_cut += step.name == "delete"
            if step.name == "save":
                windows[name] = step
                self.saves += 1
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
        digest = tree_digest(capture(self._state.snapshots / name))
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
        assert json.loads((self._state.store / "index.json").read_text()) == index
        copies = {path.name for path in (self._state.store / "snapshots").iterdir()}
        assert copies == {f"{name}.json" for name in names}

    def _index(self) -> dict[str, list[dict[str, dict[str, str]]]]:
        index: dict[str, list[dict[str, dict[str, str]]]]
        index = json.loads((self._state.state / "index.json").read_text())
        return index


def _ended(pid: int) -> int:
    """Return the exit code of a client, which ends by itself when the mount is gone."""
    wait_until_gone(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
