"""`python -m statefs.daemon STATE STORE OPTIONS`: what `statefs mount` starts in the background."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from statefs.daemon.spawning import Started, start


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
        run_foreground(Path(state), Path(store), MountOptions.parse(options), first=first)
    except StatefsError as error:
        sys.stderr.write(f"statefs: error: {error}\n")
        return error.exit_code
    finally:
        if is_leashed:
            Path(state).rmdir()
    return 0


if __name__ == "__main__":
    code = main(start())
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be done: whoever waits need not wait for Python's clean-up
