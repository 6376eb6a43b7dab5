from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.harness.system_calls import UTIME_NOW, UTIME_OMIT, utimensat

SECOND_NS = 10**9
LONG_AGO_NS = -(10**17) + 123_456_789
"""In 1966: times before 1970 are negative."""
FAR_AWAY_NS = 4_102_444_800 * SECOND_NS + 1
"""In 2100: beyond 31 bits of seconds."""


@pytest.mark.parametrize("mtime_ns", [0, 1, 1_700_000_000_123_456_789, LONG_AGO_NS, FAR_AWAY_NS])
def test_times_keep_their_nanoseconds(place: Path, mtime_ns: int) -> None:
    """Both times of a file and of a directory are what they were set to."""
    (place / "f").touch()
    (place / "d").mkdir()
    for name in ("f", "d"):
        os.utime(place / name, ns=(mtime_ns + 7, mtime_ns))
        status = os.stat(place / name)
        assert (status.st_atime_ns, status.st_mtime_ns) == (mtime_ns + 7, mtime_ns)


def test_times_beyond_every_limit_are_cut(place: Path) -> None:
    """The year 5138 becomes the last moment the filesystem knows, as on ext4; nothing breaks."""
    (place / "f").touch()
    utimensat(place / "f", (10**11, 0), (10**11, 0))
    assert 2**31 < os.stat(place / "f").st_mtime <= 10**11
    utimensat(place / "f", (-(10**11), 0), (-(10**11), 0))
    assert -(10**11) <= os.stat(place / "f").st_mtime < 0


def test_each_time_may_be_left_or_be_now(place: Path) -> None:
    """UTIME_OMIT keeps a time, UTIME_NOW takes the clock's."""
    (place / "f").touch()
    utimensat(place / "f", (10, 1), (20, 2))
    before = time.time_ns()
    utimensat(place / "f", (0, UTIME_OMIT), (0, UTIME_NOW))
    status = os.stat(place / "f")
    assert status.st_atime_ns == 10 * SECOND_NS + 1
    assert before - SECOND_NS < status.st_mtime_ns < time.time_ns() + SECOND_NS
    utimensat(place / "f", (30, 3), (0, UTIME_OMIT))
    again = os.stat(place / "f")
    assert (again.st_atime_ns, again.st_mtime_ns) == (30 * SECOND_NS + 3, status.st_mtime_ns)


def test_omitting_both_times_changes_nothing(place: Path) -> None:
    """Not even ctime moves. Source: utimensat(2)."""
    (place / "f").touch()
    before = os.stat(place / "f")
    utimensat(place / "f", (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert os.stat(place / "f").st_ctime_ns == before.st_ctime_ns


def test_setting_times_moves_ctime(place: Path) -> None:
    """Change of times is a change of attributes."""
    (place / "f").touch()
    before = os.stat(place / "f")
    os.utime(place / "f", ns=(1, 1))
    assert os.stat(place / "f").st_ctime_ns > before.st_ctime_ns


def test_symbolic_links_have_times_of_their_own(place: Path) -> None:
    """The link's times change, its target's do not."""
    (place / "f").touch()
    (place / "l").symlink_to("f")
    os.utime(place / "f", ns=(1, 1))
    os.utime(place / "l", ns=(2, 3), follow_symlinks=False)
    assert os.lstat(place / "l").st_mtime_ns == 3
    assert os.stat(place / "f").st_mtime_ns == 1


@pytest.mark.parametrize("change", ["create", "mkdir", "unlink", "rmdir", "symlink"])
def test_a_directory_changes_when_a_name_comes_or_goes(place: Path, change: str) -> None:
    """Mtime and ctime of the parent move."""
    (place / "d/sub").mkdir(parents=True)
    (place / "d/file").touch()
    os.utime(place / "d", ns=(1, 1))
    before = os.stat(place / "d")
    if change == "create":
        (place / "d/new").touch()
    elif change == "mkdir":
        (place / "d/new").mkdir()
    elif change == "unlink":
        (place / "d/file").unlink()
    elif change == "rmdir":
        (place / "d/sub").rmdir()
    else:
        (place / "d/new").symlink_to("x")
    after = os.stat(place / "d")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_a_closed_file_keeps_the_times_set_while_it_was_open(place: Path) -> None:
    """What futimens set after a write is not undone by the close (tar and rsync do this)."""
    with open(place / "f", "wb") as file:
        file.write(b"x" * 20_000)
        file.flush()
        os.utime(file.fileno(), ns=(1, 2))
    assert os.stat(place / "f").st_mtime_ns == 2


def test_times_are_the_clocks(place: Path) -> None:
    """New files and writes carry the present time, to within a second."""
    before = time.time_ns() - SECOND_NS
    (place / "f").write_bytes(b"x")
    status = os.stat(place / "f")
    after = time.time_ns() + SECOND_NS
    for value in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns):
        assert before < value < after
