from __future__ import annotations

import errno
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click
import pytest

from statefs import __main__ as entry
from statefs import errors
from statefs.cli.app import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, explain
from statefs.errors import StatefsError
from tests.unit.cli_fakes import FakeBackend, call, call_process, make_empty_store

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]

ERRORS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, StatefsError) and each is not errors.PosixError
]

ENGINE = ("pyfuse3", "trio", "apsw", "psutil", "rich", "statefs.volume", "statefs.metadata")
"""What a command that only talks to a daemon has no use for."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    """Stand in for the store of `state`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATEFS_DEBUG", raising=False)
    make_empty_store(tmp_path / "state.store")
    fake = FakeBackend()
    fake.install(monkeypatch)
    return fake


def test_ctrl_c_while_the_command_line_is_imported_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As later: no traceback, and what a shell reports; the installed script begins there, too.

    Nearly nothing is loaded before that, where a traceback cannot be helped.
    """

    def interrupt(_name: str) -> NoReturn:
        raise KeyboardInterrupt

    loading = ModuleType("statefs.cli")
    monkeypatch.setattr(loading, "__getattr__", interrupt, raising=False)
    monkeypatch.setitem(sys.modules, "statefs.cli", loading)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == entry.EXIT_INTERRUPTED == EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"statefs": "statefs.__main__:main"}
    words = [sys.executable, "-S", "-c", "import sys, statefs.__main__; print(*sys.modules)"]
    loaded = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert "typing" not in loaded.stdout.split()


@pytest.mark.parametrize("error", ERRORS)
def test_each_error_gives_one_line_and_its_exit_code(
    backend: FakeBackend, capsys: Capture, error: type[StatefsError]
) -> None:
    """Even a message of two lines becomes one."""
    backend.failure = error("what happened:\ndo this")
    done = call(capsys, "list", "state")
    assert done.exit_code == error.exit_code
    assert (done.out, done.err) == ("", "statefs: error: what happened: do this\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["lisst"], "there is no command 'lisst'; did you mean 'statefs list'?"),
        (["frobnicate"], "there is no command 'frobnicate'; see 'statefs --help'"),
        (["list", "--jsn"], "no such option '--jsn': did you mean '--json'? see 'statefs list"),
        (["list", "a", "b"], "got unexpected extra argument (b); see 'statefs list --help'"),
        (["mount", "-o"], "option '-o' requires an argument; see 'statefs mount --help'"),
        (["umount", ""], "a path cannot be empty; see 'statefs umount --help'"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_bad_usage_gives_one_line_that_helps(
    capsys: Capture, words: list[str], complaint: str
) -> None:
    """Exit code 2, and the way to --help."""
    done = call(capsys, *words)
    assert (done.exit_code, done.out) == (2, "")
    assert done.err.startswith("statefs: error: ") and done.err.count("\n") == 1
    assert complaint in done.err


def test_a_bug_shows_no_traceback(backend: FakeBackend, capsys: Capture) -> None:
    """It is called internal, and says how to see more."""
    backend.failure = ValueError("odd")
    done = call(capsys, "list", "state")
    assert done.exit_code == 1
    assert (
        done.err == "statefs: error: internal error: ValueError: odd; STATEFS_DEBUG=1 shows where\n"
    )


def test_debug_shows_the_traceback(
    backend: FakeBackend, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line is still the one-line message."""
    monkeypatch.setenv("STATEFS_DEBUG", "1")
    backend.failure = ValueError("odd")
    lines = call(capsys, "list", "state").err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "statefs: error: internal error: ValueError: odd"


@pytest.mark.parametrize(
    ("number", "exit_code", "advice"),
    [
        (errno.ENOSPC, 11, "free some space"),
        (errno.EDQUOT, 11, "free some space"),
        (errno.EACCES, 1, "run this as the user it belongs to"),
        (errno.EIO, 1, "Input/output error; the disk has failed"),
        (errno.EMFILE, 1, "raise the limit of open files"),
        (errno.ENXIO, 1, "No such device or address"),
    ],
)
def test_the_systems_refusals_are_explained(number: int, exit_code: int, advice: str) -> None:
    """The file is named first."""
    message, code = explain(OSError(number, os.strerror(number), "/srv/state.store"))
    assert code == exit_code
    assert message.startswith("/srv/state.store: ") and advice in message


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_no_error(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """Ctrl-C ends with 130, as shells expect, and without a word."""

    def interrupted(*_arguments: object) -> None:
        raise interruption

    monkeypatch.setattr("statefs.cli.list.find_target", interrupted)
    done = call(capsys, "list")
    assert (done.exit_code, done.err.strip()) == (EXIT_INTERRUPTED, "") == (130, "")


def test_a_reader_that_went_away_is_no_error() -> None:
    """`statefs ... | head -1` is quiet and ends like any program whose pipe broke."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "statefs", "completion", "zsh"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (EXIT_BROKEN_PIPE, b"") == (141, b"")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_needs_no_state(words: list[str]) -> None:
    """`python -m statefs` alone shows the commands, as --help does."""
    done = call_process(*words)
    assert (done.exit_code, done.err) == (0, "")
    assert "Usage: statefs" in done.out and "  mount " in done.out


def test_the_version_is_that_of_the_package() -> None:
    """--version names it."""
    import statefs

    assert call_process("--version").out == f"statefs {statefs.__version__}\n"


@pytest.mark.parametrize(
    "words", [["--help"], ["list", "--help"], ["status", "--store", "/nonexistent"]]
)
def test_commands_start_without_the_engine(words: list[str]) -> None:
    """Nothing heavy is imported before it is known that it is needed."""
    code = f"""
import sys
from statefs.cli.app import run
run({words!r})
loaded = [name for name in {ENGINE!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr


def completions(line: str, cwd: Path) -> list[str]:
    """Return what the shell would be offered for the last word of `line`."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "statefs"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=os.environ
        | {
            "_STATEFS_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "PYTHONPATH": str(Path(errors.__file__).parents[1]),
        },
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_folders(tmp_path: Path) -> None:
    """In bash's form: a kind, a comma, the word."""
    assert completions("statefs um", tmp_path) == ["plain,umount"]
    assert completions("statefs save --mes", tmp_path) == ["plain,--message"]
    assert completions("statefs list st", tmp_path) == ["dir,st"]


def test_the_shell_completes_mount_options(tmp_path: Path) -> None:
    """After a comma the next one."""
    assert completions("statefs mount state -o ro,allow_o", tmp_path) == ["plain,ro,allow_other"]
    assert "plain,durability=fsync" in completions("statefs mount state -o dur", tmp_path)


def test_the_shell_completes_snapshots(tmp_path: Path) -> None:
    """The second word of `show` is a snapshot of the first."""
    store = make_empty_store(tmp_path / "state.store")
    (store / "index.json").write_text('{"snapshots": [{"name": "2026-03-13T12-00-00Z"}]}')
    assert completions("statefs show state ", tmp_path) == [
        "plain,latest",
        "plain,2026-03-13T12-00-00Z",
    ]
    assert completions("statefs delete state 2026", tmp_path) == ["plain,2026-03-13T12-00-00Z"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_asks_statefs(shell: str) -> None:
    """The script sets the variable that makes statefs answer instead of run."""
    done = call_process("completion", shell)
    assert (done.exit_code, done.err) == (0, "")
    assert f"_STATEFS_COMPLETE={shell}_complete" in done.out
