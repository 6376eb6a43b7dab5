"""Random operations leave the same trees on statefs as in the reference and on a plain folder.

By default a fixed set of examples runs, and one that fails is shown as it is;
STATEFS_MODEL_EXAMPLES=N runs N new ones, without a time limit, and makes one that fails small.
"""

from __future__ import annotations

import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.crash.fork_server import ForkedState, ForkServer
from tests.harness.mounted_state import MountedState, aborted_after, mounted_as, open_folder
from tests.harness.system_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, errno_of
from tests.harness.trees import Tree, differences
from tests.model.reference import Node, ReferenceTree
from tests.model.targets import FolderTarget, Keeper, MemoryKeeper, OpenFile, StateKeeper, Target

EXAMPLES_VARIABLE: Final = "STATEFS_MODEL_EXAMPLES"
EXAMPLES: Final = 40
STEPS: Final = 50
"""Operations of one example; failures found with more are rarely understood."""
HANDLES_MAX: Final = 3
SNAPSHOTS_MAX: Final = 5
STOPS_MAX: Final = 2
"""Stops in one example: each takes about a second."""
SECONDS_MAX: Final = 0 if EXAMPLES_VARIABLE in os.environ else 300
"""The test's limit; none where the environment asks for more examples than the usual."""

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff", b"n" * 255])
FOLDERS = st.integers(0, 5)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o700])
FOLDER_MODES = st.sampled_from([0o700, 0o755, 0o2775, 0o1777])
SIZES = st.sampled_from([0, 1, 3, 100, 4095, 4096, 5_000, 17_000, 66_000, 140_000])
OFFSETS = st.sampled_from([0, 1, 99, 4_000, 4_096, 16_383, 65_536, 100_000])
SEEDS = st.integers(0, 255)
ATTRIBUTES = st.sampled_from(["user.a", "user.b"])
VALUES = st.sampled_from([b"", b"short", b"v" * 2_000])
TIMES = st.integers(0, 4 * 10**18)


def data_of(seed: int, size: int) -> bytes:
    """Return bytes in which every place can be told from its neighbours."""
    return random.Random(seed).randbytes(size)


class RandomOperations(RuleBasedStateMachine):
    """One example: a folder, its reference, and the snapshots taken of both.

    Args:
        make: returns a new empty target and what keeps its snapshots.
    """

    def __init__(self, make: Callable[[], tuple[Path, Target, Keeper]]) -> None:
        super().__init__()
        self._make = make
        self.snapshots: dict[str, tuple[Tree, Tree]] = {}
        self.handles: list[tuple[OpenFile, Node]] = []
        self.stops = 0

    @initialize()
    def start(self) -> None:
        """Begin with an empty folder."""
        root, self.target, self.keeper = self._make()
        status = os.stat(root)
        umask = os.umask(0o022)
        os.umask(umask)
        self.reference = ReferenceTree(
            stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, umask
        )
        # Without anything to begin with, most operations would fail.
        self.both("mkdir", b"c", 0o755)
        for path, size in ((b"a", 20_000), (b"c/b", 10)):
            self.both("create", path, 0o644)
            self.both("write", path, 0, data_of(size, size))

    def path(self, folder: int, name: bytes) -> bytes:
        """Return a path in one of the directories that exist."""
        folders = self.reference.directories()
        chosen = folders[folder % len(folders)]
        return name if chosen == b"." else chosen + b"/" + name

    def both(self, operation: str, *arguments: Any) -> None:
        """Do an operation on both sides; they must succeed or fail in the same way."""
        wanted = errno_of(lambda: getattr(self.reference, operation)(*arguments))
        got = errno_of(lambda: getattr(self.target, operation)(*arguments))
        assert got == wanted, f"{operation}{arguments!r:.200}: expected {wanted}, got {got}"

    @rule(folder=FOLDERS, name=NAMES, mode=MODES)
    def create(self, folder: int, name: bytes, mode: int) -> None:
        """Make a file."""
        self.both("create", self.path(folder, name), mode)

    @rule(folder=FOLDERS, name=NAMES, mode=FOLDER_MODES)
    def mkdir(self, folder: int, name: bytes, mode: int) -> None:
        """Make a directory."""
        self.both("mkdir", self.path(folder, name), mode & 0o1777)

    @rule(folder=FOLDERS, name=NAMES, mode=MODES)
    def mkfifo(self, folder: int, name: bytes, mode: int) -> None:
        """Make a pipe."""
        self.both("mkfifo", self.path(folder, name), mode)

    @rule(folder=FOLDERS, name=NAMES, seed=SEEDS)
    def symlink(self, folder: int, name: bytes, seed: int) -> None:
        """Make a link that leads nowhere."""
        self.both("symlink", b"nowhere/%d" % seed, self.path(folder, name))

    @rule(folder=FOLDERS, name=NAMES, to_folder=FOLDERS, to_name=NAMES)
    def link(self, folder: int, name: bytes, to_folder: int, to_name: bytes) -> None:
        """Make a hard link."""
        self.both("link", self.path(folder, name), self.path(to_folder, to_name))

    @rule(folder=FOLDERS, name=NAMES)
    def unlink(self, folder: int, name: bytes) -> None:
        """Remove a name."""
        self.both("unlink", self.path(folder, name))

    @rule(folder=FOLDERS, name=NAMES)
    def rmdir(self, folder: int, name: bytes) -> None:
        """Remove a directory."""
        self.both("rmdir", self.path(folder, name))

    @rule(
        folder=FOLDERS,
        name=NAMES,
        to_folder=FOLDERS,
        to_name=NAMES,
        flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, folder: int, name: bytes, to_folder: int, to_name: bytes, flags: int) -> None:
        """Move, replace or exchange."""
        self.both("rename", self.path(folder, name), self.path(to_folder, to_name), flags)

    @rule(folder=FOLDERS, name=NAMES, offset=OFFSETS, size=SIZES, seed=SEEDS)
    def write(self, folder: int, name: bytes, offset: int, size: int, seed: int) -> None:
        """Write somewhere."""
        self.both("write", self.path(folder, name), offset, data_of(seed, size + 1))

    @rule(folder=FOLDERS, name=NAMES, size=SIZES, seed=SEEDS)
    def append(self, folder: int, name: bytes, size: int, seed: int) -> None:
        """Write at the end."""
        self.both("append", self.path(folder, name), data_of(seed, size + 1))

    @rule(folder=FOLDERS, name=NAMES, size=SIZES)
    def truncate(self, folder: int, name: bytes, size: int) -> None:
        """Cut or lengthen."""
        self.both("truncate", self.path(folder, name), size)

    @rule(folder=FOLDERS, name=NAMES, offset=OFFSETS, size=SIZES, seed=SEEDS)
    def map_write(self, folder: int, name: bytes, offset: int, size: int, seed: int) -> None:
        """Store into a shared map."""
        self.both("map_write", self.path(folder, name), offset, data_of(seed, size + 1))

    @rule(folder=FOLDERS, name=NAMES, mode=MODES)
    def chmod(self, folder: int, name: bytes, mode: int) -> None:
        """Change permission bits; what is a directory stays one its owner may use."""
        self.both("chmod", self.path(folder, name), mode | stat.S_IXUSR)

    @rule(folder=FOLDERS, mode=FOLDER_MODES)
    def chmod_folder(self, folder: int, mode: int) -> None:
        """Change permission bits of a directory, with setgid and sticky."""
        folders = self.reference.directories()
        self.both("chmod", folders[folder % len(folders)], mode)

    @rule(folder=FOLDERS, name=NAMES, attribute=ATTRIBUTES, value=VALUES)
    def setxattr(self, folder: int, name: bytes, attribute: str, value: bytes) -> None:
        """Set an attribute."""
        self.both("setxattr", self.path(folder, name), attribute, value)

    @rule(folder=FOLDERS, name=NAMES, attribute=ATTRIBUTES)
    def removexattr(self, folder: int, name: bytes, attribute: str) -> None:
        """Remove an attribute."""
        self.both("removexattr", self.path(folder, name), attribute)

    @rule(folder=FOLDERS, name=NAMES, mtime_ns=TIMES)
    def utime(self, folder: int, name: bytes, mtime_ns: int) -> None:
        """Set a time."""
        self.both("utime", self.path(folder, name), mtime_ns)

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(folder=FOLDERS, name=NAMES)
    def open(self, folder: int, name: bytes) -> None:
        """Keep a file open, whatever happens to its name."""
        path = self.path(folder, name)
        wanted = errno_of(lambda: self.reference.node(path).must_be_file())
        if wanted:
            assert errno_of(lambda: self.target.open(path)) == wanted
        else:
            self.handles.append((self.target.open(path), self.reference.node(path)))

    @precondition(lambda self: self.handles)
    @rule(which=FOLDERS, offset=OFFSETS, size=SIZES, seed=SEEDS)
    def write_open(self, which: int, offset: int, size: int, seed: int) -> None:
        """Write through a descriptor."""
        for file in self.handles[which % len(self.handles)]:
            file.write(offset, data_of(seed, size + 1))

    @precondition(lambda self: self.handles)
    @rule(which=FOLDERS, size=SIZES)
    def truncate_open(self, which: int, size: int) -> None:
        """Cut or lengthen through a descriptor."""
        for file in self.handles[which % len(self.handles)]:
            file.truncate(size)

    @precondition(lambda self: self.handles)
    @rule(which=FOLDERS)
    def close(self, which: int) -> None:
        """Close a file after a last look at it."""
        file, node = self.handles.pop(which % len(self.handles))
        self.compare_open(file, node)
        file.close()

    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS_MAX)
    @rule()
    def save(self) -> None:
        """Take a snapshot; it has the times that current has."""
        name = self.keeper.save()
        self.snapshots[name] = self.reference.capture(), self.target.capture()

    @precondition(lambda self: self.snapshots)
    @rule(which=FOLDERS)
    def delete(self, which: int) -> None:
        """Delete a snapshot."""
        name = list(self.snapshots)[which % len(self.snapshots)]
        self.keeper.delete(name)
        del self.snapshots[name]

    @rule(
        folder=FOLDERS,
        name=NAMES,
        writes=st.lists(st.tuples(OFFSETS, SIZES, SEEDS), min_size=2, max_size=4),
        which=FOLDERS,
    )
    def write_between_saves(
        self, folder: int, name: bytes, writes: list[tuple[int, int, int]], which: int
    ) -> None:
        """Give one file a past of several epochs, some of which go again."""
        path = self.path(folder, name)
        for offset, size, seed in writes:
            self.both("write", path, offset, data_of(seed, size + 1))
            if len(self.snapshots) >= SNAPSHOTS_MAX:
                self.delete(which)
            self.save()
        self.delete(which)

    @precondition(lambda self: self.stops < STOPS_MAX)
    @rule(killed=st.booleans())
    def stop_and_start(self, killed: bool) -> None:
        """Stop the daemon, in the ordinary way or by SIGKILL, and start it again."""
        self.stops += 1
        while self.handles:
            self.close(0)
        if killed:
            self.keeper.crash()
        else:
            self.keeper.remount()
        self.compare()

    @rule()
    def compare(self) -> None:
        """Current, every snapshot and every open file are as the reference says."""
        assert differences(self.reference.capture(), self.target.capture()) == []
        for name, trees in self.snapshots.items():
            found = self.keeper.capture(name)
            for wanted in trees:
                assert differences(wanted, found) == [], name
        for file, node in self.handles:
            self.compare_open(file, node)

    def compare_open(self, file: OpenFile, node: Node) -> None:
        """An open file has the bytes and the names it should have."""
        assert file.content() == bytes(node.content)
        assert file.links() == self.reference.links(node)

    def teardown(self) -> None:
        """Compare a last time; the next example begins without snapshots."""
        if not hasattr(self, "target"):
            return
        try:
            self.compare()
        finally:
            for file, _ in self.handles:
                file.close()
            for name in self.snapshots:
                self.keeper.delete(name)


def run_examples(make: Callable[[], tuple[Path, Target, Keeper]]) -> None:
    """Run the examples that the environment asks for."""
    wanted = os.environ.get(EXAMPLES_VARIABLE)
    run_state_machine_as_test(
        # It takes any factory of machines, but says that it wants a class.
        lambda: RandomOperations(make),  # type: ignore[arg-type]
        settings=settings(
            max_examples=int(wanted) if wanted else EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not wanted,
            phases=[Phase.generate, Phase.shrink] if wanted else [Phase.generate],
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def model_state() -> Iterator[MountedState]:
    """A mounted state for all examples of a test; each works in a folder of its own."""
    with (
        open_folder("model") as folder,
        aborted_after(SECONDS_MAX, folder),
        ForkServer() as server,  # most of the time would go into starting daemons
    ):
        made = ForkedState(server, folder / "state", folder / "state.store")
        with mounted_as(made):
            yield made


def test_the_reference_is_what_the_disk_does(tmp_path: Path) -> None:
    """A plain folder and the reference agree, so that the reference can be trusted."""

    def make() -> tuple[Path, Target, Keeper]:
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        target = FolderTarget(root)
        return root, target, MemoryKeeper(target)

    run_examples(make)


@pytest.mark.slow
@pytest.mark.mounted
@pytest.mark.timeout(SECONDS_MAX)
def test_statefs_is_what_the_reference_says(model_state: MountedState) -> None:
    """Current and every snapshot, through saves, deletions, remounts and kills."""

    def make() -> tuple[Path, Target, Keeper]:
        root = Path(tempfile.mkdtemp(dir=model_state.files))
        return root, FolderTarget(root), StateKeeper(model_state, root)

    run_examples(make)
