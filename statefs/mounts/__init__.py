"""How a FUSE mount comes and goes on Linux, without any FUSE library."""

from statefs.mounts.attach import (
    mount_fuse,
    require_empty,
    require_fuse,
    require_mount_point,
    unmount,
    write_back,
)
from statefs.mounts.options import Durability, MountOptions
from statefs.mounts.outside import call_outside
from statefs.mounts.processes import Writer, processes_using, threads_of, writers
from statefs.mounts.table import (
    FSTYPE,
    MountInfo,
    find_mount,
    is_stale,
    mount_containing,
    place_in_mount,
    statefs_mounts,
)

__all__ = [
    "FSTYPE",
    "Durability",
    "MountInfo",
    "MountOptions",
    "Writer",
    "call_outside",
    "find_mount",
    "is_stale",
    "mount_containing",
    "mount_fuse",
    "place_in_mount",
    "processes_using",
    "require_empty",
    "require_fuse",
    "require_mount_point",
    "statefs_mounts",
    "threads_of",
    "unmount",
    "write_back",
    "writers",
]
