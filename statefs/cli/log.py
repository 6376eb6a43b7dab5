"""`statefs log`: the versions of one file or folder."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.difference_view import print_versions
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_path, json_option, path_argument, store_option
from statefs.cli.output import plain, print_json
from statefs.cli.progress import shown_progress


@click.command(
    cls=ExplainedCommand,
    short_help="Show the versions of one file or folder.",
    examples=[
        "statefs log state files/config.json",
        "statefs log state volumes/db --digest",
        "statefs log state files/a --json | jq -r '.versions[].snapshot'",
    ],
)
@path_argument
@store_option
@click.option("--digest", is_flag=True, help="Show the SHA-256 of every version, however large.")
@json_option
def command(words: tuple[str, ...], store: Path | None, digest: bool, as_json: bool) -> None:
    """Show the versions of PATH over all snapshots of STATE and current, the newest last.

    PATH is relative to STATE/current: where it is now, or was last. Renames are followed to
    where nothing stood before. Each version is shown with the oldest snapshot that has it.
    """
    target, path = find_path(words, store)
    with api.open_target(target) as opened, shown_progress(as_json) as told:
        versions = opened.log(path, digests=True if digest else None, on_progress=told)
    if as_json:
        print_json({"versions": plain(versions)})
    else:
        print_versions(versions)
