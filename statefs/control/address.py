"""The address of a Unix socket whose path may be longer than a socket address can hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOCKET_PATH_BYTES_MAX: Final = 107
"""sun_path has 108 bytes, one of them for the NUL. Source: unix(7)."""


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield an address that leads to `path`, for bind(2) or connect(2) inside the `with` block.

    A path that is too long is reached through /proc/self/fd and an open descriptor of its folder.
    """
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
