"""The Python API through the daemon of a mount, with arguments as programs give them."""

from __future__ import annotations

from typing import Any

import pytest

import statefs
from statefs.errors import UsageError
from tests.harness.mounted_state import MountedState


def test_snapshots_are_taken_as_they_were_returned(own_state: MountedState) -> None:
    """Saved, compared and restored without a name being looked at."""
    file = own_state.files / "a"
    with statefs.open(own_state.state) as state:
        file.write_text("one")
        before = state.save(message="before")
        file.write_text("two, longer")
        after = state.save(message="after")
        (difference,) = state.diff(before, after).differences
        assert difference.path == "files/a"
        assert state.diff(after, "current").differences == []
        assert state.pin(after, "wanted").pin is not None
        state.restore(before)
        assert file.read_text() == "one"
        state.unpin(after)


def test_the_daemon_refuses_a_wrong_type_by_a_line(own_state: MountedState) -> None:
    """It is no error of the daemon: its log stays quiet, and it goes on to answer."""
    wrong: list[dict[str, Any]] = [
        {"message": 5}, {"labels": {"": ""}}, {"labels": {"key": 5}}, {"operation": {"kind": 5}},
    ]  # fmt: skip
    with statefs.open(own_state.state) as state:
        for arguments in wrong:
            with pytest.raises(UsageError):
                state.save(**arguments)
        for snapshot in (5, b"latest", None):
            with pytest.raises(UsageError):
                state.show(snapshot)  # type: ignore[arg-type]
        assert state.list_snapshots() == []
