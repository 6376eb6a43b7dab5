"""Git on the mount: clones, commits and collects garbage; snapshots hold sound repositories."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.apps.programs import needs, reporting, run
from tests.harness.mounted_state import MountedState
from tests.harness.trees import capture, differences

pytestmark = needs("git")
FILES: Final = 120
COMMITS: Final = 5
SAVES: Final = 4
ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
} | {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
}
ENDLESS_COMMITS: Final = """
set -e
trap 'exit 0' TERM
n=0
while :; do
    n=$((n + 1))
    echo "$n" > "count-$((n % 5))"
    git add -A
    git commit -q -m "number $n"
    git rev-parse HEAD
    if [ $((n % 5)) = 0 ]; then git gc -q --prune=now; fi
done
"""
"""Prints each commit when it is made; at SIGTERM it ends between two commands of git."""


def git(repository: Path, *words: str | Path) -> str:
    """Run git in a repository and return what it printed."""
    return run("git", "-C", repository, *words, env=ENVIRONMENT).strip()


@pytest.fixture
def origin(disk: Path) -> Path:
    """A repository on the disk: some commits, folders, a large file, modes and a link."""
    repository = disk / "origin"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    chance = random.Random(1)
    for number in range(FILES):
        folder = repository / f"folder{number % 7}" / f"deeper{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file {number}.txt").write_text(f"line {number}\n" * chance.randrange(1, 900))
    (repository / "large.bin").write_bytes(chance.randbytes(3_000_000))
    (repository / "run.sh").write_text("#!/bin/sh\n")
    (repository / "run.sh").chmod(0o755)
    (repository / "link").symlink_to("folder1/deeper1")
    for commit in range(3):
        (repository / "changing").write_text(f"version {commit}\n")
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "-m", f"commit {commit}")
    return repository


def check_objects(repository: Path) -> None:
    """Read every object and what refers to it."""
    said = git(repository, "fsck", "--full", "--strict", "--no-dangling", "--no-progress")
    assert said == ""


def check_clean(repository: Path, head: str) -> None:
    """Check every object, and that the working copy is exactly the commit `head`."""
    check_objects(repository)
    assert git(repository, "rev-parse", "HEAD") == head
    assert git(repository, "status", "--porcelain") == ""


def test_a_clone_lives_through_commits_merges_and_garbage_collection(
    app_state: MountedState, origin: Path, disk: Path
) -> None:
    """Each snapshot keeps a sound repository and its working copy; so does current, remounted."""
    clone = app_state.files / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone, env=ENVIRONMENT)
    names, heads = [app_state.save("cloned")], [git(clone, "rev-parse", "HEAD")]
    git(clone, "switch", "-q", "-c", "side")
    for number in range(COMMITS):
        (clone / f"new{number}").write_text(f"{number}\n")
        git(clone, "mv", f"folder{number}", f"moved{number}")
        git(clone, "add", "-A")
        git(clone, "commit", "-q", "-m", f"side {number}")
    names.append(app_state.save("side"))
    heads.append(git(clone, "rev-parse", "HEAD"))
    git(clone, "switch", "-q", "main")
    git(clone, "merge", "-q", "--no-ff", "-m", "merged", "side")
    git(clone, "gc", "-q", "--aggressive", "--prune=now")
    app_state.remount()
    for name, head in zip(names, heads, strict=True):
        check_clean(app_state.snapshots / name / "files" / "clone", head)
    merged = git(clone, "rev-parse", "HEAD")
    check_clean(clone, merged)
    assert len({*heads, merged}) == 3
    outside = disk / "outside"
    run("git", "clone", "-q", "--no-local", clone, outside, env=ENVIRONMENT)
    trees = [capture(folder, leave_out=[b".git"]) for folder in (outside, clone)]
    assert differences(*trees, ignore={"mtime_ns"}) == []


def test_snapshots_taken_between_any_two_steps_of_git_are_sound(
    app_state: MountedState, origin: Path, disk: Path
) -> None:
    """Commits and garbage collections go on while saves are taken; none loses a commit."""
    clone = app_state.files / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone, env=ENVIRONMENT)
    git(clone, "config", "gc.auto", "0")
    script = disk / "commits.sh"
    script.write_text(f"cd '{clone}'\n{ENDLESS_COMMITS}")
    committed: dict[str, str] = {}
    with reporting("sh", script, log=disk / "commits.log", env=ENVIRONMENT) as commits:
        for _ in range(SAVES):
            last = commits.lines_after(3)[-1]
            committed[app_state.save()] = last
        commits.assert_running()
    for name, last in committed.items():
        repository = app_state.snapshots / name / "files" / "clone"
        check_objects(repository)
        git(repository, "merge-base", "--is-ancestor", last, "HEAD")
    check_objects(clone)
