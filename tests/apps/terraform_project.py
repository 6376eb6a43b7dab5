"""A folder with a configuration for Terraform or OpenTofu, whichever is installed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.apps.programs import RUN_SECONDS, Word, started

PROGRAM: Final = shutil.which("terraform") or shutil.which("tofu")
needs_terraform: Final = pytest.mark.skipif(
    PROGRAM is None, reason="not installed: terraform, or tofu"
)
RESOURCES: Final = """
variable "release" {}

resource "terraform_data" "part" {
  count = 12
  input = "${var.release}-${count.index}"
}

output "parts" {
  value = terraform_data.part[*].output
}
"""
"""Of the provider that is built into the program: nothing is downloaded."""
WAITING: Final = """
resource "terraform_data" "waiting" {
  input = var.release
  triggers_replace = var.release
  provisioner "local-exec" {
    command = "echo > '%(begun)s'; cat '%(go)s' > /dev/null"
  }
}
"""
"""Says that an apply is under way, through one pipe, and ends when it can read from the other."""


@dataclass
class Project:
    """One checkout of a configuration.

    Args:
        folder: of it.
        token: for the HTTP backend.
    """

    folder: Path
    token: str = ""

    def write(self, backend: str, *parts: str) -> None:
        """Write the configuration, and initialise it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = f"terraform {{\n  {backend}\n}}\n"
        (self.folder / "main.tf").write_text(text + "".join(parts))
        done = self.run("init")
        assert done.returncode == 0, done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the program with some arguments, and return what it said."""
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )

    def apply(self, release: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Bring everything to a release."""
        return self.run("apply", "-auto-approve", *words, f"-var=release={release}")

    def command(self, *words: str) -> list[str]:
        """Return a command line of the program."""
        return [PROGRAM or "terraform", *words[0].split(), "-no-color", *words[1:]]

    def environment(self) -> dict[str, str]:
        """Return an environment in which the program asks nobody, and calls nobody up."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "CHECKPOINT_DISABLE": "1",
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
            "TF_HTTP_USERNAME": "me" if self.token else "",
            "TF_HTTP_PASSWORD": self.token,
            "TF_HTTP_RETRY_WAIT_MIN": "1",
        }

    @contextmanager
    def applying(self, release: str) -> Iterator[subprocess.Popen[bytes]]:
        """Bring everything to a release beside the block; what it has started ends with it."""
        with open(self.folder / "apply.log", "ab") as log:
            process = subprocess.Popen(
                self.command("apply", "-auto-approve", f"-var=release={release}"),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended, and all that it has started
            process.wait(RUN_SECONDS)


@dataclass
class Pipes:
    """The two pipes of WAITING.

    Args:
        folder: they lie in.
    """

    folder: Path

    def make(self) -> None:
        """Make both."""
        for path in (self.begun, self.go):
            os.mkfifo(path)

    @property
    def begun(self) -> Path:
        """Can be read from when an apply is under way."""
        return self.folder / "begun"

    @property
    def go(self) -> Path:
        """An apply ends when this was written to."""
        return self.folder / "go"

    def configuration(self) -> str:
        """Return the resource that waits."""
        return WAITING % {"begun": self.begun, "go": self.go}

    def wait_until_begun(self) -> None:
        """Wait until an apply is under way."""
        assert self.begun.read_text() == "\n"

    def let_go(self) -> None:
        """Let an apply that waits end."""
        self.go.write_text("go\n")


class Served(NamedTuple):
    """A server that runs.

    Args:
        url: what stands before the names of states.
        process: that serves.
    """

    url: str
    process: subprocess.Popen[bytes]


@dataclass
class Server:
    """`statefs serve-http`, in a process of its own.

    Args:
        folder: it serves.
        token_file: with its token, made by it.
        log: takes what it says.
    """

    folder: Path
    token_file: Path
    log: Path

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[Served]:
        """Serve until the end of the block, or until it is killed there."""
        words: Sequence[Word] = (
            sys.executable, "-m", "statefs", "serve-http", self.folder, "--port", str(port),
            "--token-file", self.token_file,
        )  # fmt: skip
        with started(*words, log=self.log, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with process.stdout:
                timer = threading.Timer(RUN_SECONDS, process.kill)
                timer.start()
                line = process.stdout.readline().decode()
                timer.cancel()
            assert "is served at http://" in line, self.log.read_text()
            yield Served(line.rpartition(" ")[2].strip().removesuffix("NAME"), process)
            process.terminate()
            assert process.wait(RUN_SECONDS) in (0, -signal.SIGKILL)

    def token(self) -> str:
        """Return the token."""
        return self.token_file.read_text().strip()


def steady_port() -> int:
    """Return a free port that stays free while its server is away: the kernel gives it to nobody.

    Source: ip(7), ip_local_port_range, which begins above these.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("of a hundred ports none is free")


def http_backend(url: str, name: str) -> str:
    """Return the backend that a configuration names."""
    address = f"{url}{name}"
    return (
        f'backend "http" {{\n    address = "{address}"\n    lock_address = "{address}"\n'
        f'    unlock_address = "{address}"\n  }}'
    )
