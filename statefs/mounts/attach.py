"""Mounting and unmounting: mount(2) and umount2(2) as root, fusermount3 for everyone else.

Speaks no FUSE protocol: the first request is still unread in the descriptor that mounting returns.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Final

from statefs.durable import sync_filesystem
from statefs.errors import (
    FuseUnavailable,
    MountBusy,
    MountPointNotEmpty,
    NotMounted,
    StatefsError,
    UsageError,
    typed,
)
from statefs.mounts.options import MountOptions
from statefs.mounts.processes import FUSE_DEVICE, callers, processes_using
from statefs.mounts.table import FSTYPE, all_mounts, statefs_mounts

FUSE_CONF: Final = Path("/etc/fuse.conf")
PROCESS_STATUS: Final = Path("/proc/self/status")

FUSE_NUMBER: Final = os.makedev(10, 229)
"""Of the device. Source: Documentation/admin-guide/devices.txt of Linux."""
CAP_SYS_ADMIN: Final = 21
"""The number of the right to mount. Source: linux/capability.h."""
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

FUSERMOUNT_SECONDS: Final = 30.0
"""fusermount3 answers in milliseconds; umount may first have to write dirty pages."""
HOLDERS_NAMED_MAX: Final = 5
"""Processes named in the message of MountBusy."""
_NOT_PERMITTED: Final = (
    "mounting is not permitted here, though this is root: a container needs --cap-add SYS_ADMIN "
    "(and on some hosts --security-opt apparmor=unconfined)"
)


def mount_fuse(store: Path, mount_point: Path, options: MountOptions) -> int:
    """Mount a FUSE filesystem nobody serves yet; return the descriptor of its connection.

    Root mounts with mount(2); other users through fusermount3. The first request in the
    descriptor is the kernel's FUSE_INIT. Whoever closes the descriptor ends the connection.

    Args:
        store: what the mount table shows as the source.
        mount_point: an existing folder.

    Raises:
        FuseUnavailable: this machine or this user cannot mount; the message names the cure.
        UsageError: the mount point is missing, not a folder, or not the user's own.
    """
    require_mount_point(mount_point)
    require_fuse(options)
    if os.geteuid() == 0:
        return _mount_as_root(store, mount_point, options)
    return _mount_as_user(store, mount_point, options)


def require_empty(mount_point: Path) -> None:
    """Refuse a mount point that has files in it, because the mount would hide them.

    Raises:
        MountPointNotEmpty: names one of them, and what can be done.
    """
    with os.scandir(mount_point) as entries:
        first = next(iter(entries), None)
    if first is not None:
        raise MountPointNotEmpty(
            f"{mount_point} is not empty (there is {first.name}): move its files away, or import "
            f"them with '{typed('statefs', 'mount', mount_point, '--adopt')}'"
        )


def require_mount_point(mount_point: Path) -> None:
    """Refuse what this user could not mount on.

    Raises:
        UsageError: it is missing, no folder, or an ordinary user may not write there.
    """
    try:
        mode = mount_point.stat().st_mode
    except OSError as error:
        raise UsageError(f"cannot mount on {mount_point}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{mount_point} is not a folder: name a folder to mount on")
    if os.geteuid() != 0 and not os.access(mount_point, os.W_OK):
        raise UsageError(
            f"this user may not write in {mount_point}: name a folder of yours, or mount as root"
        )


def require_fuse(options: MountOptions) -> None:
    """Refuse what this machine or this user cannot mount, as far as that shows beforehand.

    Raises:
        FuseUnavailable: the message names the cure.
    """
    _require_device()
    if os.geteuid() == 0:
        os.close(_opened_device())
        if not _may_administer():
            raise FuseUnavailable(_NOT_PERMITTED)
        return
    if shutil.which("fusermount3") is None:
        raise FuseUnavailable(
            "fusermount3 is missing, and only root can mount without it: apt install fuse3"
        )
    if not _has_name():
        raise FuseUnavailable(
            f"fusermount3 does not mount for uid {os.getuid()}, which has no line in /etc/passwd: "
            "add one, or mount as root"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise FuseUnavailable(
            f"{FUSE_DEVICE} may not be opened by this user: run 'chmod 666 {FUSE_DEVICE}' as root"
        )
    os.close(_opened_device())
    if (options.allow_other or options.allow_root) and not _allow_other_is_permitted():
        raise FuseUnavailable(
            "allow_other is not permitted for ordinary users here: "
            f"add the line 'user_allow_other' to {FUSE_CONF}, or mount as root"
        )


def _has_name() -> bool:
    """Return whether the user is known by name, which fusermount3 wants; not so in containers."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _require_device() -> None:
    try:
        status = FUSE_DEVICE.stat()
    except FileNotFoundError:
        raise FuseUnavailable(
            f"{FUSE_DEVICE} is missing: run 'modprobe fuse' as root, or give the container the "
            f"option --device {FUSE_DEVICE}"
        ) from None
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != FUSE_NUMBER:
        raise FuseUnavailable(
            f"{FUSE_DEVICE} is there and is not the device of FUSE: remove it, then, as root, "
            f"'mknod -m 666 {FUSE_DEVICE} c 10 229'"
        )


def _allow_other_is_permitted() -> bool:
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # fusermount3 can read what we cannot; its own answer will do
    return any(line.strip() == "user_allow_other" for line in lines)


def _opened_device() -> int:
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FuseUnavailable(
            f"{FUSE_DEVICE} cannot be opened ({error.strerror}): run 'modprobe fuse', or give the "
            f"container the option --device {FUSE_DEVICE}"
        ) from error


def _may_administer() -> bool:
    """Return whether root may mount, which it may not in most containers."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", PROCESS_STATUS.read_text(), re.MULTILINE)
    return match is None or bool(int(match[1], 16) >> CAP_SYS_ADMIN & 1)


def _mount_as_root(store: Path, mount_point: Path, options: MountOptions) -> int:
    fd = _opened_device()
    flags = (
        (MS_RDONLY if options.read_only else 0)
        | (0 if options.suid else MS_NOSUID)
        | (0 if options.dev else MS_NODEV)
        | (MS_NOEXEC if options.noexec else 0)
    )
    mode = stat.S_IFMT(mount_point.stat().st_mode)
    data = f"fd={fd},rootmode={mode:o},user_id={os.geteuid()},group_id={os.getegid()}"
    data += ",default_permissions"
    if options.allow_other or options.allow_root:
        data += ",allow_other"
    try:
        _libc_call(
            "mount", os.fsencode(store), os.fsencode(mount_point), FSTYPE.encode(), flags, data
        )
    except OSError as error:
        os.close(fd)
        raise _mount_refused(mount_point, error) from error
    return fd


def _mount_refused(mount_point: Path, error: OSError) -> StatefsError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return FuseUnavailable(_NOT_PERMITTED)
    if error.errno == errno.ENODEV:
        return FuseUnavailable("this kernel has no FUSE: run 'modprobe fuse'")
    return FuseUnavailable(f"cannot mount on {mount_point}: {error.strerror}")


def _libc_call(function: str, *arguments: bytes | int | str) -> None:
    """Call a function of the C library that returns 0 or sets errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [
        ctypes.c_ulong(each)
        if isinstance(each, int)
        else ctypes.c_char_p(each.encode() if isinstance(each, str) else each)
        for each in arguments
    ]
    if getattr(libc, function)(*converted) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount_as_user(store: Path, mount_point: Path, options: MountOptions) -> int:
    words = [f"fsname={_fusermount_word(store)}", "subtype=statefs", "default_permissions"]
    words += ["nosuid", "nodev"]
    words += ["allow_other"] if options.allow_other or options.allow_root else []
    words += ["ro"] if options.read_only else []
    words += ["noexec"] if options.noexec else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        # fusermount3 sends the descriptor over a socket whose number it finds in this variable.
        process = subprocess.run(
            ["fusermount3", "-o", ",".join(words), "--", str(mount_point)],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=FUSERMOUNT_SECONDS,
            check=False,
        )
        if process.returncode != 0:
            raise FuseUnavailable(f"cannot mount on {mount_point}: {_last_line(process.stderr)}")
        return _received_fd(ours)


def _fusermount_word(store: Path) -> str:
    """Return a path as fusermount3 reads it: a comma or backslash has a backslash before it."""
    return re.sub(r"([\\,])", r"\\\1", str(store))


def _received_fd(channel: socket.socket) -> int:
    """Return the descriptor that fusermount3 has sent. Source: unix(7), SCM_RIGHTS."""
    fds = array.array("i")
    room = socket.CMSG_LEN(fds.itemsize)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        _, messages, _, _ = channel.recvmsg(1, room, flags)
    except BlockingIOError:
        messages = []
    for level, kind, content in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: fds.itemsize])
    if not fds:
        raise FuseUnavailable("fusermount3 mounted, but sent no descriptor")
    return fds[0]


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("fusermount3: ") if lines else "fusermount3 failed silently"


def unmount(mount_point: Path, *, lazy: bool = False, is_dead: bool = False) -> None:
    """Unmount. The daemon ends by itself a moment later; its lock tells when.

    Args:
        mount_point: as the mount table has it.
        lazy: take it out of the tree now, and end it when the last program lets go.
        is_dead: its daemon is gone: programs that wait for an answer get an error first.

    Raises:
        MountBusy: programs use it; they are named.
        NotMounted: nothing is mounted there.
        FuseUnavailable: this user may not unmount it.
    """
    if os.geteuid() != 0:
        _unmount_as_user(mount_point, lazy or is_dead)
        return
    if is_dead:
        # A thread of the dead process may be held by the kernel, and the connection by it: the
        # kernel ends neither by itself. Forcing aborts the connection, even when it is busy then.
        try:
            _libc_call("umount2", os.fsencode(mount_point), UMOUNT_NOFOLLOW | MNT_FORCE)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _refusal(mount_point, error) from error
    _unmount_as_root(mount_point, lazy or is_dead)


def _unmount_as_root(mount_point: Path, lazy: bool) -> None:
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    try:
        _libc_call("umount2", os.fsencode(mount_point), flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _busy(mount_point) from error
        raise _refusal(mount_point, error) from error


def _refusal(mount_point: Path, error: OSError) -> StatefsError:
    if error.errno in (errno.EINVAL, errno.ENOENT):
        return NotMounted(f"nothing is mounted at {mount_point}")
    return FuseUnavailable(f"cannot unmount {mount_point}: {error.strerror}")


def _unmount_as_user(mount_point: Path, lazy: bool) -> None:
    if shutil.which("fusermount3") is None:
        raise FuseUnavailable("fusermount3 is missing: apt install fuse3, or unmount as root")
    process = subprocess.run(
        ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mount_point)],
        env=os.environ | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=FUSERMOUNT_SECONDS,
        check=False,
    )
    if process.returncode == 0:
        return
    said = _last_line(process.stderr)
    if "busy" in said.lower():
        raise _busy(mount_point)
    if "not found in" in said or "not mounted" in said:
        if any(mount.mount_point == mount_point for mount in statefs_mounts()):
            raise FuseUnavailable(f"{mount_point} belongs to another user: unmount it as root")
        raise NotMounted(f"nothing is mounted at {mount_point}")
    raise FuseUnavailable(f"cannot unmount {mount_point}: {said}")


def write_back(mount_point: Path) -> None:
    """Have the kernel hand over what programs changed through shared mappings.

    Unmounting does that by itself; a mount that is only detached, and then ended, does not.

    Raises:
        OSError: the mount does not answer.
    """
    sync_filesystem(mount_point)


def _busy(mount_point: Path) -> MountBusy:
    inner = [m.mount_point for m in all_mounts() if mount_point in m.mount_point.parents]
    callers_pids = callers()
    processes = [each for each in processes_using(mount_point) if each.pid != os.getpid()]
    shells = [each for each in processes if each.only_stands and each.pid in callers_pids]
    others = [each for each in processes if each not in shells]
    lazy = f"detach it all the same with '{typed('statefs', 'umount', '--lazy', mount_point)}'"
    if shells and not inner and not others:
        pids = ", ".join(f"pid {each.pid}" for each in shells)
        return MountBusy(
            f"{mount_point} is in use: your shell ({pids}) stands in it: cd out of it first, "
            f"or {lazy}"
        )
    holders = [f"your shell (pid {each.pid}, standing in it)" for each in shells]
    holders += [*(f"a mount at {path}" for path in inner), *map(str, others)]
    named = ", ".join(holders[:HOLDERS_NAMED_MAX]) or "a program this user cannot see"
    more = (
        f" and {len(holders) - HOLDERS_NAMED_MAX} more" if len(holders) > HOLDERS_NAMED_MAX else ""
    )
    return MountBusy(
        f"{mount_point} is in use by {named}{more}: "
        f"{'cd out of it and end the rest' if shells else 'end that'}, or {lazy}"
    )
