"""diff, log and cat of a mounted state, while programs use it."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import statefs
from statefs.errors import NoSuchSnapshot
from tests.leftovers import COMMAND_SECONDS

Cli = Callable[..., subprocess.CompletedProcess[str]]
BIG = 6 << 20


def cat(*words: str | Path) -> bytes:
    """Return what `statefs cat WORDS...` prints."""
    return subprocess.run(
        [sys.executable, "-m", "statefs", "cat", *words],
        check=True,
        capture_output=True,
        timeout=COMMAND_SECONDS,
    ).stdout


def test_what_programs_wrote_is_seen_at_once(state: Path, statefs_cli: Cli) -> None:
    """By write(2), not yet closed, and through a memory map; renames are told as such."""
    files = state / "current" / "files"
    for name in ("written", "mapped", "moved"):
        (files / name).write_bytes(b"x" * 20_000)
    statefs_cli("save", state, "--label", "name=a")
    (files / "moved").rename(files / "there")
    with open(files / "written", "r+b", buffering=0) as written, open(files / "mapped", "r+b") as f:
        written.write(b"new")
        with mmap.mmap(f.fileno(), 0) as mapped:
            mapped[0:3] = b"new"
            out = statefs_cli("diff", state, "a").stdout
    assert out == "M  files/mapped\nR  files/moved -> files/there\nM  files/written\n"
    inside = subprocess.run(
        [sys.executable, "-P", "-m", "statefs", "diff", "a", "current", "--json"],
        cwd=files,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        timeout=COMMAND_SECONDS,
    )
    assert len(json.loads(inside.stdout)["differences"]) == 3


def test_a_daemon_and_the_store_itself_tell_the_same(state: Path, statefs_cli: Cli) -> None:
    """The difference, the log, and the bytes."""
    files = state / "current" / "files"
    content = os.urandom(BIG)
    (files / "big").write_bytes(content)
    (files / "small").write_text("small")
    statefs_cli("save", state, "--label", "name=a")
    (files / "big").write_bytes(b"later")
    (files / "small").unlink()

    def answers() -> list[object]:
        return [
            statefs_cli("diff", state, "a", "--json").stdout,
            statefs_cli("log", state, "files/big", "--json").stdout,
            statefs_cli("log", state, "files/small").stdout,
            cat(state, "a", "files/big") == content,
            cat(state, "a", "files/small"),
            cat(state, "current", "files/big"),
        ]

    online = answers()
    assert online[3:] == [True, b"small", b"later"]
    statefs_cli("umount", state)
    assert answers() == online


def test_a_sparse_file_stays_sparse(state: Path, tmp_path: Path, statefs_cli: Cli) -> None:
    """A file of 4 GiB with a few bytes in it takes a moment and hardly any room."""
    with open(state / "current" / "files" / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(4 << 30)
        file.write(b"end")
    statefs_cli("save", state, "--label", "name=a")
    with open(tmp_path / "out", "wb") as out:
        subprocess.run(
            [sys.executable, "-m", "statefs", "cat", state, "a", "files/sparse"],
            check=True,
            stdout=out,
            timeout=COMMAND_SECONDS,
        )
    found = os.stat(tmp_path / "out")
    assert found.st_size == (4 << 30) + 3
    assert found.st_blocks * 512 < 1 << 20
    with open(tmp_path / "out", "rb") as file:
        assert file.read(6) == b"start\0"
        file.seek(4 << 30)
        assert file.read() == b"end"


def test_a_snapshot_deleted_while_it_is_read_gives_no_wrong_bytes(
    state: Path, statefs_cli: Cli
) -> None:
    """The reader is told, and what it got before was right."""
    content = os.urandom(4 * BIG)
    (state / "current" / "files" / "big").write_bytes(content)
    statefs_cli("save", state, "--label", "name=a")
    (state / "current" / "files" / "big").unlink()
    with statefs.open(state) as opened:
        parts = opened.read("a", "files/big")
        got = [next(parts)]
        os.rmdir(state / "snapshots" / "a")
        with pytest.raises(NoSuchSnapshot):
            got.extend(parts)
    assert content.startswith(b"".join(got)) and got[0]


def test_differences_while_programs_write(state: Path, statefs_cli: Cli) -> None:
    """Each answer is one of a whole moment: of a pair of names one is always there."""
    files = state / "current" / "files"
    (files / "here").write_text("x")
    statefs_cli("save", state, "--label", "name=a")
    is_over = threading.Event()

    def move() -> None:
        while not is_over.is_set():
            (files / "here").rename(files / "there")
            (files / "there").rename(files / "here")

    mover = threading.Thread(target=move)
    mover.start()
    try:
        with statefs.open(state) as opened:
            seen = {tuple(each.kind for each in opened.diff("a").differences) for _ in range(200)}
    finally:
        is_over.set()
        mover.join()
    assert seen <= {(), ("renamed",)}
    assert seen
