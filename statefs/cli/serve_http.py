"""`statefs serve-http`: the HTTP backend of Terraform and OpenTofu."""

from __future__ import annotations

import logging
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import FOLDER, TEXT
from statefs.cli.output import print_line
from statefs.durable import write_file
from statefs.errors import UsageError, refusal

if TYPE_CHECKING:
    from types import FrameType

TOKEN_BYTES: Final = 32
TOKEN_LENGTH_MIN: Final = 16
"""Characters: what nobody guesses."""


@click.command(
    cls=ExplainedCommand,
    short_help="Serve a folder of Terraform or OpenTofu states over HTTP.",
    examples=[
        "statefs serve-http state/current/files/terraform --token-file ~/.tf-token",
        "statefs serve-http /srv/terraform --token-file /etc/statefs/token --port 8090",
    ],
)
@click.argument("folder", type=FOLDER, metavar="FOLDER")
@click.option(
    "--host",
    type=TEXT,
    default="127.0.0.1",
    show_default=True,
    help="Address to serve on; one that other machines reach needs a token.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8390, show_default=True, help="0: a free one."
)
@click.option(
    "--token-file",
    type=FOLDER,
    metavar="FILE",
    help="The token that requests need as password; made where there is none.",
)
def command(folder: Path, host: str, port: int, token_file: Path | None) -> None:
    """Serve the states in FOLDER to the backend "http" of Terraform and OpenTofu, with locks.

    Runs until SIGTERM or Ctrl-C. Each state has an address of its own, below the one that is
    printed. Every version is kept: as a snapshot where FOLDER lies in a mounted state, to be seen
    with 'statefs log', else the last ten as copies.
    """
    from statefs.state.http_backend import StateServer, require_safe_address

    require_safe_address(host, None if token_file is None else "")
    token = None if token_file is None else token_in(token_file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        server = StateServer(folder, host=host, port=port, token=token)
    except OSError as error:
        raise refusal(error, f"{host} port {port}") from None
    signal.signal(signal.SIGTERM, end)
    with server:
        print_line(f"{folder} is served at {server.url}NAME")
        sys.stdout.flush()
        if token is None:
            click.echo("statefs: warning: without --token-file every user here may ask", err=True)
        server.serve_forever()


def end(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the server; what is being answered is answered first."""
    sys.exit(0)


def token_in(path: Path) -> str:
    """Return the token in a file; a new one, made at random, where there is no file.

    Raises:
        UsageError: others may read it, or it is too short or no ASCII.
        OSError: it cannot be read or made.
    """
    from statefs.state.keyring import read_secret

    if not path.exists():
        write_file(path, f"{secrets.token_urlsafe(TOKEN_BYTES)}\n".encode())
    token = read_secret(path, f"the token file {path}").strip()
    if len(token) < TOKEN_LENGTH_MIN or not token.isascii() or not token.decode().isprintable():
        raise UsageError(
            f"the token in {path} is no text of {TOKEN_LENGTH_MIN} ASCII characters or more"
        )
    return token.decode()
