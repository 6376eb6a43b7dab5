"""`python -m benchmarks.peers`: statefs beside what people use instead, in one run.

Each tool gets the same tree of small files and one large file on the same disk. In each round ten
files change (nine small ones, and one page in the middle of the large one); then a snapshot is
taken and listed, the round's two snapshots are compared, the ten files are brought back, and a
snapshot is deleted. Tools take turns, so that what disturbs one disturbs all. A tool that is not
here is passed over, and the table says why. All that is made is unmounted and removed at the end,
also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.peer_tools import TOOLS, NotHereError, Tool
from benchmarks.report import RESULTS, console, figure, keep, median, show
from benchmarks.scale import seconds
from benchmarks.stores import file_path

VERBS: Final = ("create", "list_first", "diff", "restore", "delete")
FOLDER_FILES: Final = 100
SMALL_BYTES: Final = 2048
PAGE_BYTES: Final = 4096
LARGE: Final = "large"
CHANGED_SMALL: Final = 9
MEBIBYTE: Final = 1 << 20
ROOM_LEAST_BYTES: Final = 1 << 30
"""XFS refuses less than 300 MiB; the file is sparse."""
ROOM_TIMES: Final = 8
"""Copies of the large file that a filesystem has room for: two each round, if nothing is shared."""


@dataclass
class Measured:
    """A tool and its figures, milliseconds."""

    tool: Tool
    figures: dict[str, list[float]] = field(default_factory=dict)

    def time(self, verb: str, action: Callable[[], object]) -> None:
        """Do something after what was written before has settled, and keep how long it took."""
        os.sync()
        self.figures.setdefault(verb, []).append(seconds(action) * 1e3)


def make_tree(tree: Path, files: int, large_mib: int) -> None:
    """Fill a living tree; the same bytes for every tool, and no two files alike."""
    chance = random.Random(1)
    for number in range(files):
        path = tree / file_path(number, FOLDER_FILES)
        if number % FOLDER_FILES == 0:
            path.parent.mkdir()
        path.write_bytes(chance.randbytes(SMALL_BYTES))
    with (tree / LARGE).open("wb") as file:
        for _ in range(large_mib):
            file.write(chance.randbytes(MEBIBYTE))


def chosen_paths(files: int, seed: int) -> list[str]:
    """Return the ten files of a round, the large one last."""
    numbers = random.Random(seed).sample(range(files), CHANGED_SMALL)
    return [*(file_path(number, FOLDER_FILES) for number in numbers), LARGE]


def change(tree: Path, paths: list[str], large_mib: int) -> None:
    """Change files in place: small ones as a whole, of the large one a page."""
    for path in paths[:-1]:
        (tree / path).write_bytes(os.urandom(SMALL_BYTES))
    with (tree / LARGE).open("r+b") as file:
        file.seek(large_mib * MEBIBYTE // 2)
        file.write(os.urandom(PAGE_BYTES))


def digest(tree: Path, paths: list[str]) -> str:
    """Return what some files hold, as one hash."""
    total = hashlib.sha256()
    for path in paths:
        with (tree / path).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def prepare(stack: ExitStack, folder: Path, arguments: argparse.Namespace) -> list[Measured]:
    """Make every tool that is here, with its tree and a first snapshot."""
    found = []
    room = max(ROOM_LEAST_BYTES, ROOM_TIMES * arguments.large_mib * MEBIBYTE)
    for kind in TOOLS:
        name: str = kind.name  # type: ignore[attr-defined]  # each is a class of Tool
        if arguments.only and not any(word in name for word in arguments.only.split(",")):
            continue
        place = folder / name.split()[0]
        place.mkdir()
        try:
            tool = kind(stack, place, room)
        except NotHereError as reason:
            console.print(f"{name}: passed over: {reason}")
            continue
        make_tree(tool.tree, arguments.files, arguments.large_mib)
        measured = Measured(tool)
        measured.time("first", partial(tool.create, "s0"))
        console.print(f"{name}: tree made, first snapshot taken", style="dim")
        found.append(measured)
    return found


def measure(measured: Measured, turn: int, files: int, large_mib: int) -> None:
    """Do one round with one tool.

    Raises:
        SystemExit: it did not do what it is measured for.
    """
    tool, before, after = measured.tool, f"s{turn}", f"s{turn + 1}"
    paths = chosen_paths(files, turn)
    change(tool.tree, paths, large_mib)
    expected = digest(tool.tree, paths)
    measured.time("create", partial(tool.create, after))
    measured.time("list_first", partial(tool.list_first, after))
    said: list[str] = []
    measured.time("diff", lambda: said.append(tool.diff(before, after)))
    if not all(path in said[0] for path in paths):
        raise SystemExit(f"{tool.name} does not see all of {paths}: {said[0]}")
    change(tool.tree, paths, large_mib)
    measured.time("restore", partial(tool.restore, after, paths))
    if digest(tool.tree, paths) != expected:
        raise SystemExit(f"{tool.name} did not bring {paths} back")
    measured.time("delete", partial(tool.delete, before))


def measure_all(folder: Path, arguments: argparse.Namespace) -> list[Measured]:
    """Measure all tools in turns, and unmount what they mounted, however that ends."""
    with ExitStack() as stack:
        try:
            tools = prepare(stack, folder, arguments)
            for turn in range(arguments.rounds):
                for one in tools:
                    measure(one, turn, arguments.files, arguments.large_mib)
                console.print(f"round {turn + 1} of {arguments.rounds}", style="dim")
        finally:
            # Another Ctrl-C would leave a mount; umount(8) inherits this, too.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return tools


def rows_of(tools: list[Measured]) -> list[list[str]]:
    """Return a table's rows: a tool, its medians."""
    return [
        [one.tool.name, *(figure(median(one.figures[verb])) for verb in ("first", *VERBS))]
        for one in tools
    ]


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="statefs beside what people use instead.")
    parser.add_argument("--files", type=int, default=20_000, help="small ones")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="tools whose names hold one of these, A,B")
    parser.add_argument("--folder", type=Path, help="where trees and images are made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    parser.add_argument("--markdown", action="store_true", help="tables as the docs have them")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="statefs-peers-", dir=arguments.folder))
    try:
        tools = measure_all(folder, arguments)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error}\n{error.stderr}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    title = f"{arguments.files:,} small files and one of {arguments.large_mib} MiB; ms"
    show(title, ["", "first", *VERBS], rows_of(tools), is_markdown=arguments.markdown)
    figures: dict[str, Any] = {"how": {one.tool.name: one.tool.how for one in tools}}
    figures["ms"] = {one.tool.name: one.figures for one in tools}
    console.print(f"kept in {keep('peers', figures, arguments.results)}")


if __name__ == "__main__":
    main()
