"""`python -m statefs.daemon STATE STORE OPTIONS`: what `statefs mount` starts in the background.

With --resume and a descriptor it goes on with what it has mounted as an earlier version; with
--rehearse it only sees whether it could.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from statefs.daemon.spawning import REHEARSE, RESUME, Started, start

if TYPE_CHECKING:
    from statefs.errors import StatefsError


def main(first: Started) -> int:
    """Have the mount served until it ends; return the exit code.

    Args:
        first: a worker, started before the rest is loaded, for it takes longest to come up.
    """
    from statefs.daemon.background import obey_leash
    from statefs.daemon.supervisor import run_foreground
    from statefs.errors import StatefsError
    from statefs.mounts import MountOptions

    state, store, options = sys.argv[1:4]
    is_leashed = obey_leash()
    try:
        run_foreground(
            Path(state),
            Path(store),
            MountOptions.parse(options),
            first=first,
            is_private=is_leashed,
        )
    except StatefsError as error:
        return _failed(error)
    finally:
        if is_leashed:
            Path(state).rmdir()
    return 0


def go_on(document: int) -> int:
    """Have the mount served on until it ends; return the exit code.

    Args:
        document: the descriptor of what the earlier version has left.
    """
    from statefs.daemon.supervisor import resume
    from statefs.errors import StatefsError

    try:
        resume(document)
    except StatefsError as error:
        return _failed(error)
    return 0


def rehearse(document: int) -> int:
    """Do what comes before going on; return the exit code. Args: as of `go_on`."""
    from statefs.daemon.supervisor import resumed

    resumed(document)
    return 0


def _failed(error: StatefsError) -> int:
    sys.stderr.write(f"statefs: error: {error}\n")
    return error.exit_code


if __name__ == "__main__":
    if sys.argv[1] == RESUME:
        code = go_on(int(sys.argv[2]))
    elif sys.argv[1] == REHEARSE:
        code = rehearse(int(sys.argv[2]))
    else:
        code = main(start())
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be done: whoever waits need not wait for Python's clean-up
