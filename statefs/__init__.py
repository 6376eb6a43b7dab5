"""statefs: a versioned filesystem for the state of applications.

`statefs.open` gives programs the operations on a state (statefs/api.py).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as that of `typing`, which is not loaded before Ctrl-C is dealt with
if TYPE_CHECKING:
    from typing import Any

    from statefs.api import State, open_state

    open = open_state  # noqa: A001 - as in `shelve.open`, `dbm.open`

__all__ = ["State", "__version__", "open"]
__version__ = "0.1.0"

_API = {"open": "open_state", "State": "State"}


def __getattr__(name: str) -> Any:
    """Import the API when it is first used: whoever wants the version alone waits for nothing."""
    if name in _API:
        from statefs import api

        return getattr(api, _API[name])
    raise AttributeError(f"module 'statefs' has no attribute {name!r}")
