"""What lies in the folder of a store of journaled sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from statefs.state import SessionStore


def place(store: SessionStore, id_: str = "one") -> Path:
    """Return the folder of a session."""
    return store.folder / "sessions" / id_


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, but for locks, which say who has them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def values(journal: Path) -> list[Any]:
    """Return what the records of a journal say."""
    return [json.loads(line.split(" ", 2)[2]) for line in journal.read_text().splitlines()]
