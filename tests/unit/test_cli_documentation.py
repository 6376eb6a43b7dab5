"""docs/cli.md says everything that --help, the errors and the JSON output say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from statefs import errors
from statefs.cli.app import COMMANDS, EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, statefs
from statefs.cli.difference_view import LETTERS
from statefs.daemon.spawning import LEASH_VARIABLE, READY_VARIABLE
from statefs.errors import PosixError, StatefsError
from statefs.ids import TREE_ROOT
from statefs.mounts import MountOptions
from statefs.snapshots.reasons import REASONS
from statefs.snapshots.reports import Aspect, FileType, Kind
from statefs.target import STATE_VARIABLE
from statefs.volume.attributes import AttributeChange
from tests.unit.cli_fakes import call
from tests.unit.engine_store import EngineStore

Capture = pytest.CaptureFixture[str]
PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
OPTIONS_OF_ALL = {"--help", "-h"}
"""Said once, at the top of the page."""


def section(title: str) -> str:
    """Return the text below the heading `title`, up to the next heading of its level."""
    _, found, after = PAGE.partition(f"\n## {title}\n")
    assert found, f"docs/cli.md has no section '{title}'"
    return after.partition("\n## ")[0]


def command_named(name: str) -> click.Command:
    """Return one subcommand, `state list` for one of a group."""
    command: click.Command = statefs
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def all_commands() -> list[str]:
    """Return the names of all subcommands, those of groups in place of the group."""
    return [
        f"{name} {part}".rstrip()
        for name in COMMANDS
        for part in getattr(command_named(name), "commands", [""])
    ]


def example_document(name: str) -> Any:
    """Return the JSON shown in a command's section."""
    found = re.search(r"```json\n(.*?)```", section(f"statefs {name}"), re.DOTALL)
    assert found, f"docs/cli.md shows no JSON of 'statefs {name}'"
    return json.loads(found[1])


def shape(document: Any) -> Any:
    """Return a document with its plain values left out: keys in order, and one item of a list."""
    if isinstance(document, dict):
        return [(key, shape(value)) for key, value in document.items() if key != "labels"]
    if isinstance(document, list):
        return [shape(each) for each in document[:1]]
    return None


@pytest.mark.parametrize("name", all_commands())
def test_each_command_is_described(name: str) -> None:
    """In the list at the top, and in a section that begins with its usage."""
    assert f"| [`statefs {name} " in PAGE
    usage = section(f"statefs {name}").strip().splitlines()[0]
    assert usage.startswith(f"statefs {name} ")


@pytest.mark.parametrize("name", all_commands())
def test_each_option_is_described(name: str) -> None:
    """In the usage, and in the table of the command's section, under each of its spellings."""
    text = section(f"statefs {name}")
    usage = text.strip().splitlines()[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    spellings = set(re.findall(r"`(-{1,2}[a-z-]+)", " ".join(rows)))
    options = [each for each in command_named(name).params if isinstance(each, click.Option)]
    # The words that -o takes have a table of their own, whose title is -o itself.
    assert spellings | {"-o"} == {each for option in options for each in option.opts} | {"-o"}
    assert all(any(each in usage for each in option.opts) for option in options)


@pytest.mark.parametrize("name", all_commands())
def test_no_option_is_described_that_is_not_there(name: str) -> None:
    """The usage has the options of --help and no others."""
    usage = section(f"statefs {name}").strip().splitlines()[0]
    options = {
        spelling
        for each in command_named(name).params
        if isinstance(each, click.Option)
        for spelling in each.opts
    }
    assert set(re.findall(r"(?<![\w-])-{1,2}[a-z][a-z-]*", usage)) <= options | OPTIONS_OF_ALL


def test_each_reason_and_mount_option_is_described() -> None:
    """The reasons of `save`, and what -o understands."""
    assert all(f"`{reason}`" in section("statefs save") for reason in REASONS)
    text = section("statefs mount")
    for words in ("ro", "allow_other", "allow_root", "suid", "dev", "noexec", "adopt"):
        assert MountOptions.parse(words) != MountOptions()
        assert f"`{words}`" in text
    for mode in ("close", "fsync", "write"):
        assert MountOptions.parse(f"durability={mode}").durability == mode
        assert f"`{mode}`" in text


def test_the_exit_codes_are_those_of_the_errors() -> None:
    """Each class with its code, then the two that shells define."""
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? ?\|", section("Exit codes"), re.MULTILINE)
    classes = {
        each.__name__: each.exit_code
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, StatefsError) and each is not PosixError
    }
    assert {name: int(code) for code, name in rows if name} == classes
    assert [int(code) for code, name in rows if not name] == [
        0,
        EXIT_INTERRUPTED,
        EXIT_BROKEN_PIPE,
    ]


def test_each_environment_variable_is_described() -> None:
    """Those that the code reads, by the names it has for them."""
    for variable in (STATE_VARIABLE, "STATEFS_DEBUG", READY_VARIABLE, LEASH_VARIABLE, "NO_COLOR"):
        assert f"| `{variable}` |" in section("Environment")


def test_the_json_shown_is_what_is_printed(tmp_path: Path, capsys: Capture) -> None:
    """Same keys in the same order, on a real store."""
    state = tmp_path / "state"
    assert call(capsys, "init", state).exit_code == 0
    assert call(capsys, "save", state, "--label", "name=clean").exit_code == 0
    for name, words in (("list", ()), ("show", ("clean",)), ("status", ()), ("verify", ())):
        printed = json.loads(call(capsys, name, state, *words, "--json").out)
        assert shape(printed) == shape(example_document(name)), name


def test_the_json_shown_of_differences_is_what_is_printed(tmp_path: Path, capsys: Capture) -> None:
    """Where something differs, and of a path with a version."""
    state = tmp_path / "state"
    assert call(capsys, "init", state).exit_code == 0
    assert call(capsys, "save", state, "--label", "name=clean").exit_code == 0
    with EngineStore(tmp_path / "state.store") as engine:
        files = engine.names.lookup(TREE_ROOT, b"files").ino
        engine.attributes.set(files, AttributeChange(mode=0o700))
    for name, words in (("diff", ("clean",)), ("log", ("files",))):
        printed = json.loads(call(capsys, name, state, *words, "--json").out)
        assert shape(printed) == shape(example_document(name)), name


def test_the_words_of_differences_are_described() -> None:
    """Kinds, their letters, aspects and types."""
    text = section("statefs diff") + section("statefs log")
    words = [*get_args(Kind), *get_args(Aspect), *get_args(FileType)]
    assert all(f"`{word}`" in text for word in words)
    assert all(f"| `{letter}` | `{kind}` |" in text for kind, (letter, _) in LETTERS.items())
