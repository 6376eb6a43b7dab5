"""docs/*.schema.json follow the types in the code, and the documents of a store obey them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from scripts.make_schemas import schemas
from statefs.ids import TREE_ROOT
from statefs.maintenance.store import init_store, open_store
from statefs.snapshots.documents import Operation
from statefs.telemetry.events import AnyEvent
from statefs.telemetry.kept import KeptEvents
from statefs.volume.names import Creator
from tests.unit.cli_fakes import call

DOCS: Final = Path(__file__).parents[2] / "docs"
NAMES: Final = (
    "index.schema.json",
    "metadata.schema.json",
    "env.schema.json",
    "ports.schema.json",
    "service-state.schema.json",
    "health.schema.json",
    "events.schema.json",
)
SOME: Final[dict[Any, Any]] = {str: "x", int: 1, float: 0.5, bool: True, str | None: None}
"""A value of each type that a field of an event has."""
RESTORE: Final = Operation(kind="restore", phase="before", other="an id")
TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
    "null": type(None),
    "object": dict,
    "array": list,
}


def violations(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    """Yield what in `value` breaks `schema`, for the part of JSON Schema that ours use."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        if all(any(violations(value, one, definitions)) for one in schema["anyOf"]):
            yield f"{value!r} is none of {schema['anyOf']}"
        return
    if "enum" in schema or "const" in schema:
        known_values = schema.get("enum", [schema.get("const")])
        if value not in known_values:
            yield f"{value!r} is not in {known_values}"
        return
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield f"{value!r} is no {schema['type']}"
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (f"{key} is missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            described = known.get(key, schema.get("additionalProperties"))
            if described is None:
                yield f"{key} is not described"
            else:
                yield from violations(item, described, definitions)
    elif isinstance(value, list):
        for item in value:
            yield from violations(item, schema["items"], definitions)


def breaks(document: Any, name: str) -> list[str]:
    """Return what in a document breaks the schema of that name in docs/."""
    schema = json.loads((DOCS / name).read_bytes())
    return list(violations(document, schema, schema["$defs"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_in_docs_is_what_the_types_say(name: str) -> None:
    """Nobody changed a document's type without running scripts/make_schemas.py."""
    assert (DOCS / name).read_bytes() == schemas()[name]


def test_the_documents_of_a_store_obey_their_schemas(tmp_path: Path) -> None:
    """index.json before and after saves, and a metadata.json with and without a parent."""
    root = tmp_path / "state.store"
    init_store(root, app_id="com.example.shop")
    assert breaks(json.loads((root / "index.json").read_bytes()), "index.schema.json") == []
    store = open_store(root)
    try:
        volumes = store.volume.names.lookup(TREE_ROOT, b"volumes").ino
        store.volume.names.create(volumes, b"dbdata", 0o40755, Creator(0, 0))
        store.save("first", "manual", {})
        store.save("", "before-upgrade", {"name": "clean", "ticket": "17"})
        safety = store.catalog.snapshots[-1]._replace(operation=RESTORE)
        assert breaks(msgspec.to_builtins(safety.document()), "metadata.schema.json") == []
    finally:
        store.close()
    index = json.loads((root / "index.json").read_bytes())
    assert [entry["message"] for entry in index["snapshots"]] == ["first", ""]
    assert breaks(index, "index.schema.json") == []
    documents = [json.loads(path.read_bytes()) for path in (root / "snapshots").iterdir()]
    assert len(documents) == 2
    for document in documents:
        assert [volume["name"] for volume in document["volumeManifests"]] == ["dbdata"]
        assert breaks(document, "metadata.schema.json") == []


@pytest.mark.parametrize("name", ["env", "ports", "service-state"])
def test_a_new_store_has_the_documents_of_runtime(tmp_path: Path, name: str) -> None:
    """Each is there, empty, and obeys its schema; a snapshot counts none of them."""
    init_store(tmp_path / "state.store")
    store = open_store(tmp_path / "state.store")
    try:
        runtime = store.volume.names.lookup(TREE_ROOT, b"runtime")
        file = store.volume.names.lookup(runtime.ino, f"{name}.json".encode())
        content = store.volume.data.plan_read(file.ino, 0, file.size)
        assert (store.status()["files"], store.save("", "manual", {})["files"]) == (3, 0)
    finally:
        store.close()
    assert isinstance(content, bytes)
    document = json.loads(content)
    assert breaks(document, f"{name}.schema.json") == []
    assert list(document.values()) in ([1, {}], [1, []])


def test_filled_documents_of_runtime_obey_their_schemas() -> None:
    """As a supervisor would write them; an unknown status or protocol breaks the schema."""
    env = {"formatVersion": 1, "services": {"web": {"PORT": "80"}}}
    port = {"service": "web", "containerPort": 80, "hostPort": 8080, "protocol": "tcp"}
    state = {"status": "running", "containerId": "a1", "startedAt": None, "restartCount": 0}
    assert breaks(env, "env.schema.json") == []
    for protocol, problems in (("tcp", 0), ("smoke", 1)):
        ports = {"formatVersion": 1, "mappings": [port | {"protocol": protocol}]}
        assert len(breaks(ports, "ports.schema.json")) == problems
    for status, problems in (("failed", 0), ("bored", 1)):
        states = {"formatVersion": 1, "services": {"web": state | {"status": status}}}
        assert len(breaks(states, "service-state.schema.json")) == problems


def test_what_health_and_events_print_obeys_its_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a state that is not well, with events of its own, and of each kind that there can be."""
    state = tmp_path / "state"
    assert call(capsys, "init", state).exit_code == 0
    assert call(capsys, "save", state).exit_code == 0
    health = json.loads(call(capsys, "health", state, "--json").out)
    assert breaks(health, "health.schema.json") == []
    assert breaks(health | {"ok": "no"}, "health.schema.json") != []
    lines = call(capsys, "events", state, "--json").out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["state:saved"]
    for line in lines:
        assert breaks(json.loads(line), "events.schema.json") == []
    kept = KeptEvents(tmp_path / "events.jsonl")
    for kind in AnyEvent.__args__:
        fields = {each.name: each.type for each in msgspec.structs.fields(kind)}
        kept.keep(kind(**{name: SOME[wanted] for name, wanted in fields.items()}))
    assert len(kept.after(0)) == len(AnyEvent.__args__)
    for document in kept.after(0):
        assert breaks(document, "events.schema.json") == []
        assert breaks({**document, "event": "state:bored"}, "events.schema.json") != []
        assert breaks({**document, "number": None}, "events.schema.json") != []


@pytest.mark.parametrize(
    ("key", "value"), [("reason", "boredom"), ("files", "many"), ("labels", None), ("size", 1)]
)
def test_a_wrong_document_breaks_its_schema(key: str, value: object) -> None:
    """A value of another type, an unknown reason, a key nobody describes: each is seen."""
    document: dict[str, object] = {
        "snapshotId": "a", "name": "b", "timestamp": "c", "parentSnapshotId": None,
        "reason": "manual", "message": "", "labels": {}, "appVersion": "1", "formatVersion": 1,
        "stateDigest": None, "volumeManifests": [], "files": 0, "bytes": 0, "sealed": False,
        "operation": None, "pin": None,
    }  # fmt: skip
    assert breaks(document, "metadata.schema.json") == []
    assert breaks(document | {key: value}, "metadata.schema.json") != []
