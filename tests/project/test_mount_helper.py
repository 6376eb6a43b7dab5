"""scripts/mount.fuse.statefs: what mount(8) and /etc/fstab say becomes a `statefs mount`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Cli
from tests.leftovers import mounts_below

ROOT: Final = Path(__file__).parents[2]
HELPER: Final = ROOT / "scripts" / "mount.fuse.statefs"
STUB: Final = """#!/bin/sh
printf '%s|' "$@" >> "$CALLS"
case "$1" in status) echo "statefs: error: $3 is not a store" >&2; exit 3 ;; esac
exit ${STUB_EXIT:-0}
"""
MOUNT_FAILURE: Final = 32
"""The exit code of mount(8) for a mount that failed."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What the helper takes for a store: a folder with a meta.db."""
    folder = tmp_path / "app.store"
    folder.mkdir()
    (folder / "meta.db").touch()
    return folder


def run_helper(
    tmp_path: Path, *arguments: str | Path, helper: Path | None = None, stub_exit: int = 0
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a copy of the helper that finds a stub of statefs in PATH; also return its calls."""
    program = tmp_path / "bin" / "statefs"
    program.parent.mkdir(exist_ok=True)
    write_stub(program)
    if helper is None:
        helper = tmp_path / HELPER.name
        shutil.copy(HELPER, helper)
    calls = tmp_path / "calls"
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "STUB_EXIT": str(stub_exit),
    }
    done = subprocess.run(
        [helper, *arguments], env=environment, capture_output=True, text=True, timeout=30
    )
    return done, calls.read_text() if calls.exists() else ""


def write_stub(program: Path) -> None:
    """Write a program that stands in for statefs and records how it is called."""
    program.write_text(STUB)
    program.chmod(0o755)


def test_a_line_of_fstab_becomes_a_mount(tmp_path: Path, store: Path) -> None:
    """Store, state and options go where `statefs mount` takes them; mount(8)'s own flags do not."""
    done, calls = run_helper(
        tmp_path, store, "/srv/app", "-sn", "-t", "fuse.statefs", "-o", "rw,allow_other"
    )
    assert done.returncode == 0, done.stderr
    assert calls == f"mount|/srv/app|--store|{store}|-o|rw,allow_other|"


def test_several_options_become_one_list(tmp_path: Path, store: Path) -> None:
    """Each -o adds to the others, and -r is the option ro."""
    _, calls = run_helper(tmp_path, store, "/srv/app", "-o", "noexec", "-r", "-o", "nofail")
    assert calls == f"mount|/srv/app|--store|{store}|-o|noexec,ro,nofail|"


def test_no_options_are_passed_on_as_none(tmp_path: Path, store: Path) -> None:
    """Without -o the mount has the defaults of statefs."""
    _, calls = run_helper(tmp_path, store, "/srv/app")
    assert calls == f"mount|/srv/app|--store|{store}|"


def test_a_dry_run_mounts_nothing(tmp_path: Path, store: Path) -> None:
    """`mount --fake` passes -f: everything is done but the mount."""
    done, calls = run_helper(tmp_path, store, "/srv/app", "-fv")
    assert (done.returncode, calls) == (0, "")


def test_a_store_that_is_missing_is_not_made(tmp_path: Path) -> None:
    """At boot a missing store is a missing disk: statefs says so, and nothing is mounted."""
    done, calls = run_helper(tmp_path, tmp_path / "gone", "/srv/app")
    assert done.returncode == MOUNT_FAILURE
    assert done.stderr == f"statefs: error: {tmp_path}/gone is not a store\n"
    assert calls == f"status|--store|{tmp_path}/gone|"


def test_a_mount_that_fails_has_the_exit_code_of_mount(tmp_path: Path, store: Path) -> None:
    """The exit codes of statefs would mean other things to mount(8)."""
    done, _ = run_helper(tmp_path, store, "/srv/app", stub_exit=6)
    assert done.returncode == MOUNT_FAILURE


@pytest.mark.parametrize(
    "arguments", [[], ["/store"], ["-o", "ro"], ["/store", "/state", "-x"], ["/a", "/b", "/c"]]
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    """A wrong call says how to call it, and calls nothing."""
    done, calls = run_helper(tmp_path, *arguments)
    assert (done.returncode, calls) == (1, "")
    assert done.stderr.count("\n") == 1 and "usage: mount.fuse.statefs STORE STATE" in done.stderr


def test_the_statefs_beside_the_helper_is_used(tmp_path: Path, store: Path) -> None:
    """The link in /sbin leads to a checkout, whose own .venv is taken before PATH."""
    checkout, sbin = tmp_path / "checkout", tmp_path / "sbin"
    for folder in (checkout / "scripts", checkout / ".venv" / "bin", sbin):
        folder.mkdir(parents=True)
    shutil.copy(HELPER, checkout / "scripts")
    own = checkout / ".venv" / "bin" / "statefs"
    write_stub(own)
    own.write_text(STUB.replace("printf '", "printf 'own:"))
    link = sbin / HELPER.name
    link.symlink_to(checkout / "scripts" / HELPER.name)
    _, calls = run_helper(tmp_path, store, "/srv/app", helper=link)
    assert calls.startswith("own:mount|")


def test_without_statefs_the_helper_says_what_to_do(tmp_path: Path, store: Path) -> None:
    """Neither beside the helper nor in PATH: one line that names `make setup`."""
    helper = tmp_path / HELPER.name
    shutil.copy(HELPER, helper)
    done = subprocess.run(
        [helper, store, "/srv/app"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "make setup" in done.stderr


@pytest.mark.mounted
def test_the_helper_mounts_a_real_store(tmp_path: Path, statefs_cli: Cli) -> None:
    """With the real program behind it, a store that `init` made is mounted as asked."""
    mount_point, folder = tmp_path / "state", tmp_path / "elsewhere.store"
    mount_point.mkdir()
    statefs_cli("init", mount_point, "--store", folder)
    if not (ROOT / ".venv" / "bin" / "statefs").exists():
        pytest.skip("statefs is not installed beside the scripts; run make setup")
    done = subprocess.run(
        [HELPER, folder, mount_point, "-t", "fuse.statefs", "-o", "rw,noexec,nofail"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (mount,) = mounts_below([mount_point])
    assert mount.source == str(folder) and "noexec" in mount.options
