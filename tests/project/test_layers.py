"""The architecture is machine-checked: who imports whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ENGINE: Final = (
    "apsw",
    "pyfuse3",
    "trio",
    "statefs.content",
    "statefs.fuse",
    "statefs.maintenance",
    "statefs.metadata",
    "statefs.snapshots",
    "statefs.volume",
)
"""What opens stores and serves mounts: slow to import, and not needed to ask a daemon."""


def test_each_layer_imports_only_lower_ones() -> None:
    """The contracts in pyproject.toml hold: the layers, and who may use pyfuse3 and trio."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module", ["statefs.cli", "statefs.__main__", "statefs.control.client", "statefs.state"]
)
def test_the_command_line_starts_without_the_engine(module: str) -> None:
    """Importing the CLI, the daemon's client or the stores loads no database or async library."""
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert module in loaded
    assert [name for name in loaded if name.startswith(ENGINE)] == []


def test_the_supervisor_is_small() -> None:
    """Of all that serves a mount it loads what it says to the kernel at the beginning, no more."""
    program = "import sys, statefs.daemon.supervisor; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {name for name in done.stdout.split() if name.startswith(ENGINE)}
    assert found == {"statefs.fuse", "statefs.fuse.handshake"}
