"""The documents tell the truth where a machine can check it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pyfuse3
import pytest

from statefs.cli.app import COMMANDS
from statefs.mounts.options import Durability

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
    named = set(re.findall(r"(?:`|\$ |\$\()statefs ([a-z]+)", readme()))
    assert {"mount", "save", "list", "umount"} <= named
    assert named <= set(COMMANDS)


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


def tour() -> Iterator[tuple[str, str]]:
    """Yield (command, output) of the first console block in README.md, after its `cd`."""
    block = re.search(r"```console\n\$ cd state\n(.*?)```", readme(), re.DOTALL)
    assert block, "README.md has no tour that begins in the state folder"
    for step in re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]:
        command, _, output = step.partition("\n")
        yield command, output


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


def test_the_tour_in_readme_is_what_happens(state: Path) -> None:
    """Each command of the tour, run in a new state, prints what README.md shows."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands, shown = zip(*tour(), strict=True)
    seen = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=state,
            env=os.environ | {"PATH": path, "LC_ALL": "C", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        seen.append(done.stdout)
    assert without_times(seen) == without_times(list(shown))
