"""Every error statefs raises on purpose, as one tree.

    StatefsError                    exit 1   EIO
    ├── UsageError                  exit 2   EINVAL   bad input; says what to type instead
    ├── NoSuchStore                 exit 3   ENOENT   no store at that place
    ├── NotMounted                  exit 4   ENOENT   the state is not mounted
    ├── AlreadyMounted              exit 5   EBUSY    the state is mounted already
    ├── StoreLocked                 exit 6   EBUSY    another process has the store open
    ├── NoSuchSnapshot              exit 7   ENOENT   no snapshot of that name
    ├── AmbiguousSnapshot           exit 8   EINVAL   a prefix that fits several snapshots
    ├── FuseUnavailable             exit 9   ENODEV   /dev/fuse, fusermount3 or a right is missing
    ├── MountPointNotEmpty          exit 10  ENOTEMPTY  files lie under the mount point
    ├── NoSpace                     exit 11  ENOSPC   the store's filesystem is full
    ├── NewerStore                  exit 12  EPROTO   the store was written by a newer statefs
    ├── StaleMount                  exit 13  ENOTCONN a crash left a mount without a daemon
    ├── MountBusy                   exit 14  EBUSY    programs still use the mount
    ├── SnapshotExists              exit 15  EEXIST   the name or label is taken
    ├── DaemonUnreachable           exit 16  ECONNREFUSED  mounted, but the daemon does not answer
    ├── InvalidConfig               exit 17  EINVAL   statefs.toml says something that cannot be
    ├── HookFailed                  exit 18  ECANCELED  an application could not be prepared
    ├── SnapshotPinned              exit 19  EPERM    somebody has pinned it: it may not go
    ├── CorruptStore                exit 20  EIO      damage was found
    ├── ContentDamaged              exit 21  EIO      what an application wrote is damaged
    ├── NoSuchPath                  exit 22  ENOENT   no file or folder of that path at that moment
    ├── FilesInUse                  exit 23  EBUSY    programs write what is to be restored
    ├── CloneExists                 exit 24  EEXIST   a clone of that name is there already
    ├── NoSuchClone                 exit 25  ENOENT   no clone of that name
    ├── OlderStore                  exit 26  EPROTO   the store has an older format: mount it once
    ├── ReadOnlyStore               exit 27  EROFS    the store lies where nothing can be written
    ├── Unhealthy                   exit 28  EIO      `statefs health` has found something wrong
    ├── StateDamaged                exit 29  EIO      a file of a state store is broken
    ├── NotInStore                  exit 30  ENOENT   a state store has nothing of that name
    ├── WrongKey                    exit 31  EACCES   the key does not open a state store
    ├── ResumeMismatch              exit 32  EINVAL   a session is of another store, or another one
    ├── OperationLocked             exit 34  EBUSY    another operation has a deploy state
    ├── OlderState                  exit 35  ESTALE   what is to be written is not the newest
    ├── MountEnded                  exit 37  EINTR    a signal ended a mount before it was usable
    └── PosixError                  exit 1   its own  an operation on the tree failed as POSIX says

The drawing is checked against the classes by tests/unit/test_errors.py.
"""

from __future__ import annotations

import errno as _errno
import os
import shlex
from typing import Final

_ADVICE: Final = {
    _errno.ENOSPC: "free some space on its disk and try again",
    _errno.EDQUOT: "free some space on its disk and try again",
    _errno.EACCES: "run this as the user it belongs to ('ls -ld' shows who that is)",
    _errno.EPERM: "run this as the user it belongs to ('ls -ld' shows who that is)",
    _errno.EMFILE: "raise the limit of open files ('ulimit -n') and try again",
    _errno.ENFILE: "end some programs, or raise the limit of the machine ('sysctl fs.file-max')",
    _errno.ENOMEM: "end some programs and try again",
    _errno.EROFS: "choose a place that can be written to",
    _errno.EIO: "the disk has failed: see the kernel's messages ('dmesg')",
}
"""What to do when the operating system has refused something."""


def typed(*words: object) -> str:
    """Return a command for a message, as a shell takes it: words with blanks in them are quoted."""
    return shlex.join(map(str, words))


class StatefsError(Exception):
    """Something statefs could not do; the message is one line that says what to do about it."""

    exit_code = 1
    errno = _errno.EIO


class UsageError(StatefsError):
    """The input cannot be right; the message says what to type instead."""

    exit_code = 2
    errno = _errno.EINVAL


class NoSuchStore(StatefsError):
    """There is no store at the place named."""

    exit_code = 3
    errno = _errno.ENOENT


class NotMounted(StatefsError):
    """The state is not mounted, and the command needs it to be."""

    exit_code = 4
    errno = _errno.ENOENT


class AlreadyMounted(StatefsError):
    """The state, or its store, is mounted already."""

    exit_code = 5
    errno = _errno.EBUSY


class StoreLocked(StatefsError):
    """Another living process has the store open."""

    exit_code = 6
    errno = _errno.EBUSY


class NoSuchSnapshot(StatefsError):
    """No snapshot has that name, prefix or label."""

    exit_code = 7
    errno = _errno.ENOENT


class AmbiguousSnapshot(StatefsError):
    """A prefix fits more than one snapshot."""

    exit_code = 8
    errno = _errno.EINVAL


class FuseUnavailable(StatefsError):
    """This machine or this user cannot mount: /dev/fuse, fusermount3 or a permission is missing."""

    exit_code = 9
    errno = _errno.ENODEV


class MountPointNotEmpty(StatefsError):
    """Files lie under the mount point and would be hidden by the mount."""

    exit_code = 10
    errno = _errno.ENOTEMPTY


class NoSpace(StatefsError):
    """The filesystem that holds the store is full."""

    exit_code = 11
    errno = _errno.ENOSPC


class NewerStore(StatefsError):
    """The store was written by a newer statefs than this one."""

    exit_code = 12
    errno = _errno.EPROTO


class StaleMount(StatefsError):
    """A crash left a mount behind that no daemon serves."""

    exit_code = 13
    errno = _errno.ENOTCONN


class MountBusy(StatefsError):
    """Programs still use the mount, so it cannot be unmounted."""

    exit_code = 14
    errno = _errno.EBUSY


class SnapshotExists(StatefsError):
    """A snapshot with that name or label exists."""

    exit_code = 15
    errno = _errno.EEXIST


class DaemonUnreachable(StatefsError):
    """The store is held by a daemon that does not answer on its socket."""

    exit_code = 16
    errno = _errno.ECONNREFUSED


class InvalidConfig(StatefsError):
    """A statefs.toml cannot be understood; the message names the file and the key."""

    exit_code = 17
    errno = _errno.EINVAL


class HookFailed(StatefsError):
    """A command or a database of a volume failed or was late: nothing was saved."""

    exit_code = 18
    errno = _errno.ECANCELED


class SnapshotPinned(StatefsError):
    """The snapshot may not be deleted; the message says who pinned it, and why."""

    exit_code = 19
    errno = _errno.EPERM


class CorruptStore(StatefsError):
    """The store breaks a rule of docs/on-disk-format.md."""

    exit_code = 20
    errno = _errno.EIO


class ContentDamaged(StatefsError):
    """What an application wrote into a snapshot cannot be opened; the store is sound."""

    exit_code = 21
    errno = _errno.EIO


class NoSuchPath(StatefsError):
    """No file or folder has that path at the moment that was named."""

    exit_code = 22
    errno = _errno.ENOENT


class FilesInUse(StatefsError):
    """Programs have files open for writing that are to be restored; they are named."""

    exit_code = 23
    errno = _errno.EBUSY


class CloneExists(StatefsError):
    """A clone of that name exists."""

    exit_code = 24
    errno = _errno.EEXIST


class NoSuchClone(StatefsError):
    """No clone has that name."""

    exit_code = 25
    errno = _errno.ENOENT


class OlderStore(StatefsError):
    """The store was written by an older statefs; mounting it once migrates it."""

    exit_code = 26
    errno = _errno.EPROTO


class ReadOnlyStore(StatefsError):
    """The store lies on a read-only filesystem, and what is asked for has to write there."""

    exit_code = 27
    errno = _errno.EROFS


class Unhealthy(StatefsError):
    """Something that `statefs health` looks at is not well; its lines say what."""

    exit_code = 28


class StateDamaged(StatefsError):
    """A file of a state store cannot be understood; the message names the file and the line."""

    exit_code = 29


class NotInStore(StatefsError):
    """A state store has no document of that name."""

    exit_code = 30
    errno = _errno.ENOENT


class WrongKey(StatefsError):
    """An encrypted state store was made with another key than the one given."""

    exit_code = 31
    errno = _errno.EACCES


class ResumeMismatch(StatefsError):
    """A session was made by another state store than the one that is to go on with it."""

    exit_code = 32
    errno = _errno.EINVAL


class OperationLocked(StatefsError):
    """Another operation has the lock of a deploy state; the message says whose, and since when.

    Args:
        lock: the `OperationLock` that is there; None where the caller's own has been taken away.
    """

    exit_code = 34
    errno = _errno.EBUSY

    def __init__(self, message: str, lock: object = None) -> None:
        super().__init__(message)
        self.lock = lock


class OlderState(StatefsError):
    """What is to be written is no later version of the state that is there."""

    exit_code = 35
    errno = _errno.ESTALE


class MountEnded(StatefsError):
    """A signal has ended a mount before it was usable; nothing of it is left."""

    exit_code = 37
    errno = _errno.EINTR


def refusal(error: OSError, place: object = None) -> StatefsError:
    """Return what to tell of a refusal of the operating system: where, what, and what to do.

    Args:
        place: named where the error names none.
    """
    has_name = isinstance(error.filename, str | bytes)
    named = os.fsdecode(error.filename) if has_name else place
    where = "" if named is None else f"{named}: "
    advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    kind = NoSpace if error.errno in (_errno.ENOSPC, _errno.EDQUOT) else StatefsError
    return kind(f"{where}{error.strerror or error}{advice}")


def unforeseen(error: BaseException) -> StatefsError:
    """Return what to tell of an exception that nobody raised on purpose."""
    if isinstance(error, OSError):
        return refusal(error)
    return StatefsError(f"internal error: {type(error).__name__}: {error}")


class PosixError(StatefsError):
    """An operation on the tree failed in the way POSIX names; carries that errno.

    Args:
        errno: a code of the `errno` module.
    """

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno

    def __str__(self) -> str:
        return os.strerror(self.errno)
