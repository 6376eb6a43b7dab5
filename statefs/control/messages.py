"""The lines that client and daemon exchange over `control.sock`. Does no input or output.

    client   {"id":1,"op":"save","args":{"message":"..."}}
    daemon   {"id":1,"progress":{}}          any number of times, at least every few seconds
    daemon   {"id":1,"result":{...}}         or
    daemon   {"id":1,"error":{"type":"NoSuchSnapshot","message":"...","exit_code":7}}

One line is one UTF-8 JSON object. A connection may carry several requests, one after the other.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statefs import errors
from statefs.errors import PosixError, StatefsError, UsageError

REQUEST_BYTES_MAX: Final = 1 << 20
"""A request line longer than this is refused: nothing that is asked for needs as much."""
ALIVE_SECONDS: Final = 2.0
"""While a request is worked on, a progress line goes out this often."""
PROGRESS_SECONDS: Final = 0.2
"""While there is progress to tell, as often as a person can follow."""
SILENCE_SECONDS: Final = 30.0
"""A daemon silent for so long hangs: it would have sent fifteen progress lines."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client asks for.

    Args:
        id: chosen by the client, repeated in every reply.
        op: the operation: `stop`, or one of statefs.maintenance.commands.
        args: the operation's own.
    """

    id: int
    op: str
    args: dict[str, Any] = {}  # msgspec copies a default that is an empty dict


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """A refusal: an error class by name, so that the client can raise the same.

    Args:
        type: the name of a class in statefs/errors.py.
        message: one line that says what to do.
        exit_code: of that class.
        errno: for PosixError only.
    """

    type: str
    message: str
    exit_code: int
    errno: int | None = None


class Reply(msgspec.Struct, omit_defaults=True):
    """One line of the daemon: exactly one of progress, result and error is set."""

    id: int
    progress: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    result: Any = msgspec.UNSET
    error: ErrorBody | msgspec.UnsetType = msgspec.UNSET


_encoder: Final = msgspec.json.Encoder()
_request_decoder: Final = msgspec.json.Decoder(Request)
_reply_decoder: Final = msgspec.json.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """Return a message as one line, its newline included."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Return the request that a line holds.

    Raises:
        UsageError: it is not one; the message says what is wrong with it.
    """
    try:
        return _request_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the request cannot be understood: {error}") from None


def decode_reply(line: bytes) -> Reply:
    """Return the reply that a line holds.

    Raises:
        msgspec.MsgspecError: it holds none.
    """
    return _reply_decoder.decode(line)


def error_body(error: StatefsError) -> ErrorBody:
    """Return what carries `error` to another process."""
    return ErrorBody(
        type=type(error).__name__,
        message=str(error).encode(errors="backslashreplace").decode(),  # JSON holds no surrogates
        exit_code=error.exit_code,
        errno=error.errno if isinstance(error, PosixError) else None,
    )


def raised_error(body: ErrorBody) -> StatefsError:
    """Return the exception that `body` was made of, a plain StatefsError for an unknown class."""
    if body.type == PosixError.__name__ and body.errno is not None:
        return PosixError(body.errno)
    kind = getattr(errors, body.type, None)
    if isinstance(kind, type) and issubclass(kind, StatefsError) and kind is not PosixError:
        return kind(body.message)
    unknown = StatefsError(body.message)
    unknown.exit_code = body.exit_code
    return unknown
