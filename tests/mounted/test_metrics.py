"""Metrics of a mount: a scrape tells what programs have done, and a new worker begins anew."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.request

import pytest

from tests.harness.mounted_state import MountedState, eventually

LOCALHOST = "127.0.0.1"


def value(text: str, sample: str) -> float:
    """Return the value of a sample of an exposition."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found, f"no {sample}"
    return float(found[1])


def scrape(port: int) -> str:
    """Return what the port tells; nothing while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://{LOCALHOST}:{port}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        found: int = probe.getsockname()[1]
        return found


def test_a_scrape_counts_what_programs_do(own_state: MountedState, port: int) -> None:
    """Requests, errors and saves; the next worker opens the port anew and counts from 0."""
    own_state.expected_log = "worker [0-9]+ died"
    settings = f"[health]\nmin_free = 0\n[metrics]\nport = {port}\n"
    (own_state.store / "statefs.toml").write_text(settings)
    eventually(lambda: bool(scrape(port)), "the port is open")
    written = 'statefs_request_seconds_count{request="write"}'
    failed = 'statefs_request_errors_total{errno="ENODATA",request="getxattr"}'
    (own_state.files / "file").write_bytes(b"x")
    before = value(scrape(port), failed)  # the kernel has asked for security.capability
    for _ in range(3):
        with pytest.raises(OSError):
            os.getxattr(own_state.files / "file", "user.nothing")
    own_state.save("one")
    told = scrape(port)
    assert value(told, written) >= 1 and value(told, failed) == before + 3
    assert value(told, 'statefs_operation_seconds_count{operation="save"}') == 1
    assert value(told, "statefs_up") == 1 and value(told, "statefs_snapshots") == 1
    asked = own_state.command("metrics", own_state.state)
    assert value(asked, failed) == before + 3
    os.kill(own_state.worker_pid(), signal.SIGKILL)
    eventually(lambda: "worker_restarts 1.0" in scrape(port), "the new worker listens")
    told = scrape(port)
    assert value(told, 'statefs_operation_seconds_count{operation="save"}') == 0
    assert value(told, "statefs_snapshots") == 1
