from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.dying_worker import DyingState
from tests.harness.mounted_state import (
    MountedState,
    eventually,
    mounted_as,
    several_users,
    wait_until_gone,
)
from tests.harness.trees import capture, differences

DIED = "worker [0-9]+ died"
"""What the log says of a death, as it should."""
RENAME_EXCHANGE = 2
AT_FDCWD = -100

Step = Callable[[Path], object]


@pytest.fixture(scope="module")
def dying(wide_folder: Path) -> Iterator[DyingState]:
    """A state whose workers die when told to."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    made = DyingState(folder / "state", folder / "state.store", several_users(), DIED)
    with mounted_as(made):
        yield made


@pytest.fixture
def folder(dying: DyingState) -> Path:
    """A folder of the test's own with a file, a folder and two attributes in it."""
    made = Path(tempfile.mkdtemp(dir=dying.files))
    (made / "file").write_bytes(b"one")
    (made / "other").write_bytes(b"two")
    (made / "empty").mkdir()
    os.setxattr(made / "file", "user.there", b"1")
    return made


def exchange(folder: Path) -> None:
    """Have two files change places."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(folder / "file"), os.fsencode(folder / "other"))
    done = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    assert done == 0, os.strerror(ctypes.get_errno())


def append(folder: Path) -> None:
    """Add to a file."""
    with open(folder / "file", "ab", buffering=0) as file:
        assert file.write(b"+") == 1


def create_anew(folder: Path) -> None:
    """Make a file that must not be there, and write through what was opened."""
    fd = os.open(folder / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, b"new")
    os.close(fd)


def shorten(folder: Path) -> None:
    """Cut a file."""
    os.truncate(folder / "file", 1)


def overwrite(folder: Path) -> None:
    """Open a file so that it is empty, and fill it."""
    (folder / "file").write_bytes(b"new")


STEPS: dict[str, tuple[str, Step]] = {
    "create": ("create", create_anew),
    "mkdir": ("mkdir", lambda folder: os.mkdir(folder / "new")),
    "mknod": ("mknod", lambda folder: os.mkfifo(folder / "new")),
    "symlink": ("symlink", lambda folder: os.symlink("file", folder / "new")),
    "link": ("link", lambda folder: os.link(folder / "file", folder / "new")),
    "unlink": ("unlink", lambda folder: os.unlink(folder / "file")),
    "rmdir": ("rmdir", lambda folder: os.rmdir(folder / "empty")),
    "rename": ("rename", lambda folder: os.rename(folder / "file", folder / "new")),
    "rename over": ("rename", lambda folder: os.rename(folder / "file", folder / "other")),
    "rename exchange": ("rename", exchange),
    "chmod": ("setattr", lambda folder: os.chmod(folder / "file", 0o600)),
    "utime": ("setattr", lambda folder: os.utime(folder / "file", ns=(1, 2))),
    "truncate": ("setattr", shorten),
    "append": ("write", append),
    "open to truncate": ("open", overwrite),
    "write": ("write", overwrite),
    "set attribute": (
        "setxattr",
        lambda folder: os.setxattr(folder / "file", "user.new", b"2", os.XATTR_CREATE),
    ),
    "remove attribute": (
        "removexattr",
        lambda folder: os.removexattr(folder / "file", "user.there"),
    ),
}


def state_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return what a step can change in a folder: names, attributes, content."""
    found: dict[str, tuple[Any, ...]] = {".": (os.lstat(folder).st_nlink,)}
    for path in sorted(folder.iterdir()):
        status = os.lstat(path)
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        names = sorted(os.listxattr(path, follow_symlinks=False))
        times = status.st_mtime_ns if status.st_mtime_ns < 1000 else None
        found[path.name] = (status.st_mode, status.st_nlink, status.st_size, content, names, times)
    return found


@pytest.mark.parametrize("name", STEPS)
def test_a_change_that_was_not_answered_is_made_once(
    dying: DyingState, folder: Path, wide_folder: Path, name: str
) -> None:
    """The worker dies between commit and reply; the program sees success and what it asked for."""
    handler, step = STEPS[name]
    twin = Path(tempfile.mkdtemp(dir=wide_folder))
    subprocess.run(["cp", "-a", f"{folder}/.", twin], check=True)
    restarts = dying.status()["restarts"]
    dying.let_die_after(handler)
    step(folder)
    assert dying.is_obeyed(), f"{handler} was not asked for"
    step(twin)
    assert state_of(folder) == state_of(twin)
    assert dying.status()["restarts"] == restarts + 1


def test_a_snapshot_that_was_not_answered_is_taken_once(dying: DyingState) -> None:
    """Mkdir and rmdir in snapshots/, which wait for the disk."""
    dying.let_die_after("mkdir")
    (dying.snapshots / "label").mkdir()
    assert dying.is_obeyed()
    assert [each["labels"] for each in dying.listing()] == [{"name": "label"}]
    dying.let_die_after("rmdir")
    (dying.snapshots / "label").rmdir()
    assert dying.is_obeyed()
    assert dying.listing() == []


def test_a_worker_can_die_while_the_kernel_looks_again(dying: DyingState) -> None:
    """Who asks for that after a restore goes on with the successor: nothing cached stays."""
    files = [dying.files / name for name in ("a", "b", "c")]
    for path in files:
        path.write_text("one")
    name = dying.save()
    for path in files:
        with path.open("r+") as file:
            file.write("two")
        assert path.read_text() == "two"
    (dying.files / "late").write_text("not in the snapshot")
    dead = dying.worker_pid()
    dying.let_die_after("open")
    done = dying.run("restore", dying.state, name)
    assert dying.is_obeyed()
    assert done.returncode == 16, done.stderr
    wait_until_gone(dead)
    eventually(lambda: {path.read_text() for path in files} == {"one"}, "the kernel looks again")
    assert not (dying.files / "late").exists()
    dying.delete(name)
    for listed in dying.listing():
        dying.delete(listed["name"])


def test_reading_goes_on(dying: DyingState, folder: Path) -> None:
    """A read and a lookup that were not answered are asked again."""
    content = os.urandom(3_000_000)
    (folder / "file").write_bytes(content)
    fd = os.open(folder / "file", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    dying.let_die_after("read")
    assert b"".join(iter(lambda: os.read(fd, 100_000), b"")) == content
    assert dying.is_obeyed()
    os.close(fd)
    dying.let_die_after("lookup")
    assert not (folder / "nothing").exists()
    assert dying.is_obeyed()


def kill_worker(state: MountedState) -> None:
    """Kill the worker, and return when another one serves."""
    status = state.status()
    os.kill(status["worker_pid"], signal.SIGKILL)
    eventually(lambda: state.status()["restarts"] > status["restarts"], "another worker serves")


def test_what_programs_hold_stays_valid(own_state: MountedState) -> None:
    """Open files, unlinked ones too, working directories, locks, memory maps, listings."""
    own_state.expected_log = DIED
    files = own_state.files
    (files / "deep").mkdir()
    for number in range(300):
        (files / "deep" / f"name-{number}").touch()
    with (
        open(files / "kept", "w+b", buffering=0) as kept,
        open(files / "gone", "w+b", buffering=0) as gone,
        open(files / "mapped", "w+b", buffering=0) as mapped,
        os.scandir(files / "deep") as listing,
        subprocess.Popen(
            ["sh", "-c", "read word; echo $word > here; cat here"],
            cwd=files / "deep",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as stander,
    ):
        kept.write(b"before ")
        gone.write(b"x" * 20_000)
        os.unlink(files / "gone")
        mapped.truncate(4096)
        memory = mmap.mmap(mapped.fileno(), 4096)
        memory[:5] = b"early"
        fcntl.flock(kept, fcntl.LOCK_EX)
        fcntl.lockf(mapped, fcntl.LOCK_EX, 10, 5)
        first = next(listing).name
        kill_worker(own_state)
        kept.write(b"after")
        gone.write(b"y")
        memory[5:9] = b"late"
        assert len({first, *(entry.name for entry in listing)}) == 300
        assert os.pread(gone.fileno(), 30_000, 19_999) == b"xy"
        assert os.fstat(gone.fileno()).st_nlink == 0
        assert stander.communicate("found\n")[0] == "found\n"
        with open(files / "kept", "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked_for_others(files / "mapped")
        memory.flush()
        memory.close()
    assert (files / "kept").read_bytes() == b"before after"
    assert (files / "mapped").read_bytes()[:9] == b"earlylate"
    own_state.verify_mounted()
    orphans = "SELECT count(*) FROM orphans"
    eventually(lambda: counted(own_state, orphans) == 0, "the kernel has dropped the unlinked file")


def is_locked_for_others(path: Path) -> bool:
    """Return whether another process is refused a lock on the tenth byte."""
    program = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 9)\n"
        "    except OSError: print('locked')\n"
    )
    done = subprocess.run(
        ["python3", "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout == "locked\n"


def counted(state: MountedState, query: str) -> int:
    """Return what a query on the database of an unmounted copy of a store counts."""
    copy = Path(tempfile.mkdtemp())
    try:
        for name in ("meta.db", "meta.db-wal"):
            subprocess.run(["cp", state.store / name, copy / name], check=True)
        done = subprocess.run(
            ["sqlite3", copy / "meta.db", query], capture_output=True, text=True, check=True
        )
        return int(done.stdout)
    finally:
        subprocess.run(["rm", "-r", copy], check=True)


def test_a_busy_mount_goes_through_many_deaths(own_state: MountedState) -> None:
    """Programs write, rename and remove while workers die again and again; no call fails."""
    own_state.expected_log = DIED
    failures: list[BaseException] = []
    stop = threading.Event()

    def work(folder: Path) -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                path = folder / f"{number}"
                path.write_bytes(b"%d" % number * (number % 5000))
                path.rename(folder / f"{number}.done")
                if number % 3 == 0:
                    (folder / f"{number}.done").unlink()
                os.mkdir(folder / "d")
                os.rmdir(folder / "d")
            (folder / "count").write_text(str(number))
        except BaseException as error:
            failures.append(error)

    folders = [own_state.files / str(index) for index in range(3)]
    for folder in folders:
        folder.mkdir()
    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for _ in range(6):
        kill_worker(own_state)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    for folder in folders:
        count = int((folder / "count").read_text())
        left = {f"{number}.done" for number in range(1, count + 1) if number % 3}
        assert {path.name for path in folder.iterdir()} == left | {"count"}
        for number in range(1, count + 1):
            if number % 3:
                expected = b"%d" % number * (number % 5000)
                assert (folder / f"{number}.done").read_bytes() == expected
    before = capture(own_state.current)
    own_state.remount()
    assert differences(before, capture(own_state.current)) == []


def test_a_worker_without_a_supervisor_serves_on(own_state: MountedState) -> None:
    """And says so; the mount can be unmounted as ever."""
    own_state.expected_log = "the supervisor [0-9]+ is gone"
    os.kill(own_state.daemon_pid(), signal.SIGKILL)
    eventually(lambda: own_state.status()["supervisor_pid"] is None, "the worker notices")
    (own_state.files / "a").write_text("still")
    told = "its supervisor is gone, and the mount ends with its worker: unmount and mount again"
    assert told in own_state.command("status", own_state.state)
    done = own_state.run("health", own_state.state)
    assert done.returncode == 28 and told in done.stdout
    done = own_state.run("mount", "--repair", own_state.state)
    assert (done.returncode, done.stderr) == (0, f"statefs: warning: {own_state.state}: {told}\n")
    worker = own_state.worker_pid()
    own_state.command("umount", own_state.state)
    wait_until_gone(worker)
    own_state.mount()
    assert (own_state.files / "a").read_text() == "still"
