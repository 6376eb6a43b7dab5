"""Files that lay in a mount point come into current/."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from statefs.archive.placing import move
from statefs.daemon import adopt as adopt_module
from statefs.daemon.adopt import CoveredFiles
from statefs.errors import MountPointNotEmpty, StatefsError


def adopt(folder: Path, current: dict[str, str]) -> tuple[Path, str]:
    """Cover `folder` by another one with these files in current/, bring the covered ones in.

    Returns:
        The folder that was covered, under its new name, and what the user is told.
    """
    with CoveredFiles(folder) as covered:
        under = folder.rename(folder.with_name("under"))
        (folder / "current").mkdir(parents=True)
        for name, text in current.items():
            path = folder / "current" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        remark = covered.bring_in()
    return under, remark


def contents(folder: Path) -> dict[str, str]:
    """Return every file below a folder with its text."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_covered_files_move_into_current(mount_point: Path) -> None:
    """Those below current/ keep their place, others come to its top; nothing is left under it."""
    (mount_point / "current" / "files").mkdir()
    (mount_point / "current" / "files" / "a").write_text("a")
    (mount_point / "b").write_text("b")
    (mount_point / "c").mkdir()
    (mount_point / "c" / "d").write_text("d")
    under, remark = adopt(mount_point, {"files/old": "old"})
    expected = {"files/a": "a", "files/old": "old", "b": "b", "c/d": "d"}
    assert contents(mount_point / "current") == expected
    assert (list(under.iterdir()), remark) == ([], "")


def test_nothing_in_current_is_replaced(mount_point: Path) -> None:
    """A file whose name is taken gets another; a folder and a file of one name are both kept."""
    (mount_point / "current" / "taken").write_text("new")
    (mount_point / "current" / "folder").write_text("a file")
    _, remark = adopt(mount_point, {"taken": "old", "taken.adopted-1": "older", "folder/x": "x"})
    assert contents(mount_point / "current") == {
        "taken": "old",
        "taken.adopted-1": "older",
        "taken.adopted-2": "new",
        "folder/x": "x",
        "folder.adopted-1": "a file",
    }
    current = mount_point / "current"
    named = f"{current}/folder.adopted-1, {current}/taken.adopted-2"
    assert remark.endswith(f"theirs was taken: {named}")


def test_many_names_that_were_taken_are_counted(mount_point: Path) -> None:
    """The line stays one that a person reads, also with names that are no UTF-8."""
    names = [os.fsdecode(b"\xff"), *map(str, range(9))]
    for name in names:
        (mount_point / "current" / name).write_text("new")
    _, remark = adopt(mount_point, dict.fromkeys(names, "old"))
    assert remark.count(".adopted-1") == adopt_module.RENAMED_NAMED_MAX
    assert remark.endswith("5 more, see the log") and remark.isprintable()


@pytest.mark.parametrize("place", ["metadata.json", "current/metadata.json"])
def test_a_reserved_name_is_refused_before_anything_is_done(mount_point: Path, place: str) -> None:
    """The message says which file it is and what to do; nothing has been mounted yet."""
    (mount_point / place).touch()
    with (
        pytest.raises(MountPointNotEmpty, match=f"{mount_point / place} cannot .* rename it"),
        CoveredFiles(mount_point),
    ):
        pass


def test_adopted_files_keep_what_they_are(mount_point: Path) -> None:
    """Mode, time, links, holes: as cp --archive carries them over."""
    first = mount_point / "current" / "tree" / "first"
    first.parent.mkdir()
    first.write_text("x")
    first.chmod(0o640)
    os.utime(first, ns=(1_000_000_007, 2_000_000_009))
    first.with_name("second").hardlink_to(first)
    first.with_name("link").symlink_to("nowhere")
    first.parent.chmod(0o555)
    (mount_point / "third").hardlink_to(first)
    (mount_point / "fourth").hardlink_to(first)
    adopt(mount_point, {})
    top = mount_point / "current"
    assert (top / "third").stat().st_ino == (top / "fourth").stat().st_ino
    tree = mount_point / "current" / "tree"
    status = (tree / "first").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 2_000_000_009)
    assert (tree / "second").stat().st_ino == status.st_ino
    assert os.readlink(tree / "link") == "nowhere"


def test_a_second_attempt_makes_no_copies(mount_point: Path) -> None:
    """What an interrupted attempt has brought in already is recognised by its bytes."""
    (mount_point / "current" / "a").write_text("a")
    adopt(mount_point, {"a": "a"})
    assert contents(mount_point / "current") == {"a": "a"}


def test_a_file_called_current_is_adopted_too(mount_point: Path) -> None:
    """Only a folder of that name stands for the tree."""
    (mount_point / "current").rmdir()
    (mount_point / "current").write_text("a file")
    adopt(mount_point, {"x": "x"})
    assert contents(mount_point / "current") == {"current": "a file", "x": "x"}


def test_a_failed_copy_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, tmp_path: Path
) -> None:
    """The files stay under the mount point, no part of one is in current/; the message says so."""
    (mount_point / "current" / "a").write_text("a")
    (mount_point / "b").write_text("b")
    program = tmp_path / "bin" / "cp"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n/bin/mkdir "$4"\necho part >"$4/b"\n'
        "echo \"cp: error writing '$4/./b': No space left on device\" >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(
        StatefsError, match=r"error writing '.*/state/b': No space left.*still there"
    ):
        adopt(mount_point, {})
    assert contents(tmp_path / "under") == {"current/a": "a", "b": "b"}
    assert list((mount_point / "current").iterdir()) == []


def test_what_was_placed_is_taken_back_when_a_later_one_fails(
    monkeypatch: pytest.MonkeyPatch, mount_point: Path, tmp_path: Path
) -> None:
    """All of them come in, or none."""
    for name in "abc":
        (mount_point / "current" / name).write_text(name)

    def fail_at_c(source: None, old: Path, target: None, new: Path) -> None:
        if new.name == "c":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move(source, old, target, new)

    monkeypatch.setattr(adopt_module, "move", fail_at_c)
    with pytest.raises(StatefsError, match=r"No space left.*nothing of them is in current/"):
        adopt(mount_point, {"x": "x"})
    assert contents(tmp_path / "under") == {f"current/{name}": name for name in "abc"}
    assert contents(mount_point / "current") == {"x": "x"}
