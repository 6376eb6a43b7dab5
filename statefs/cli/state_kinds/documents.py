"""Folders of a `JsonStore` or an `EncryptedJsonStore` in `statefs state`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from statefs.cli.output import Column
from statefs.cli.state_kinds.kind import Kind, Listing
from statefs.clock import iso_time
from statefs.state import checking
from statefs.state.deploy_checking import is_deploys
from statefs.state.json_store import SUFFIX
from statefs.state.task_checking import has_tasks
from statefs.units import count_text, local_text, size_text


def has_documents(folder: Path) -> bool:
    """Return whether there is a document or a keyring, whatever its name and state.

    A folder of deploy states or of tasks is none: no program can have a folder open as both.
    """
    if is_deploys(folder) or has_tasks(folder):
        return False
    return checking.is_encrypted(folder) or any(folder.glob(f"*{SUFFIX}"))


def listed(folder: Path) -> Listing:
    """Return the documents, in the order of the alphabet."""
    entries = checking.list_documents(folder)
    columns = [
        Column("name", style="bold", may_shorten=True),
        Column("keys", align_right=True),
        Column("size", align_right=True),
        Column("copies", align_right=True, drop_rank=1),
        Column("changed", drop_rank=2),
        Column("damage", style="red", may_shorten=True),
    ]
    return Listing(
        [row_of(each) for each in entries], columns, [cells_of(each) for each in entries]
    )


def row_of(entry: checking.Entry) -> dict[str, Any]:
    """Return one document of the list as JSON shows it."""
    return {
        "name": entry.name,
        "encrypted": entry.encrypted,
        "keys": entry.keys,
        "bytes": entry.bytes,
        "changed": iso_time(entry.changed_ns),
        "copies": entry.copies,
        "damage": entry.damage,
    }


def cells_of(entry: checking.Entry) -> list[str]:
    """Return one document of the list as cells of the table."""
    return [
        entry.name,
        keys_text(entry),
        size_text(entry.bytes),
        str(entry.copies),
        local_text(iso_time(entry.changed_ns)),
        entry.damage or "",
    ]


def keys_text(entry: checking.Entry) -> str:
    """Return how many keys a document has, or why nobody can say."""
    if entry.keys is not None:
        return count_text(entry.keys)
    return "encrypted" if entry.encrypted else ""


DOCUMENTS = Kind(
    entries="documents",
    is_in=has_documents,
    listed=listed,
    shown=checking.show_document,
    check=checking.check_documents,
    repair=checking.repair_documents,
)
