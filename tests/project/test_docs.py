"""The documents tell the truth where a machine can check it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, Self, get_args

import pyfuse3
import pytest

from statefs.cli.app import COMMANDS
from statefs.mounts.options import Durability
from tests.harness.mounted_state import wait_until_gone

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
UNCARRIED: Final = {
    "fallocate": ("fallocate", "posix_fallocate", "EOPNOTSUPP"),
    "copy_file_range": ("copy_file_range",),
    "lseek": ("SEEK_DATA", "SEEK_HOLE"),
    "ioctl": ("ioctl", "ENOTTY"),
    "tmpfile": ("O_TMPFILE",),
    "syncfs": ("syncfs",),
    "statx": ("statx",),
    "setlk": ("| locks | kept by the kernel",),
    "bmap": ("FIBMAP",),
}
"""Requests of FUSE without a handler in pyfuse3, and what docs/semantics.md says of each."""
PACKAGES: Final = sorted(
    path.stem
    for path in (ROOT / "statefs").iterdir()
    if (path.is_dir() and (path / "__init__.py").exists())
    or (path.suffix == ".py" and not path.stem.startswith("__"))
)

_PROMPT: Final = "--the-next-command-please--"
_TIME: Final = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?Z"
_LINK: Final = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def readme() -> str:
    """Return README.md."""
    return (ROOT / "README.md").read_text()


def name_of(page: Path) -> str:
    """Return a page's path in the project, as the name of a test case."""
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the fragments by which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.strip().replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each relative link names a file of the project, and each fragment a heading in it."""
    broken = []
    for link in _LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_targets_that_readme_names_are_in_the_makefile() -> None:
    """Nobody is told to `make` what cannot be made."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    |^\$ )make ([a-z-]+)", readme(), re.MULTILINE))
    assert {"run", "test", "stop"} <= named
    assert named <= targets


def test_the_commands_that_readme_names_exist() -> None:
    """Each `statefs WORD`, in a tour or in a sentence, is a subcommand."""
    named = set(re.findall(r"(?:`|\$ |\$\()statefs ([a-z][a-z-]*)", readme()))
    assert {"mount", "save", "list", "umount"} <= named
    assert named <= set(COMMANDS)


def test_the_table_of_commands_in_readme_is_complete() -> None:
    """What `statefs --help` lists stands in the first column of a row."""
    table = readme().partition("\n## Commands\n")[2].partition("\n## ")[0]
    cells = " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    named = {words.split()[words.startswith("statefs ")] for words in re.findall(r"`(.*?)`", cells)}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("package", PACKAGES)
def test_architecture_names_each_package(package: str) -> None:
    """docs/architecture.md says what each package and module at the top of statefs/ is for."""
    page = (DOCS / "architecture.md").read_text()
    assert re.search(rf"`(statefs/)?{package}(/|\.py)", page)


@pytest.mark.parametrize("request_name", UNCARRIED)
def test_semantics_lists_what_pyfuse3_cannot_carry(request_name: str) -> None:
    """A request without a handler is listed; one that has got a handler should leave the list."""
    assert not hasattr(pyfuse3.Operations, request_name)
    page = (DOCS / "semantics.md").read_text()
    assert [word for word in UNCARRIED[request_name] if word not in page] == []


def test_semantics_explains_each_durability_mode() -> None:
    """The table of modes in docs/semantics.md has a row for each word that -o durability takes."""
    page = (DOCS / "semantics.md").read_text()
    assert all(f"\n| `{mode}`" in page for mode in get_args(Durability))


def tour(number: int) -> list[tuple[str, str]]:
    """Return (command, output) of each step of a console block in README.md.

    Args:
        number: 0 is the tour of thirty seconds, 1 the pulled plug.
    """
    blocks = re.findall(r"```console\n(.*?)```", readme(), re.DOTALL)
    steps = re.split(r"^\$ ", blocks[number], flags=re.MULTILINE)[1:]
    return [(step.partition("\n")[0], step.partition("\n")[2]) for step in steps]


class Terminal:
    """A shell that a test types into, as a reader of README.md does.

    Args:
        folder: where it stands at first.
    """

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=os.environ | {"PATH": path, "LC_ALL": "C", "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, command: str) -> str:
        """Run one command line and return what it printed."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write(f"{command}\necho {_PROMPT}\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        while not lines or lines[-1] != f"{_PROMPT}\n":
            lines.append(self._shell.stdout.readline())
            assert lines[-1], f"{command} ended the shell"
        return "".join(lines[:-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate(timeout=60)


def without_times(outputs: list[str]) -> list[list[str]]:
    """Return the lines of outputs with times replaced by their order, sorted within an output."""
    text = "\n".join(outputs)
    moments = sorted(set(re.findall(_TIME, text)), key=lambda name: name.rstrip("Z"))
    changed = []
    for output in outputs:
        for number, moment in enumerate(moments):
            output = output.replace(moment, f"SNAPSHOT-{number}")
        output = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "MOMENT", output)
        output = re.sub(r"MOMENT +(now|\d+ \w+ ago)", "MOMENT AGE", output)
        output = re.sub(r"^bash: line \d+: ", "bash: ", output, flags=re.MULTILINE)
        changed.append(sorted(" ".join(line.split()) for line in output.splitlines()))
    return changed


@pytest.mark.expected_log("worker [0-9]+ died")
def test_the_tour_in_readme_is_what_happens(state: Path) -> None:
    """Each command of both tours, typed into one shell, prints what README.md shows.

    What differs from machine to machine is put in the place of what is printed: the daemon's pid,
    which the reader types again, and the folder above the state.
    """
    steps = tour(0)
    assert steps[0] == ("cd state", "")
    with Terminal(state.parent) as terminal:
        seen = [terminal.type(command) for command, _ in steps]
        assert without_times(seen) == without_times([output for _, output in steps])
        pid = shown_pid = ""
        for command, output in tour(1):
            if command.startswith("kill -9 "):
                assert command == f"kill -9 {shown_pid}"
                command = f"kill -9 {pid}"
            said = terminal.type(command)
            if "grep Worker" in command:
                pid, shown_pid = said.split()[-1], output.split()[-1]
                said = said.replace(pid, shown_pid)
            elif command.startswith("kill"):
                wait_until_gone(int(pid))
            assert said == output.replace("/srv/statefs/", f"{state.parent}/"), command
    assert pid, "README.md has no tour that pulls the plug"
