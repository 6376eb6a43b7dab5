"""How differences and versions are shown to people: a line each, counts, text diffs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import click

from statefs.cli.output import Column, print_table
from statefs.errors import NoSuchPath, UsageError
from statefs.units import count_text, local_text, printable, size_text

if TYPE_CHECKING:
    from statefs.api import State
    from statefs.snapshots.reports import Comparison, Difference, Kind, Version

LETTERS: Final[dict[Kind, tuple[str, str]]] = {
    "added": ("A", "green"),
    "removed": ("D", "red"),
    "modified": ("M", "yellow"),
    "renamed": ("R", "cyan"),
    "metadata": ("m", "blue"),
}
"""The letter of each kind, as git has them, and its colour on a terminal."""
TEXT_BYTES_MAX: Final = 1 << 20
"""A larger file is not compared line by line: that may take a minute, and nobody reads it."""
_STAT_COLUMNS: Final = (
    Column("kind"),
    Column("count", align_right=True),
    Column("before", align_right=True),
    Column("after", align_right=True),
)
_HEADER_LINES: Final = 2
"""Of a unified diff: the names of both sides."""
_NO_NEWLINE: Final = "\\ No newline at end of file"


def is_coloured() -> bool:
    """Return whether standard output is a terminal that may show colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_differences(differences: Iterable[Difference]) -> None:
    """Print one line for each difference: its letter, the path, what changed."""
    has_colour = is_coloured()
    for each in differences:
        letter, colour = LETTERS[each.kind]
        text = f"{letter}  {path_phrase(each)}"
        click.echo(click.style(text, fg=colour) if has_colour else text)


def path_phrase(each: Difference) -> str:
    """Return the path of a difference, where it was before, and what changed besides."""
    path = printable(each.path) + ("/" if each.type == "folder" else "")
    if each.path_before is not None:
        was_folder = (each.type_before or each.type) == "folder"
        path = f"{printable(each.path_before)}{'/' if was_folder else ''} -> {path}"
    details = changed_phrase(each)
    return f"{path} ({details})" if details else path


def changed_phrase(each: Difference) -> str:
    """Return what changed where the letter alone does not say it."""
    if each.kind == "modified" and each.type_before is None:
        # The content, as the letter says; and the time of that goes without saying.
        return ", ".join(word for word in each.changed if word not in ("content", "mtime"))
    words: list[str] = [
        word for word in each.changed if word != "mtime" or each.changed == ["mtime"]
    ]
    if each.type_before is not None:
        words[words.index("type")] = f"was a {each.type_before}"
    return ", ".join(words)


def print_stat(comparison: Comparison) -> None:
    """Print how much differs in each way, and all of it in one line."""
    rows = [
        [kind, count_text(each.count), size_text(each.bytes_before), size_text(each.bytes)]
        for kind, each in comparison.stat.items()
        if each.count
    ]
    if rows:
        print_table(_STAT_COLUMNS, rows)
    click.echo(summary(comparison))


def summary(comparison: Comparison) -> str:
    """Return one line: how many differences, and by how much the bytes grew or shrank."""
    total = sum(each.count for each in comparison.stat.values())
    if not total:
        return "no differences"
    grown = sum(each.bytes - each.bytes_before for each in comparison.stat.values())
    noun = "difference" if total == 1 else "differences"
    sign = "-" if grown < 0 else "+"
    return f"{count_text(total)} {noun}, {sign}{size_text(abs(grown))}"


def print_contents(state: State, comparison: Comparison) -> None:
    """Print a text diff of each file whose content differs, or that one side alone has."""
    is_terminal = sys.stdout.isatty()
    # What took the place of such a file is shown with it, as one change of what the path leads to.
    removed = {
        (each.path, each.raw_path)
        for each in comparison.differences
        if each.kind == "removed" and each.type == "file"
    }
    for each in comparison.differences:
        is_file = each.type == "file" and each.type_before is None
        if each.kind != "removed" and (each.path, each.raw_path) in removed:
            continue
        if is_file and ("content" in each.changed or each.kind in ("added", "removed")):
            for line in content_lines(state, comparison, each):
                click.echo(_coloured(line) if is_terminal else line)


def content_lines(state: State, comparison: Comparison, each: Difference) -> Iterator[str]:
    """Yield the lines of one file's unified diff, or one that says why there is none.

    What was added or removed is compared with what else the other side has at the path, if any:
    where a file was renamed over another, that was removed.
    """
    import difflib

    from statefs.snapshots.reports import path_bytes

    path = path_bytes(each.path, each.raw_path)
    before = path
    if each.path_before is not None:
        before = path_bytes(each.path_before, each.raw_path_before)
    name = printable(each.path)
    is_large = max(each.size or 0, each.size_before or 0) > TEXT_BYTES_MAX
    contents = []
    if not is_large:
        contents = [
            _content_at(state, comparison.older, before, each.kind == "added"),
            _content_at(state, comparison.newer, path, each.kind == "removed"),
        ]
        is_large = max(map(len, contents)) > TEXT_BYTES_MAX
    if is_large:
        yield f"{name}: larger than {size_text(TEXT_BYTES_MAX)}, not compared line by line"
        return
    texts = [text_of(content) for content in contents]
    if texts[0] is None or texts[1] is None:
        yield f"{name}: binary files differ"
        return
    names = f"{comparison.older}/{printable(each.path_before or each.path)}"
    lines = difflib.unified_diff(
        texts[0], texts[1], names, f"{comparison.newer}/{name}", lineterm=""
    )
    for number, line in enumerate(lines):
        yield line.removesuffix("\n")
        is_text = number >= _HEADER_LINES and not line.startswith("@@")
        if is_text and not line.endswith("\n"):
            yield _NO_NEWLINE


def _content_at(state: State, moment: str, path: bytes, may_be_missing: bool) -> bytes:
    """Return a file's bytes, of a large one only so many as show that it is.

    Args:
        may_be_missing: return nothing where the path leads to no file.

    Raises:
        As `State.read`.
    """
    content = bytearray()
    try:
        for part in state.read(moment, path):
            content += part
            if len(content) > TEXT_BYTES_MAX:
                break
    except (NoSuchPath, UsageError):
        if not may_be_missing:
            raise
    return bytes(content)


def text_of(data: bytes) -> list[str] | None:
    """Return the lines of a text, each with its newline; None for what is no text."""
    if b"\0" in data:
        return None
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        return None
    last = lines.pop()
    return [*(f"{line}\n" for line in lines), *([last] if last else [])]


def _coloured(line: str) -> str:
    """Return a line of a diff as a terminal shows it, with nothing in it that it might obey."""
    shown = "".join(char if char == "\t" else printable(char) for char in line)
    colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
    return click.style(shown, fg=colour) if colour else shown


_VERSION_COLUMNS: Final = (
    Column("snapshot", style="bold cyan"),
    Column("taken", drop_rank=2),
    Column("change"),
    Column("mode", drop_rank=1),
    Column("size", align_right=True),
    Column("sha256", may_shorten=True),
    Column("path", may_shorten=True),
)
DIGEST_DIGITS: Final = 16
"""Of a SHA-256, enough to tell versions apart; --json has all of it."""


def print_versions(versions: Iterable[Version]) -> None:
    """Print versions as a table, in the order given."""
    print_table(_VERSION_COLUMNS, [version_row(each) for each in versions])


def version_row(version: Version) -> list[str]:
    """Return the cells of one version, in the order of the columns."""
    details = ", ".join(version.changed)
    path = printable(version.path)
    if version.path_before is not None:
        path = f"{printable(version.path_before)} -> {path}"
    return [
        version.snapshot,
        "" if version.timestamp is None else local_text(version.timestamp),
        f"{version.kind} ({details})" if details else version.kind,
        version.mode or "",
        "" if version.size is None else size_text(version.size),
        (version.sha256 or "")[:DIGEST_DIGITS],
        path,
    ]
