"""The door between handlers and the kernel: every exception becomes an errno, none ends the mount.

pyfuse3 lets only FUSEError through to the caller; anything else would stop the session loop.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine
from functools import wraps
from time import perf_counter_ns
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import apsw
import pyfuse3

from statefs.content.checks import DamagedBytes
from statefs.errors import PosixError, StatefsError, refusal
from statefs.telemetry.requests import timings_of

P = ParamSpec("P")
T = TypeVar("T")


class Answering(Protocol):
    """Who has handlers."""

    def damaged(self, damage: DamagedBytes) -> None:
        """Have it known that damaged bytes were asked for."""


S = TypeVar("S", bound=Answering)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the host answers when there is no room: nothing is wrong with statefs."""

_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the host answers when a right, a descriptor or memory is missing: a line says it all."""

log = logging.getLogger(__name__)


def errno_of(error: BaseException) -> int:
    """Return the errno that stands for an exception; EIO for what nobody foresaw."""
    if isinstance(error, StatefsError):
        return error.errno
    if isinstance(error, OSError) and error.errno and error.errno != errno.ENOENT:
        return error.errno  # a missing object file is damage, not a missing name
    if isinstance(error, apsw.FullError):
        return errno.ENOSPC
    return errno.EIO


def is_expected(error: BaseException) -> bool:
    """Whether an exception is an answer rather than a fault worth a traceback in the log."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, StatefsError) and error.errno != errno.EIO


def answers(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make a handler raise FUSEError with an errno, whatever goes wrong in it; and count it."""
    timings = timings_of(handler.__name__)
    buckets = timings.buckets

    @wraps(handler)
    async def answering(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        began = perf_counter_ns()
        try:
            return await handler(self, *args, **kwargs)
        except PosixError as error:
            timings.failed(error.errno)
            raise pyfuse3.FUSEError(error.errno) from None
        except DamagedBytes as damage:
            timings.failed(damage.errno)
            self.damaged(damage)
            raise pyfuse3.FUSEError(damage.errno) from None
        except Exception as error:
            timings.failed(errno_of(error))
            if isinstance(error, OSError) and error.errno in _REFUSED:
                log.error("%s failed: %s", handler.__name__, refusal(error))
            elif not is_expected(error):
                log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno_of(error)) from error
        finally:  # as Timings.took does, without a call
            took = perf_counter_ns() - began
            timings.nanoseconds += took
            buckets[took.bit_length()] += 1

    return answering
