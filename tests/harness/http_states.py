"""A server of states in this process, and a client that asks as Terraform does."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from statefs.state.http_backend import LOCALHOST, StateServer

SECONDS: Final = 20.0
LINEAGE: Final = "3b1c4f0e-6b1d-4b55-9d7b-0a4f2f7d9c11"


class Answer(NamedTuple):
    """What a server has answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@contextmanager
def serving(folder: Path, token: str | None = None, **options: Any) -> Iterator[StateServer]:
    """Serve a folder on a free port, until the end of the block."""
    with StateServer(folder, port=0, token=token, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: StateServer,
    method: str,
    path: str = "/states/shop",
    body: bytes | None = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request as Terraform's client does: with type, length and MD5 of what it sends."""
    sent = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
    if body is not None:
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        sent |= {"Content-Type": "application/json", "Content-MD5": digest}
        sent["Content-Length"] = str(len(body))
    if token is not None:
        sent["Authorization"] = f"Basic {base64.b64encode(f'me:{token}'.encode()).decode()}"
    connection = http.client.HTTPConnection(LOCALHOST, server.server_port, timeout=SECONDS)
    try:
        connection.request(method, path, body, {**sent, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.read(), dict(response.getheaders()))
    finally:
        connection.close()


def terraform_state(serial: int, lineage: str = LINEAGE, resources: int = 1) -> bytes:
    """Return a state as Terraform writes it."""
    found = [{"mode": "managed", "type": "t", "name": f"r{n}"} for n in range(resources)]
    document = {
        "version": 4,
        "terraform_version": "1.11.4",
        "serial": serial,
        "lineage": lineage,
        "outputs": {},
        "resources": found,
        "check_results": None,
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def lock_info(id_: str = "5f1c7c6e", operation: str = "OperationTypeApply") -> bytes:
    """Return a lock as Terraform asks for it."""
    return json.dumps(
        {
            "ID": id_,
            "Operation": operation,
            "Info": "",
            "Who": "ann@build",
            "Version": "1.11.4",
            "Created": "2026-03-13T12:00:00.123456789Z",
            "Path": "",
        }
    ).encode()
