"""The documents of runtime/: what whoever runs the services keeps there about them.

`statefs init` makes them empty; statefs itself never reads or changes them afterwards. They are no
user data: snapshots and restore leave runtime/ out. docs/env.schema.json, docs/ports.schema.json
and docs/service-state.schema.json are made from these types.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

RUNTIME_FORMAT_VERSION: Final = 1
"""formatVersion of the three documents."""

Protocol = Literal["tcp", "udp", "sctp"]
Status = Literal["stopped", "starting", "running", "stopping", "failed"]


class EnvironmentDocument(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """env.json: the resolved environment of each service by its name, secrets left out."""

    format_version: int = RUNTIME_FORMAT_VERSION
    services: dict[str, dict[str, str]]


class PortMapping(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """One port of a service's container, and the port of the host that leads to it."""

    service: str
    container_port: int
    host_port: int
    protocol: Protocol = "tcp"


class PortsDocument(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """ports.json: the ports by which services are reached."""

    format_version: int = RUNTIME_FORMAT_VERSION
    mappings: list[PortMapping]


class ServiceState(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """What one service is doing; the time is ISO 8601 in UTC."""

    status: Status
    container_id: str | None = None
    started_at: str | None = None
    restart_count: int = 0


class ServiceStateDocument(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """service-state.json: what each service is doing, by its name."""

    format_version: int = RUNTIME_FORMAT_VERSION
    services: dict[str, ServiceState]


NEW_DOCUMENTS: Final[dict[str, msgspec.Struct]] = {
    "env.json": EnvironmentDocument(services={}),
    "ports.json": PortsDocument(mappings=[]),
    "service-state.json": ServiceStateDocument(services={}),
}
"""What lies in runtime/ of a new store: file name -> empty document."""
