from __future__ import annotations

import datetime
import errno
import os
import subprocess
import time
from functools import partial

import pytest

from tests.harness.mounted_state import MountedState
from tests.harness.system_calls import errno_of
from tests.harness.trees import capture, differences


def names(state: MountedState) -> set[str]:
    """Return what `ls snapshots` shows, without `latest`."""
    return set(os.listdir(state.snapshots)) - {"latest"}


def test_mkdir_takes_a_snapshot(shared_state: MountedState) -> None:
    """The folder exists when mkdir returns, complete and under both its names."""
    (shared_state.files / "f").write_bytes(b"in the snapshot")
    before = capture(shared_state.files)
    (shared_state.snapshots / "by-hand").mkdir()
    assert differences(before, capture(shared_state.snapshots / "by-hand/files")) == []
    listed = shared_state.listing()[-1]
    assert listed["labels"] == {"name": "by-hand"}
    dated = shared_state.snapshots / listed["name"]
    assert (dated / "files/f").read_bytes() == b"in the snapshot"
    assert {"by-hand", listed["name"]} <= names(shared_state)
    # find(1) and others stop looking when they have seen as many folders as there are links.
    assert shared_state.snapshots.stat().st_nlink == 2 + len(names(shared_state))


def test_rmdir_deletes_a_snapshot(shared_state: MountedState) -> None:
    """By its label or by its date, although it is not empty; both names go."""
    for by_label in (True, False):
        before = names(shared_state)
        (shared_state.snapshots / "short").mkdir()
        dated = shared_state.listing()[-1]["name"]
        (shared_state.snapshots / ("short" if by_label else dated)).rmdir()
        assert names(shared_state) == before
        for name in ("short", dated):
            assert errno_of(partial(os.stat, shared_state.snapshots / name)) == errno.ENOENT


def test_a_label_is_taken_once(shared_state: MountedState) -> None:
    """The name of an existing snapshot, a reserved one and a missing one are refused."""
    (shared_state.snapshots / "taken").mkdir()
    dated = shared_state.listing()[-1]["name"]
    for name in ("taken", dated, "latest"):
        assert errno_of(partial(os.mkdir, shared_state.snapshots / name)) == errno.EEXIST
    assert errno_of(partial(os.rmdir, shared_state.snapshots / "missing")) == errno.ENOENT
    assert len([s for s in shared_state.listing() if s["labels"] == {"name": "taken"}]) == 1


@pytest.mark.parametrize("name", ["@-1h", "@now", "2026-03-13T12-00-00Z", "x" * 256])
def test_names_that_cannot_be_labels_are_refused(shared_state: MountedState, name: str) -> None:
    """A name that means a time, and one that is too long, make no snapshot."""
    before = len(shared_state.listing())
    code = errno_of(partial(os.mkdir, shared_state.snapshots / name))
    assert code in (errno.EINVAL, errno.EEXIST, errno.ENAMETOOLONG, errno.EPERM)
    assert len(shared_state.listing()) == before


def test_a_label_is_text(shared_state: MountedState) -> None:
    """Labels stand in JSON, so one that is not UTF-8 is refused; any script is welcome."""
    folder = os.fsencode(shared_state.snapshots)
    assert errno_of(lambda: os.mkdir(folder + b"/\xff\xfe")) in (errno.EINVAL, errno.EILSEQ)
    (shared_state.snapshots / "\u00fcber \u4f60\u597d").mkdir()
    assert "\u00fcber \u4f60\u597d" in names(shared_state)


def test_a_label_may_be_used_again_after_its_deletion(shared_state: MountedState) -> None:
    """The new snapshot of that name shows the new content, not what was cached of the old."""
    for content in (b"first", b"second, longer"):
        (shared_state.files / "again").write_bytes(content)
        (shared_state.snapshots / "reused").mkdir()
        assert (shared_state.snapshots / "reused/files/again").read_bytes() == content
        (shared_state.snapshots / "reused").rmdir()


def test_latest_is_never_stale(shared_state: MountedState) -> None:
    """Right after each save and delete the link leads to the newest that exists."""
    latest = shared_state.snapshots / "latest"
    saved = []
    for number in range(3):
        (shared_state.files / "n").write_text(str(number))
        saved.append(shared_state.save())
        assert os.readlink(latest) == saved[-1]
        assert (latest / "files/n").read_text() == str(number)
    while len(saved) > 1:
        (shared_state.snapshots / saved.pop()).rmdir()
        assert os.readlink(latest) == saved[-1]
        assert (latest / "files/n").read_text() == str(len(saved) - 1)


def test_latest_is_missing_while_there_is_none(own_state: MountedState) -> None:
    """Before the first save and after the last deletion the link does not exist."""
    latest = own_state.snapshots / "latest"
    assert os.listdir(own_state.snapshots) == []
    assert errno_of(lambda: os.lstat(latest)) == errno.ENOENT
    name = own_state.save()
    assert os.readlink(latest) == name
    own_state.delete(name)
    assert errno_of(lambda: os.lstat(latest)) == errno.ENOENT
    assert os.listdir(own_state.snapshots) == []


def test_saves_in_the_same_second_have_different_names(shared_state: MountedState) -> None:
    """Ten saves in a row are ten folders in the order they were taken."""
    for number in range(10):
        (shared_state.snapshots / f"quick-{number}").mkdir()
    listed = shared_state.listing()[-10:]
    assert [s["labels"]["name"] for s in listed] == [f"quick-{number}" for number in range(10)]
    dated = [s["name"] for s in listed]
    assert len(set(dated)) == 10
    assert dated == sorted(dated, key=lambda name: name.removesuffix("Z"))


def moment(text: str) -> datetime.datetime:
    """Return the time of a snapshot's timestamp."""
    return datetime.datetime.fromisoformat(text)


def test_a_time_leads_to_the_snapshot_before_it(own_state: MountedState) -> None:
    """`@TIME` is the newest snapshot not later than TIME; ENOENT before the first."""
    stamps = []
    for number in range(3):
        (own_state.files / "n").write_text(str(number))
        own_state.save()
        stamps.append(moment(own_state.listing()[-1]["timestamp"]))
    one = datetime.timedelta(microseconds=1)

    def at(when: datetime.datetime) -> str:
        text = when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return (own_state.snapshots / f"@{text}" / "files/n").read_text()

    assert [at(stamp) for stamp in stamps] == ["0", "1", "2"]
    assert [at(stamps[1] - one), at(stamps[2] - one)] == ["0", "1"]
    assert at(stamps[2] + datetime.timedelta(days=400)) == "2"
    assert errno_of(lambda: at(stamps[0] - one)) == errno.ENOENT
    assert not [name for name in os.listdir(own_state.snapshots) if name.startswith("@")]


@pytest.mark.parametrize("word", ["@-0s", "@-2h", "@-1d", "@2020-01-01", "@2099-12-31T23:59"])
def test_relative_and_short_times(shared_state: MountedState, word: str) -> None:
    """Ages and dates without a time resolve, or name nothing when no snapshot is that old."""
    name = shared_state.save()
    path = shared_state.snapshots / word
    if word in ("@-0s", "@2099-12-31T23:59"):
        assert os.path.realpath(path) == str(shared_state.snapshots / name)
        assert os.listdir(path / "files") == os.listdir(shared_state.snapshots / name / "files")
    else:
        assert errno_of(lambda: os.stat(path)) == errno.ENOENT


def test_a_relative_time_moves_on(own_state: MountedState) -> None:
    """`@-1s` asked for again later is the snapshot that has become old enough."""
    name = own_state.save()
    path = own_state.snapshots / "@-1s"
    deadline = time.monotonic() + 30
    while errno_of(lambda: os.stat(path)) == errno.ENOENT:
        assert time.monotonic() < deadline, "a missing name was remembered for too long"
        time.sleep(0.05)
    assert os.path.realpath(path) == str(own_state.snapshots / name)
    stamp = moment(own_state.listing()[0]["timestamp"])
    assert datetime.datetime.now(datetime.UTC) - stamp >= datetime.timedelta(seconds=1)


@pytest.mark.parametrize("word", ["@", "@yesterday", "@-2", "@2026-13-01", "@-2h/"])
def test_words_that_are_no_time(shared_state: MountedState, word: str) -> None:
    """They are missing names, nothing worse."""
    path = f"{shared_state.snapshots}/{word}"
    assert errno_of(lambda: os.stat(path)) in (errno.ENOENT, errno.EINVAL)


def test_a_shell_works_with_snapshots(own_state: MountedState) -> None:
    """Cp -a, diff -r and find read a snapshot as they read any folder."""
    (own_state.files / "a").write_text("one\n")
    own_state.save()
    (own_state.files / "a").write_text("two\n")
    script = (
        "set -e; cp -a snapshots/latest/files current/files/restored;"
        "diff -r snapshots/latest/files current/files/restored;"
        "! diff -q snapshots/latest/files/a current/files/a >/dev/null;"
        "find snapshots -name a | wc -l"
    )
    done = subprocess.run(
        ["sh", "-c", script], cwd=own_state.state, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "1")
