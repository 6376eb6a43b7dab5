from __future__ import annotations

import json
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import UsageError
from statefs.state import http_backend
from statefs.state.audit import AuditLog
from statefs.state.copies import copies_of
from statefs.state.http_backend import LOCALHOST, StateServer, require_safe_address
from tests.harness.http_states import ask, lock_info, serving, terraform_state
from tests.harness.killed_calls import Acknowledge, each_kill

TOKEN = "an-example-of-a-token"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where states will be."""
    return tmp_path / "states"


def status(server: StateServer, *words: Any, **options: Any) -> int:
    """Return the status of an answer."""
    return ask(server, *words, **options).status


def test_a_state_comes_back_as_it_was_posted(folder: Path) -> None:
    """No state is 404; then its bytes with their MD5, until it is deleted."""
    with serving(folder) as server:
        assert server.url == f"http://127.0.0.1:{server.server_port}/states/"
        assert status(server, "GET") == 404
        for serial in (1, 2):
            assert status(server, "POST", body=terraform_state(serial)) == 200
        answer = ask(server, "GET")
        assert (answer.status, answer.body) == (200, terraform_state(2))
        assert answer.headers["Content-Type"] == "application/json"
        assert len(answer.headers["Content-MD5"]) == 24
        assert status(server, "DELETE") == 200 and status(server, "GET") == 404
        assert status(server, "DELETE") == 200
        assert status(server, "PUT", body=terraform_state(3)) == 200
    path = folder / "shop.tfstate"
    assert path.read_bytes() == terraform_state(3)
    assert [each.read_bytes() for each in copies_of(path)] == [
        terraform_state(2), terraform_state(1)]  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_second_one_is_told_who_has_the_lock(folder: Path) -> None:
    """As Terraform reads it; and what it posts without the lock's id is refused."""
    with serving(folder) as server:
        assert status(server, "LOCK", body=lock_info("one")) == 200
        assert status(server, "LOCK", body=lock_info("one")) == 200  # asked again
        answer = ask(server, "LOCK", body=lock_info("two"))
        assert answer.status == 423
        assert json.loads(answer.body) == json.loads(lock_info("one"))
        for query in ("", "?ID=two"):
            answer = ask(server, "POST", f"/states/shop{query}", terraform_state(1))
            assert answer.status == 423 and json.loads(answer.body)["ID"] == "one"
        assert status(server, "DELETE") == 423
        assert status(server, "POST", "/states/shop?ID=one", terraform_state(1)) == 200
        assert status(server, "POST", "/states/other", terraform_state(1)) == 200
        assert status(server, "UNLOCK", body=lock_info("two")) == 423
        assert status(server, "UNLOCK", body=lock_info("one")) == 200
        assert status(server, "UNLOCK", body=lock_info("one")) == 200
        assert status(server, "LOCK", body=lock_info("two")) == 200


def test_a_lock_outlives_the_server(folder: Path) -> None:
    """The next one, on another port, still refuses who has not got it."""
    with serving(folder) as server:
        assert status(server, "LOCK", body=lock_info("one")) == 200
    with serving(folder) as server:
        assert status(server, "LOCK", body=lock_info("two")) == 423
        assert status(server, "POST", "/states/shop?ID=one", terraform_state(1)) == 200
        assert status(server, "UNLOCK", body=lock_info("one")) == 200


def test_a_forced_unlock_is_noted_and_the_old_holder_refused(folder: Path) -> None:
    """`terraform force-unlock` sends an empty body, in chunks."""
    empty = (
        b"UNLOCK /states/shop HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-MD5: 1B2M2Y8AsgTpgAmY7PhCfg==\r\n\r\n0\r\n\r\n"
    )
    with serving(folder) as server:
        assert status(server, "LOCK", body=lock_info("one")) == 200
        assert raw(server, empty).split(b" ")[1] == b"200"
        assert status(server, "UNLOCK", body=b"") == 200
        answer = ask(server, "POST", "/states/shop?ID=one", terraform_state(1))
        assert answer.status == 409 and b"taken away" in answer.body
        assert status(server, "GET") == 404
    with AuditLog(folder / ".audit.log") as audit:
        assert audit.unfinished() == []
    assert "ann@build for 'OperationTypeApply'" in (folder / ".audit.log").read_text()


def test_an_older_state_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An equal serial with other content, and another lineage, too; the same bytes are not."""
    with serving(folder) as server:
        assert status(server, "POST", body=terraform_state(5)) == 200
        assert status(server, "POST", body=terraform_state(5)) == 200
        for state in (
            terraform_state(4),
            terraform_state(5, resources=2),
            terraform_state(6, "another"),
        ):
            answer = ask(server, "POST", body=state)
            assert answer.status == 409, answer
        assert "what is to be written has another" in caplog.text
        assert ask(server, "GET").body == terraform_state(5)
    assert copies_of(folder / "shop.tfstate") == []


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/states/shop/production", "shop%2Fproduction.tfstate"),
        ("/states/..%2f..%2fetc%2fpasswd", "%2E%2E%2F.%2E%2Fetc%2Fpasswd.tfstate"),
        ("/states/../../etc/passwd", "%2E%2E%2F.%2E%2Fetc%2Fpasswd.tfstate"),
        ("/states/.lock", "%2Elock.tfstate"),
        ("/states/a%00b", "a%00b.tfstate"),
        ("/states/%C3%BC%20x", "ü x.tfstate"),
    ],
)
def test_a_name_leads_nowhere_else(folder: Path, path: str, file: str) -> None:
    """Whatever it is, it becomes one file in the folder."""
    with serving(folder) as server:
        assert status(server, "POST", path, terraform_state(1)) == 200
        assert ask(server, "GET", path).body == terraform_state(1)
    assert sorted(os.listdir(folder)) == sorted([".lock", file])
    assert os.listdir(folder.parent) == ["states"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("GET", "/"), 404),
        (("GET", "/states"), 404),
        (("GET", "/states/"), 400),
        (("GET", "/states/%ff"), 400),
        (("GET", f"/states/{'x' * 300}"), 400),
        (("GET", "/states/shop?x=1"), 400),
        (("POST", "/states/shop?ID=1&ID=2", terraform_state(1)), 400),
        (("POST", "/states/shop?ID", terraform_state(1)), 400),
        (("POST", "/states/shop?ID=unknown", terraform_state(1)), 409),
        (("POST", "/states/shop", b""), 400),
        (("POST", "/states/shop", b"{"), 400),
        (("POST", "/states/shop", b"[]"), 400),
        (("POST", "/states/shop", b"\xff"), 400),
        (("POST", "/states/shop", b'{"version": 4, "serial": 1}'), 400),
        (("POST", "/states/shop", b'{"x": ' + b"[" * 100_000), 400),
        (("POST", "/states/shop", terraform_state(7).replace(b"7", b"7" * 5000, 1)), 400),
        (("LOCK", "/states/shop", b'{"x": ' + b"[" * 10_000), 400),
        (("POST", "/states/shop", terraform_state(-1)), 400),
        (("POST", "/states/shop", terraform_state(1, "")), 400),
        (("LOCK", "/states/shop", b""), 400),
        (("LOCK", "/states/shop", b"{}"), 400),
        (("LOCK", "/states/shop", lock_info("")), 400),
        (("LOCK", "/states/shop", lock_info().replace(b"2026-03", b"2026-33")), 400),
        (("LOCK", "/states/shop", lock_info("x" * 70_000)), 413),
        (("UNLOCK", "/states/shop", b"{"), 400),
        (("HEAD", "/states/shop"), 501),
        (("PATCH", "/states/shop", b""), 501),
    ],
)
def test_what_is_no_request_of_terraform_is_refused(
    folder: Path, words: tuple[Any, ...], code: int
) -> None:
    """With a reason, and nothing is changed."""
    with serving(folder) as server:
        assert status(server, *words) == code
        assert status(server, "GET") == 404
    assert set(os.listdir(folder)) <= {".lock"}


def test_who_has_no_token_gets_nothing(folder: Path) -> None:
    """None is 401, another one 403; as a password with any user name, or as a bearer's."""
    with serving(folder, TOKEN) as server:
        answer = ask(server, "GET")
        assert answer.status == 401 and answer.headers["WWW-Authenticate"].startswith("Basic ")
        for given in ("", TOKEN[:-1], TOKEN + "x", "ü"):
            assert status(server, "POST", body=terraform_state(1), token=given) == 403
        for header in ("Basic !", "Digest x", TOKEN):
            assert status(server, "GET", headers={"Authorization": header}) == 401
        assert os.listdir(folder) == []
        assert status(server, "POST", body=terraform_state(1), token=TOKEN) == 200
        bearer = {"Authorization": f"Bearer {TOKEN}", "Host": "states.example.org"}
        assert ask(server, "GET", headers=bearer).body == terraform_state(1)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://example.org"}, {"Host": "example.org"}, {"Host": "[::"}, {"Host": ""}],
)
def test_a_page_in_a_browser_gets_nothing(folder: Path, headers: dict[str, str]) -> None:
    """Neither by a form nor under a name of its own that leads to this machine."""
    with serving(folder) as server:
        assert status(server, "POST", body=terraform_state(1), headers=headers) == 403
        for host in ("localhost", "localhost:80", "127.0.0.1:8390", "[::1]:8390", "[::1]"):
            assert status(server, "GET", headers={"Host": host}) == 404


def test_other_machines_are_served_with_a_token_only(folder: Path) -> None:
    """Refused before anything is made."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(UsageError, match="without a token"):
            StateServer(folder, host=host, port=0)
        require_safe_address(host, TOKEN)
    for host in (LOCALHOST, "localhost", "::1", "127.1.2.3"):
        require_safe_address(host, None)
    assert not folder.exists()


def raw(server: StateServer, request: bytes) -> bytes:
    """Send bytes, end, and return all that comes back."""
    with socket.create_connection((LOCALHOST, server.server_port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("head", "body", "code"),
    [
        (b"Content-Length: 1e3", b"", b"400"),
        (b"Content-Length: -1", b"", b"400"),
        (b"Content-Length: 2\r\nContent-Length: 3", b"{}", b"400"),
        (b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n", b"411"),
        (b"Transfer-Encoding: gzip, chunked", b"0\r\n\r\n", b"411"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n", b"411"),
        (b"Content-Length: 99999999999", b"{", b"413"),
        (b"Content-Length: 100", b"{", b"400"),
        (b"Content-Length: 2\r\nContent-MD5: AAAAAAAAAAAAAAAAAAAAAA==", b"{}", b"400"),
        (b"X: " + b"x" * 70_000, b"", b"431"),
    ],
)
def test_a_request_that_is_not_whole_is_refused(
    folder: Path, head: bytes, body: bytes, code: bytes
) -> None:
    """One line for each; the server goes on."""
    with serving(folder) as server:
        request = b"POST /states/shop HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n" + body
        assert raw(server, request).split(b" ")[1] == code
        raw(server, b"\0" * 100)
        assert status(server, "GET") == 404


def test_a_slow_client_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its head nor in its body; others are answered meanwhile."""
    monkeypatch.setattr(http_backend._Handler, "timeout", 0.2)
    with serving(folder) as server:
        address = (LOCALHOST, server.server_port)
        with (
            socket.create_connection(address, timeout=20) as head,
            socket.create_connection(address, timeout=20) as body,
        ):
            head.sendall(b"POST /states/shop HTTP/1.1\r\nHost:")
            body.sendall(
                b"POST /states/shop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
            assert status(server, "GET") == 404
            assert head.recv(100) == b""
            assert body.recv(100).split(b" ")[1] == b"408"


def test_a_head_that_comes_drop_by_drop_is_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often something comes."""
    monkeypatch.setattr(http_backend, "HEAD_SECONDS", 0.2)
    with serving(folder) as server:
        address = (LOCALHOST, server.server_port)
        with socket.create_connection(address, timeout=0.01) as head:
            for _ in range(1000):
                head.sendall(b"G")
                try:
                    assert head.recv(1) == b""
                    return
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    return
        pytest.fail("nobody has ended it")


def test_one_connection_too_many_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And it can come again when another one has gone."""
    monkeypatch.setattr(http_backend, "CONNECTIONS_MAX", 1)
    with serving(folder) as server:
        address = (LOCALHOST, server.server_port)
        with socket.create_connection(address, timeout=20) as first:
            first.sendall(b"GET ")
            with socket.create_connection(address, timeout=20) as second:
                assert second.recv(1) == b""
            first.sendall(b"/states/shop HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert first.recv(100).split(b" ")[1] == b"404"
    assert "one is closed" in caplog.text


def test_a_broken_state_is_named_and_not_written_over(folder: Path) -> None:
    """It is still given out: Terraform says itself what is wrong with it."""
    with serving(folder) as server:
        assert status(server, "POST", body=terraform_state(1)) == 200
        (folder / "shop.tfstate").write_bytes(b'{\n  "version": 4,\n')
        answer = ask(server, "POST", body=terraform_state(2))
        assert answer.status == 500 and b"shop.tfstate, line 2" in answer.body
        assert ask(server, "GET").body == b'{\n  "version": 4,\n'


def test_a_full_disk_is_an_error_of_the_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which makes Terraform ask again; the state is as it was."""
    with serving(folder) as server:
        assert status(server, "POST", body=terraform_state(1)) == 200

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as context:
            context.setattr("statefs.state.state_file.write_file", refuse)
            assert status(server, "POST", body=terraform_state(2)) == 500
        assert ask(server, "GET").body == terraform_state(1)


def test_of_many_who_want_the_lock_one_gets_it(folder: Path) -> None:
    """From two servers of one folder at the same time."""
    with serving(folder) as one, serving(folder) as two:
        codes: list[int] = []

        def want(number: int) -> None:
            server = (one, two)[number % 2]
            codes.append(status(server, "LOCK", body=lock_info(str(number))))

        threads = [threading.Thread(target=want, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200] + [423] * 11


def test_neither_token_nor_state_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only what was asked, and how it was answered."""
    secret = terraform_state(1).replace(b'"outputs": {}', b'"outputs": {"p": {"value": "pass"}}')
    with caplog.at_level(logging.DEBUG), serving(folder, TOKEN) as server:
        assert status(server, "POST", body=secret, token=TOKEN) == 200
        assert status(server, "POST", body=secret[:-3], token=TOKEN) == 400
        assert status(server, "GET", token=TOKEN + "x") == 403
    asked = ("POST '/states/shop': 200", "POST '/states/shop': 400", "GET '/states/shop': 403")
    assert caplog.messages == list(asked)


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_the_server_loses_no_answer(folder: Path) -> None:
    """What was answered with 200 is there in the next server: the lock, and each version."""

    def work(acknowledge: Acknowledge) -> None:
        with serving(folder) as server:
            for method, path, body in (
                ("LOCK", "/states/shop", lock_info("one")),
                ("POST", "/states/shop?ID=one", terraform_state(1)),
                ("POST", "/states/shop?ID=one", terraform_state(2)),
                ("UNLOCK", "/states/shop", lock_info("one")),
            ):
                assert status(server, method, path, body) == 200
                acknowledge(method)

    serials = [{0}, {0, 1}, {1, 2}, {2}, {2}]
    path = folder / "shop.tfstate"
    kills = 0
    for killed in each_kill(work):
        kills += 1
        done = len(killed.acknowledged)
        with serving(folder) as server:
            answer = ask(server, "GET")
            serial = json.loads(answer.body)["serial"] if answer.status == 200 else 0
            assert serial in serials[done], killed
            if serial == 2:
                assert copies_of(path)[0].read_bytes() == terraform_state(1), killed
            if 0 < done < 3:
                assert status(server, "LOCK", body=lock_info("two")) == 423, killed
            # Whoever has not heard the answer asks again.
            if 0 < done < 3:
                again = terraform_state(done)
                assert status(server, "POST", "/states/shop?ID=one", again) in (200, 409)
            assert status(server, "UNLOCK", body=b"") == 200
        for each in (path, *copies_of(path)):
            each.unlink(missing_ok=True)
    assert kills > 20
