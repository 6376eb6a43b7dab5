"""A program whose settings survive kills, power cuts and its own older versions.

python settings.py FOLDER                 show the settings
python settings.py FOLDER theme dark      change one of them
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from statefs.errors import StatefsError
from statefs.state import DocumentType, JsonStore


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What may be set, and what holds where nothing is."""

    theme: str = "light"
    font_size: int = 12


def renamed_colour(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 called the theme a colour."""
    values = document["values"]
    if "colour" in values:
        values["theme"] = values.pop("colour")
    return document


TYPES = {"settings": DocumentType(Settings, version=2, migrations={1: renamed_colour})}


def main(folder: str, key: str | None = None, value: str = "") -> None:
    """Change a setting, if one is named, and print all of them."""
    with JsonStore(folder, TYPES) as store:
        if key is not None:
            store.set("settings", key, int(value) if value.isdecimal() else value)
        settings = msgspec.convert(store.all("settings"), Settings)
    sys.stdout.write(json.dumps(msgspec.to_builtins(settings)) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StatefsError as error:
        sys.exit(f"settings: {error}")
