"""What the kernel, and the log, are told of an exception in a handler."""

from __future__ import annotations

import errno
import logging
import os

import pyfuse3
import pytest
import trio

from statefs.content.checks import DamagedBytes
from statefs.fuse.errno_map import answers


class Handlers:
    """Who has a handler that fails."""

    def __init__(self) -> None:
        self.told: list[DamagedBytes] = []

    def damaged(self, damage: DamagedBytes) -> None:
        """Remember the damage."""
        self.told.append(damage)

    @answers
    async def fail(self, error: Exception) -> None:
        """Raise what is given."""
        raise error


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM])
def test_what_the_host_refuses_for_want_of_something_is_no_damage(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The program gets the errno, the log a line that says what to do, and no event is told."""
    handlers = Handlers()
    error = OSError(number, os.strerror(number), "/srv/state.store/objects/01/1")
    with pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(handlers.fail, error)
    assert (caught.value.errno, handlers.told) == (number, [])
    (line,) = caplog.records
    assert (line.levelno, line.exc_info) == (logging.ERROR, None)
    said = f"fail failed: /srv/state.store/objects/01/1: {os.strerror(number)}; "
    assert line.getMessage().startswith(said)
