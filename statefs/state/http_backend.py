"""The HTTP backend of Terraform and OpenTofu: states of a folder, served on one address.

Python's http.server does it: a state is asked for some times in a minute, by programs that their
user has started, and each of its requests is small, so that nothing is gained by a library that
would have to be installed, while what http.server leaves open is closed here: each request has a
limit in bytes and in seconds, each connection one request, and there is a limit of connections. Of
prometheus_client, which serves the metrics, the server answers GET alone.

Owns the protocol: who may ask, what is asked, and what each error is called. The states, their
locks and their versions are `state_file`'s; nothing of them is kept in memory, so that they are the
same after a restart, and for several servers of one folder. There is no TLS: what leaves this
machine goes through a reverse proxy that has it.

Source: the documentation of Terraform's backend "http", and what its client sends.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from statefs.clock import Clock, SystemClock
from statefs.errors import (
    NewerStore,
    OlderState,
    OperationLocked,
    StateDamaged,
    StoreLocked,
    UsageError,
)
from statefs.state.json_store import made_folder
from statefs.state.operation_lock import OperationLock
from statefs.state.state_file import StateFile
from statefs.state.terraform_states import lock_from, lock_info_of, state_file

LOCALHOST: Final = "127.0.0.1"
PORT: Final = 8390
"""One that every user may take."""
STATES: Final = "/states/"
"""Before the name of a state in its address."""

STATE_BYTES_MAX: Final = 64 << 20
"""The largest states of one configuration have some MiB; one is held in memory some times."""
LOCK_BYTES_MAX: Final = 64 << 10
CONNECTIONS_MAX: Final = 32
IDLE_SECONDS: Final = 15.0
"""Between two packets of a request."""
HEAD_SECONDS: Final = 15.0
"""For the lines before the body of a request."""
REQUEST_SECONDS: Final = 60.0
"""For the body."""
DRAINED_BYTES_MAX: Final = 1 << 20
"""Of a request that is refused: who closes with bytes unread has the answer lost."""
_CHUNK_BYTES: Final = 64 << 10
_CHUNK_HEAD_BYTES: Final = 8

_LENGTH: Final = re.compile(r"\d{1,12}", re.ASCII)

_log = logging.getLogger(__name__)


class _Reply(NamedTuple):
    status: HTTPStatus
    body: bytes = b""
    type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """A request is answered with no more than why not."""

    def __init__(self, status: HTTPStatus, why: str, *headers: tuple[str, str]) -> None:
        super().__init__(why)
        self.reply = _Reply(status, f"{why}\n".encode(), headers=headers)


def require_safe_address(host: str, token: str | None) -> None:
    """Refuse to serve other machines without a token.

    Raises:
        UsageError: `host` is not of this machine alone, and there is no token.
    """
    if token is None and not _is_loopback(host):
        raise UsageError(
            f"without a token states are served on {LOCALHOST} only, not on '{host}': "
            "name a file for one with --token-file"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class StateServer(ThreadingHTTPServer):
    """Serves the states of a folder, each in a thread of its request.

    Args:
        folder: made, with mode 0700, where there is none.
        host: an address or name of this machine; without a token, one that only it can reach.
        port: 0 takes a free one.
        token: that each request has to have, as the password of basic authentication (with any
            user name) or as a bearer's; None asks for none.
        clock: for the names of copies and snapshots.

    Raises:
        UsageError: see `require_safe_address`.
        OSError: the address cannot be had.
    """

    daemon_threads = False  # what is being written when the server ends is written to its end
    request_queue_size = CONNECTIONS_MAX

    def __init__(
        self,
        folder: Path,
        *,
        host: str = LOCALHOST,
        port: int = PORT,
        token: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        require_safe_address(host, token)
        made_folder(folder)
        self.folder = folder
        self.token = token
        self.clock = clock or SystemClock()
        self.turn = threading.Lock()
        self._host = host
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def server_bind(self) -> None:
        """Take the address, and ask no name server for its name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self._host, self.server_address[1]

    @property
    def url(self) -> str:
        """What stands before the name of a state."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_port}{STATES}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; hang up on one connection too many."""
        if not self._free.acquire(blocking=False):
            _log.warning("more than %d connections at a time: one is closed", CONNECTIONS_MAX)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the next one in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Log what has ended a connection: its other end, as a rule."""
        _log.warning("%s: %s", client_address[0], sys.exception())


class _Handler(BaseHTTPRequestHandler):
    """One connection, with one request."""

    server: StateServer
    protocol_version = "HTTP/1.1"
    server_version = "statefs"
    sys_version = ""
    timeout = IDLE_SECONDS
    _unread = 0

    def setup(self) -> None:
        """Have the connection end when the head of its request does not come."""
        super().setup()
        self._late = threading.Timer(HEAD_SECONDS, self._hang_up)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        """Let go of the connection."""
        self._late.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # its other end was faster
            self.connection.shutdown(socket.SHUT_RD)

    def _answer(self) -> None:
        self._late.cancel()
        self.close_connection = True
        try:
            reply = self._reply()
        except _Refused as refused:
            reply = refused.reply
        except UsageError as error:
            reply = _told(HTTPStatus.BAD_REQUEST, error)
        except (OperationLocked, OlderState) as error:
            _log.warning("refused: %s", error)
            reply = _locked(error)
        except StoreLocked as error:
            reply = _told(HTTPStatus.SERVICE_UNAVAILABLE, error)
        except (StateDamaged, NewerStore, OSError) as error:
            _log.error("%s", error)
            reply = _told(HTTPStatus.INTERNAL_SERVER_ERROR, error)
        self._drain()
        self._send(reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_LOCK = do_UNLOCK = _answer  # noqa: N815 - http.server's

    def _reply(self) -> _Reply:
        self._unread = self._length()
        self._require_allowed()
        address = urlsplit(self.path)
        if not address.path.startswith(STATES):
            raise _Refused(HTTPStatus.NOT_FOUND, f"states are at {STATES}NAME")
        try:
            name = unquote(address.path.removeprefix(STATES), errors="strict")
        except UnicodeDecodeError:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the name of the state is not UTF-8") from None
        state = state_file(self.server.folder, name, self.server.clock)
        return _METHODS[self.command](self, state, self._lock_id(address.query))

    def _get(self, state: StateFile, _lock_id: str | None) -> _Reply:
        data = state.read()
        if data is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no state {state.path.name}")
        return _Reply(HTTPStatus.OK, data, "application/json", (("Content-MD5", _md5(data)),))

    def _post(self, state: StateFile, lock_id: str | None) -> _Reply:
        data = self._body(STATE_BYTES_MAX)
        with self.server.turn:
            state.write(data, lock_id)
        return _Reply(HTTPStatus.OK)

    def _delete(self, state: StateFile, lock_id: str | None) -> _Reply:
        with self.server.turn:
            state.delete(lock_id)
        return _Reply(HTTPStatus.OK)

    def _lock(self, state: StateFile, _lock_id: str | None) -> _Reply:
        lock = lock_from(self._body(LOCK_BYTES_MAX), self.server.clock)
        with self.server.turn:
            state.lock(lock)
        return _Reply(HTTPStatus.OK)

    def _unlock(self, state: StateFile, _lock_id: str | None) -> _Reply:
        body = self._body(LOCK_BYTES_MAX)
        with self.server.turn:
            if body:
                state.unlock(lock_from(body, self.server.clock).id)
            else:  # `terraform force-unlock` sends nothing, not even the id that it was given
                state.force_unlock(None)
        return _Reply(HTTPStatus.OK)

    def _lock_id(self, query: str) -> str | None:
        """Return the id of the lock that the caller has.

        Raises:
            UsageError: something else is asked for.
        """
        if not query:
            return None
        match parse_qsl(query, keep_blank_values=True):
            case [("ID", str(lock_id))] if lock_id:
                return lock_id
        raise UsageError("after the name there may be ?ID= with the id of a lock")

    def _require_allowed(self) -> None:
        """Refuse who has no token; where none is wanted, whatever a browser may have been told."""
        if "Origin" in self.headers:
            raise _Refused(HTTPStatus.FORBIDDEN, "states are not for browsers")
        token = self.server.token
        if token is None:
            if not _is_loopback(_host_name(self.headers.get("Host", ""))):
                raise _Refused(HTTPStatus.FORBIDDEN, f"this is {LOCALHOST}, under no other name")
            return
        given = _given_token(self.headers.get_all("Authorization", []))
        if given is None:
            challenge = ("WWW-Authenticate", 'Basic realm="statefs", charset="UTF-8"')
            raise _Refused(HTTPStatus.UNAUTHORIZED, "a token is needed as password", challenge)
        if not hmac.compare_digest(given, token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "the token is another one")

    def _length(self) -> int:
        """Return how long the body is, in bytes."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers:
            if lengths or not self._has_empty_chunks():
                raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length")
            return 0
        if not lengths:
            return 0
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is no number")
        return int(lengths[0])

    def _has_empty_chunks(self) -> bool:
        """Return whether the body is chunked, and empty: so Go sends it with a method like UNLOCK.

        Source: RFC 9112, 7.1.
        """
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return False
        try:
            return [self.rfile.readline(_CHUNK_HEAD_BYTES) for _ in range(2)] == [b"0\r\n", b"\r\n"]
        except OSError as error:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the request: {error}") from None

    def _body(self, bytes_max: int) -> bytes:
        """Return the body of the request, which is as the client has sent it."""
        if self._unread > bytes_max:
            why = f"{self._unread} bytes are too many, {bytes_max} are allowed"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
        body = b"".join(self._chunks(bytes_max))
        if self._unread:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the request has ended within its body")
        digest = self.headers.get("Content-MD5")
        if digest is not None and digest != _md5(body):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the Content-MD5 is of another body")
        return body

    def _chunks(self, bytes_max: int) -> Iterator[bytes]:
        """Return what is still to be read of the request, at most so much."""
        give_up = time.monotonic() + REQUEST_SECONDS
        while self._unread and bytes_max > 0:
            if time.monotonic() > give_up:
                raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "the request was too slow")
            try:
                chunk = self.rfile.read1(min(self._unread, _CHUNK_BYTES))
            except OSError as error:
                raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the request: {error}") from None
            if not chunk:
                return
            self._unread -= len(chunk)
            bytes_max -= len(chunk)
            yield chunk

    def _drain(self) -> None:
        """Read what is left of a request that was refused, as far as that is worth it."""
        with contextlib.suppress(_Refused):  # the answer is another one already
            for _ in self._chunks(DRAINED_BYTES_MAX):
                pass

    def _send(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_request(self, code: int | str = "-", _size: int | str = "-") -> None:
        """Log what was asked and how it was answered; not who has a lock."""
        _log.info("%s %r: %d", self.command, self.path.partition("?")[0], code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
        """Log what http.server says by itself, which quotes requests that are none."""
        _log.info("%s: %r", self.client_address[0], format % args)


_METHODS: Final[dict[str, Callable[[_Handler, StateFile, str | None], _Reply]]] = {
    "GET": _Handler._get,
    "POST": _Handler._post,
    "PUT": _Handler._post,
    "DELETE": _Handler._delete,
    "LOCK": _Handler._lock,
    "UNLOCK": _Handler._unlock,
}
"""PUT is what `update_method` may say."""


def _told(status: HTTPStatus, error: Exception) -> _Reply:
    return _Reply(status, f"{error}\n".encode())


def _locked(error: OperationLocked | OlderState) -> _Reply:
    """Return who has the lock, as Terraform shows it; else the reason, which it does not show."""
    lock = error.lock if isinstance(error, OperationLocked) else None
    if isinstance(lock, OperationLock):
        return _Reply(HTTPStatus.LOCKED, lock_info_of(lock), "application/json")
    return _told(HTTPStatus.CONFLICT, error)


def _given_token(headers: list[str]) -> bytes | None:
    """Return the password of basic authentication, or the bearer's token; None where none is."""
    scheme, _, value = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return None


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _md5(body: bytes) -> str:
    """Return the Content-MD5 of a body. Source: RFC 1864; against damage, not against people."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
