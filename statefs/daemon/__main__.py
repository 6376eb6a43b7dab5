"""`python -m statefs.daemon STATE STORE OPTIONS`: what `statefs mount` starts in the background."""

from __future__ import annotations

import sys
from pathlib import Path

from statefs.daemon.background import obey_leash
from statefs.daemon.supervisor import run_foreground
from statefs.errors import StatefsError
from statefs.mounts import MountOptions


def main() -> int:
    """Serve until unmounted; return the exit code."""
    state, store, options = sys.argv[1:4]
    is_leashed = obey_leash()
    try:
        run_foreground(Path(state), Path(store), MountOptions.parse(options))
    except StatefsError as error:
        sys.stderr.write(f"statefs: error: {error}\n")
        return error.exit_code
    finally:
        if is_leashed:
            Path(state).rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
