"""How a snapshot's document is shown to people: as a row of a list, as facts, in one phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from statefs.cli.output import Column, print_facts, print_line, print_table
from statefs.units import count_text, local_text, since_text, size_text

LIST_COLUMNS = (
    Column("snapshot", style="bold cyan"),
    Column("taken", drop_rank=2),
    Column("age"),
    Column("files", align_right=True, drop_rank=3),
    Column("size", align_right=True, drop_rank=4),
    Column("frees", align_right=True),
    Column("reason", drop_rank=1),
    Column("pinned", may_shorten=True),
    Column("unsealable", style="red", may_shorten=True),
    Column("labels", style="green", may_shorten=True),
    Column("message", may_shorten=True),
)

_VOLUME_COLUMNS = (
    Column("volume", style="bold"),
    Column("consistency"),
    Column("format"),
    Column("size", align_right=True),
    Column("dump", may_shorten=True),
    Column("digest", may_shorten=True),
)


def labels_text(labels: Mapping[str, str] | None) -> str:
    """Return labels as they are typed: `name=first, k=v`."""
    return ", ".join(f"{key}={value}" for key, value in (labels or {}).items())


def pin_text(pin: Mapping[str, Any] | None) -> str:
    """Return who pinned a snapshot, until when and why; empty where nobody did."""
    if pin is None:
        return ""
    until = f" until {local_text(pin['until'])}" if pin["until"] else ""
    return f"pinned by {pin['by']}{until}: {pin['reason']}"


def sealed_text(snapshot: Mapping[str, Any]) -> str:
    """Return whether a snapshot has its digests, and if it will never have them, why."""
    if snapshot["sealed"]:
        return "yes"
    why = snapshot["unsealable"]
    return f"no, it cannot be: {why}" if why else "not yet"


def list_row(snapshot: Mapping[str, Any], now_seconds: float) -> list[str]:
    """Return the cells of one snapshot, in the order of LIST_COLUMNS."""
    message = str(snapshot["message"] or "")
    return [
        str(snapshot["name"]),
        local_text(snapshot["timestamp"]),
        since_text(snapshot["timestamp"], now_seconds),
        count_text(snapshot["files"]),
        size_text(snapshot["bytes"]),
        "" if snapshot.get("freedBytes") is None else size_text(snapshot["freedBytes"]),
        str(snapshot["reason"] or ""),
        pin_text(snapshot["pin"]).removeprefix("pinned "),
        str(snapshot["unsealable"] or ""),
        labels_text(snapshot["labels"]),
        message.split("\n", 1)[0],
    ]


def print_list(snapshots: Sequence[Mapping[str, Any]], now_seconds: float) -> None:
    """Print snapshots as a table, in the order given."""
    print_table(LIST_COLUMNS, [list_row(snapshot, now_seconds) for snapshot in snapshots])


def print_snapshot(snapshot: Mapping[str, Any], folder: str, now_seconds: float) -> None:
    """Print all that is known of one snapshot.

    Args:
        snapshot: its document.
        folder: where its files are to be seen now; empty where nothing is mounted.
        now_seconds: the present, in seconds since 1970.
    """
    timestamp = snapshot["timestamp"]
    age = since_text(timestamp, now_seconds)
    print_facts(
        [
            ("Snapshot", str(snapshot["name"])),
            ("Taken", f"{local_text(timestamp, with_zone=True)}" + (f" ({age})" if age else "")),
            ("Reason", str(snapshot["reason"] or "")),
            ("Message", str(snapshot["message"] or "")),
            ("Labels", labels_text(snapshot["labels"])),
            ("Pinned", pin_text(snapshot["pin"]).removeprefix("pinned ")),
            ("Files", count_text(snapshot["files"])),
            ("Size", size_text(snapshot["bytes"])),
            ("Folder", folder),
            ("Id", str(snapshot["snapshotId"])),
            ("Parent", str(snapshot["parentSnapshotId"] or "")),
            ("Digest", str(snapshot["stateDigest"] or "")),
            ("Sealed", sealed_text(snapshot)),
            ("App version", str(snapshot["appVersion"] or "")),
            ("Metadata", f"format {snapshot['formatVersion']}"),
        ]
    )
    volumes = _volume_rows(snapshot["volumeManifests"])
    if volumes:
        print_facts([("Volumes", str(len(volumes)))])
        print_table(_VOLUME_COLUMNS, volumes)
    for manifest in snapshot["volumeManifests"]:
        for note in manifest["notes"]:
            print_line(f"{manifest['name']}: {note}")


def _volume_rows(manifests: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            str(manifest["name"]),
            str(manifest["consistency"]),
            str(manifest["format"]),
            "" if manifest["bytes"] is None else size_text(manifest["bytes"]),
            _dump_text(manifest["dump"]),
            str(manifest["digest"] or ""),
        ]
        for manifest in manifests
    ]


def _dump_text(dump: Mapping[str, Any] | None) -> str:
    return "" if dump is None else f"{dump['path']} ({size_text(dump['bytes'])})"


def phrase(snapshot: Mapping[str, Any]) -> str:
    """Return one phrase that names a snapshot and says what it held."""
    files = "1 file" if snapshot["files"] == 1 else f"{count_text(snapshot['files'])} files"
    details = [files, size_text(snapshot["bytes"])]
    labels = labels_text(snapshot["labels"])
    if labels:
        details.append(labels)
    message = str(snapshot["message"] or "").split("\n", 1)[0]
    if message:
        details.append(f'"{message}"')
    return f"{snapshot['name']} ({', '.join(details)})"
