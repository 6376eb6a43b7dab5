"""Folders of a `DeployState`, and those with states of Terraform, in `statefs state`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from statefs.cli.output import Column, plain
from statefs.cli.state_kinds.kind import Kind, Listing
from statefs.clock import iso_time
from statefs.state import deploy_checking
from statefs.state.deploy_checking import StateKind
from statefs.state.operation_lock import held_text
from statefs.units import count_text, local_text, size_text


def listed(kind: StateKind, folder: Path) -> Listing:
    """Return the states, in the order of the alphabet."""
    entries = deploy_checking.list_states(kind, folder)
    columns = [
        Column("state", style="bold", may_shorten=True),
        Column("project", may_shorten=True),
        Column("serial", align_right=True),
        Column("resources", align_right=True),
        Column("size", align_right=True, drop_rank=1),
        Column("copies", align_right=True, drop_rank=2),
        Column("changed", drop_rank=3),
        Column("locked by", may_shorten=True),
        Column("damage", style="red", may_shorten=True),
    ]
    return Listing(
        [row_of(each) for each in entries], columns, [cells_of(each) for each in entries]
    )


def row_of(entry: deploy_checking.Entry) -> dict[str, Any]:
    """Return one state of the list as JSON shows it."""
    return {
        "name": entry.name,
        "project": entry.project,
        "lineage": entry.lineage,
        "serial": entry.serial,
        "resources": entry.resources,
        "bytes": entry.bytes,
        "changed": None if entry.changed_ns is None else iso_time(entry.changed_ns),
        "copies": entry.copies,
        "lock": None if entry.lock is None else plain(entry.lock),
        "damage": entry.damage,
    }


def cells_of(entry: deploy_checking.Entry) -> list[str]:
    """Return one state of the list as cells of the table."""
    return [
        entry.name,
        entry.project or "",
        "" if entry.serial is None else str(entry.serial),
        "" if entry.resources is None else count_text(entry.resources),
        size_text(entry.bytes),
        str(entry.copies),
        "" if entry.changed_ns is None else local_text(iso_time(entry.changed_ns)),
        "" if entry.lock is None else held_text(entry.lock),
        entry.damage or "",
    ]


def kind_of(entries: str, is_in: Callable[[Path], bool], states: StateKind) -> Kind:
    """Return the entry of a kind of state in the registry."""
    return Kind(
        entries=entries,
        is_in=is_in,
        listed=partial(listed, states),
        shown=partial(deploy_checking.show_state, states),
        check=partial(deploy_checking.check_states, states),
        repair=partial(deploy_checking.repair_states, states),
        unlock=partial(deploy_checking.unlock_state, states),
    )


DEPLOYS = kind_of("deploys", deploy_checking.is_deploys, deploy_checking.DEPLOYS)
TERRAFORM = kind_of("terraform", deploy_checking.is_terraform, deploy_checking.TERRAFORM)
