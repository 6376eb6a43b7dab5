"""Write the JSON Schemas of all documents into docs/, from the types in the code.

    .venv/bin/python scripts/make_schemas.py

tests/project/test_schemas.py fails when a schema in docs/ is not what this writes.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

import msgspec

from statefs.snapshots.documents import IndexDocument, SnapshotDocument
from statefs.snapshots.runtime import EnvironmentDocument, PortsDocument, ServiceStateDocument
from statefs.telemetry.events import AnyEvent
from statefs.telemetry.health import HealthDocument

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
TITLES: Final[dict[str, tuple[str, Any]]] = {
    "index.schema.json": ("statefs index.json", IndexDocument),
    "metadata.schema.json": ("statefs metadata.json", SnapshotDocument),
    "env.schema.json": ("statefs runtime/env.json", EnvironmentDocument),
    "ports.schema.json": ("statefs runtime/ports.json", PortsDocument),
    "service-state.schema.json": ("statefs runtime/service-state.json", ServiceStateDocument),
    "health.schema.json": ("statefs health --json", HealthDocument),
    "events.schema.json": ("a line of statefs events --json", AnyEvent),
}
"""File name -> the schema's title, and the type it is made from."""
NUMBER: Final = {
    "type": "integer",
    "description": "One more than that of the event before it in the same store.",
}
"""What each event that is kept has besides (statefs/telemetry/kept.py)."""


def schemas() -> dict[str, bytes]:
    """Return the content of each schema file by its name."""
    return {name: _schema(title, kind) for name, (title, kind) in TITLES.items()}


def _schema(title: str, kind: Any) -> bytes:
    schema: dict[str, Any] = {"$schema": DIALECT, "title": title, **msgspec.json.schema(kind)}
    for definition in schema["$defs"].values():
        if kind is AnyEvent:
            definition["properties"] = {"number": NUMBER, **definition["properties"]}
        if "description" in definition:  # Python 3.13 takes the indentation out of docstrings
            definition["description"] = inspect.cleandoc(definition["description"])
        # A value that is not known is null, never left out; msgspec takes a default for optional.
        definition["required"] = list(definition["properties"])
        for described in definition["properties"].values():
            described.pop("default", None)
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def main() -> None:
    """Write the files."""
    for name, content in schemas().items():
        (DOCS / name).write_bytes(content)
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
