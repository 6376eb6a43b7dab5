"""What the process that has a store open adds to operations on it: its mount, or none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from statefs.maintenance import steps
from statefs.mounts import Writer
from statefs.snapshots.restore import Refreshing, refreshing_nothing

T = TypeVar("T")


class Host(Protocol):
    """What the process that has a store open adds to operations on it. All may block."""

    @property
    def is_mounted(self) -> bool:
        """Whether programs may change the tree at any time."""

    def mount_point(self) -> Path | None:
        """Return where programs see the tree, None where they do not."""

    def write_back(self) -> None:
        """Have the kernel hand over what programs wrote through memory maps."""

    def held(self) -> AbstractContextManager[None]:
        """Let no program change the tree inside the `with` block; does not block by itself."""

    def writers(self) -> list[Writer]:
        """Return who has files open for writing."""

    def refreshing(self) -> Refreshing:
        """Return what has the kernel ask anew for what a restore changes; called before it."""

    def list_changed(self) -> None:
        """The list of snapshots or clones changed: what is cached of it must go."""

    def space_changed(self) -> None:
        """There is something to free: rows of deleted snapshots and clones, or objects."""

    def scrub_now(self) -> None:
        """Begin a scrub, unless one runs."""

    def of_mount(self) -> dict[str, Any]:
        """Return what the status document says of the mount; nothing without one."""

    def alone(self, operation: steps.Steps[T]) -> T:
        """Run an operation while no other one changes the list of snapshots; from a step."""


class Unmounted:
    """The host of a store that is not mounted: nobody caches, nobody waits."""

    is_mounted = False

    def mount_point(self) -> Path | None:
        """Return None: no program sees this store."""
        return None

    def write_back(self) -> None:
        """Do nothing: no kernel has pages of this store."""

    def held(self) -> AbstractContextManager[None]:
        """Return a block in which nothing is held: nobody else changes the tree."""
        return nullcontext()

    def writers(self) -> list[Writer]:
        """Return nobody."""
        return []

    def refreshing(self) -> Refreshing:
        """Return what does nothing: no kernel has names or attributes of this store."""
        return refreshing_nothing()

    def list_changed(self) -> None:
        """Do nothing: no kernel has names of this store."""

    def space_changed(self) -> None:
        """Do nothing: who runs a command frees space after it (`Store.collect`)."""

    def scrub_now(self) -> None:
        """Do nothing: the command scrubs itself."""

    def of_mount(self) -> dict[str, Any]:
        """Return nothing: there is no mount."""
        return {}

    def alone(self, operation: steps.Steps[T]) -> T:
        """Run it: nobody else has the store."""
        return steps.run(operation)
