"""`statefs cat`: the bytes of one file, as they are now or were."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_moment_and_path, moment_path_argument, store_option

ZEROS_BYTES: Final = 1 << 20
"""Zeros written at a time where a hole cannot be made."""


@click.command(
    cls=ExplainedCommand,
    short_help="Print a file as it was.",
    examples=[
        "statefs cat state latest files/config.json",
        "statefs cat state @-2h volumes/db/data.sqlite > old.sqlite",
        "cd state && statefs cat clean files/a | diff - current/files/a",
    ],
)
@moment_path_argument
@store_option
def command(words: tuple[str, ...], store: Path | None) -> None:
    """Write the bytes that the file PATH had in SNAPSHOT of STATE to standard output.

    PATH is relative to STATE/current; SNAPSHOT is what 'statefs show' takes, or current. Holes
    of a sparse file stay holes where the output is a file.
    """
    target, moment, path = find_moment_and_path(words, store)
    with api.open_target(target) as opened:
        write_sparse(opened.read_sparse(moment, path), sys.stdout.buffer)


def write_sparse(parts: Iterable[bytes | int], output: BinaryIO) -> None:
    """Write bytes and holes; a regular file that is not appended to gets real holes."""
    output.flush()
    can_skip = _can_skip(output)
    ends_in_hole = False
    for part in parts:
        if isinstance(part, bytes):
            output.write(part)
        elif can_skip:
            output.seek(part, os.SEEK_CUR)
        else:
            for left in range(part, 0, -ZEROS_BYTES):
                output.write(bytes(min(left, ZEROS_BYTES)))
        ends_in_hole = isinstance(part, int)
    output.flush()
    if ends_in_hole and can_skip:
        output.truncate()


def _can_skip(output: BinaryIO) -> bool:
    """Return whether what is skipped over reads as zeros: at the end of a regular file."""
    import fcntl

    try:
        number = output.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_APPEND:
            return False
        status = os.fstat(number)
        at_end = stat.S_ISREG(status.st_mode) and output.tell() >= status.st_size
    except OSError:  # a pipe, or what stands in for standard output in a test
        return False
    return at_end
