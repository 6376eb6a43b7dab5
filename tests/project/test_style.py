"""The habits of docs/contributing.md that a machine can check."""

from __future__ import annotations

import ast
import statistics
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FUNCTION_LINES_MAX: Final = 70
FUNCTION_LINES_NINE_IN_TEN: Final = 40
FUNCTION_LINES_MEDIAN: Final = 14
MODULE_LINES_MAX: Final = 600
VAGUE_NAMES: Final = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "core"}
FORBIDDEN_TEXTS: Final = (
    # Joined here, so that this file is not the one that is found.
    "FIX" + "ME",
    "/wo" + "rk/",
    "/fa" + "rm/",
    "bash" + "_jobs",
    "py" + "pi.org",
    "files.python" + "hosted",
    "deb.debian" + ".org",
    "registry" + ".npmjs",
)
"""A note that belongs into an issue; paths of one machine; hosts of package registries."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def files_of_project() -> tuple[Path, ...]:
    """Return the files that are, or would be, committed."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run([*command, "--exclude-standard"], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"not a git work tree: {done.stderr.decode().strip()}")
    paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return tuple(sorted(path for path in set(paths) if path.is_file()))


def modules(folder: str) -> list[Path]:
    """Return the Python files in a folder of the project."""
    return [
        path
        for path in files_of_project()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == folder
    ]


def functions(path: Path) -> Iterator[Function]:
    """Return every function of a module, nested ones and methods too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, Function):
            yield node


def lines_of(function: Function) -> int:
    """Return a function's length in lines, without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def place(path: Path, node: Function) -> str:
    """Return where a function is, as an editor understands it."""
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


@pytest.mark.parametrize("folder", ["statefs", "tests", "benchmarks", "scripts"])
def test_no_function_is_longer_than_a_screen(folder: str) -> None:
    """A function does one thing; one that does not fit a screen does several."""
    long = [
        f"{place(path, function)}: {lines_of(function)} lines"
        for path in modules(folder)
        for function in functions(path)
        if lines_of(function) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_most_functions_are_short() -> None:
    """Half of all functions fit a glance, nine in ten need no scrolling."""
    lengths = sorted(lines_of(one) for path in modules("statefs") for one in functions(path))
    assert statistics.median(lengths) <= FUNCTION_LINES_MEDIAN
    assert lengths[len(lengths) * 9 // 10] <= FUNCTION_LINES_NINE_IN_TEN


@pytest.mark.parametrize("folder", ["statefs", "tests", "benchmarks", "scripts"])
def test_no_module_has_grown_two_reasons_to_change(folder: str) -> None:
    """A module's length stays where a reader can keep it in mind."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(folder)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_names_of_modules_say_what_is_in_them() -> None:
    """A module named after nothing in particular collects everything."""
    vague = [
        str(path.relative_to(ROOT))
        for folder in ("statefs", "tests", "benchmarks")
        for path in modules(folder)
        if VAGUE_NAMES & {path.stem, *path.relative_to(ROOT).parent.parts}
    ]
    assert vague == []


def test_messages_quote_in_one_way() -> None:
    """What is to be typed stands in single quotes: in no message of an error are there others."""
    odd = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules("statefs")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for text in ast.walk(node.exc)
        if isinstance(text, ast.Constant) and "`" in str(text.value)
    ]
    assert odd == []


def test_every_test_says_what_it_shows() -> None:
    """Each test function has a docstring whose first paragraph is one sentence."""
    silent = [
        place(path, function)
        for path in modules("tests")
        for function in functions(path)
        if function.name.startswith("test_")
        and not (ast.get_docstring(function) or "").split("\n\n")[0].endswith((".", "?"))
    ]
    assert silent == []


@pytest.mark.parametrize("text", FORBIDDEN_TEXTS)
def test_no_file_names_a_machine_a_registry_or_an_open_end(text: str) -> None:
    """What is committed works on any machine, with any package index, and is finished."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files_of_project()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if text.encode() in line
    ]
    assert found == []
