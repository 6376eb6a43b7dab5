"""Making files of members, below one folder and nowhere else.

No symbolic link is ever followed: each folder on the way to a member is opened by itself, and must
be one. Folders get their attributes last, since what is made in them changes their times and needs
their permissions.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from statefs.archive.headers import ACLS, Member
from statefs.archive.reading import Archive
from statefs.errors import UsageError
from statefs.snapshots.reports import path_text
from statefs.volume import acl

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
IMPLIED_FOLDER: Final = stat.S_IFDIR | 0o755
"""A folder that an archive has files of, but does not mention."""
ROOTS_ONLY: Final = (b"trusted.", b"security.")
"""Extended attributes that only root may set."""


class Extraction:
    """Files being made below one folder; `left_out` counts what only root may make.

    Args:
        root: the folder, empty; open until this is done with.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._is_root_user = os.geteuid() == 0
        self._folders: dict[bytes, Member] = {}
        self._open: tuple[bytes, int] | None = None
        self.left_out = 0

    @property
    def root_member(self) -> Member | None:
        """The member that was the root itself, if there was one."""
        return self._folders.get(b".")

    @property
    def folders(self) -> Mapping[bytes, Member]:
        """The members that are folders."""
        return self._folders

    def add(self, member: Member, archive: Archive) -> None:
        """Make one member; one of the same name that came before is replaced.

        Raises:
            UsageError: it cannot be made there. OSError: the disk refused.
        """
        try:
            self._add(member, archive)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.EISDIR):
                raise UsageError(
                    f"{path_text(member.path)}: something else of that name comes before it in the "
                    "archive, or it leads through a link; it is refused"
                ) from error
            raise OSError(error.errno, error.strerror, path_text(member.path)) from error

    def _add(self, member: Member, archive: Archive) -> None:
        if stat.S_ISDIR(member.mode):
            self._folder(member.path)
            self._folders[member.path] = member
            return
        if member.path == b".":
            raise UsageError(".: the root of an archive must be a folder")
        folder, name = self._parent(member.path)
        self._remove(folder, name)
        if member.hard_link is not None:
            self._link(member, member.hard_link, folder, name)
        elif stat.S_ISREG(member.mode):
            self._file(member, archive, folder, name)
        elif self._special(member, folder, name):
            self._apply(_path(folder, name), member, follow=False)

    def _folder(self, path: bytes) -> int:
        """Return a folder, open until another one is asked for; made where it is missing."""
        if self._open is not None:
            if self._open[0] == path:
                return self._open[1]
            self._let_go()
        fd = os.open(b".", FOLDER_FLAGS, dir_fd=self._root)
        done = b""
        for part in path.split(b"/") if path != b"." else ():
            done = done + b"/" + part if done else part
            try:
                try:
                    below = os.open(part, FOLDER_FLAGS, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(part, PRIVATE_FOLDER, dir_fd=fd)
                    self._folders.setdefault(done, Member(done, IMPLIED_FOLDER))
                    below = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        self._open = (path, fd)
        return fd

    def _let_go(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        folder, _, name = path.rpartition(b"/")
        return self._folder(folder or b"."), name

    @staticmethod
    def _remove(folder: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass

    def _link(self, member: Member, first: bytes, folder: int, name: bytes) -> None:
        keep = os.dup(folder)
        try:
            source, source_name = self._parent(first)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=keep, follow_symlinks=False)
        except FileNotFoundError:
            raise UsageError(
                f"{path_text(member.path)}: it is a hard link to {path_text(first)}, which does"
                " not come before it"
            ) from None
        finally:
            os.close(keep)

    def _file(self, member: Member, archive: Archive, folder: int, name: bytes) -> None:
        fd = os.open(name, FILE_FLAGS, PRIVATE_FILE, dir_fd=folder)
        try:
            for offset, data in archive.content(member):
                view = memoryview(data)
                while view:
                    count = os.pwrite(fd, view, offset)
                    view, offset = view[count:], offset + count
            if os.fstat(fd).st_size != member.size:
                os.ftruncate(fd, member.size)
            self._apply(fd, member)
        finally:
            os.close(fd)

    def _special(self, member: Member, folder: int, name: bytes) -> bool:
        """Make a link, fifo or device; return whether this user may."""
        if stat.S_ISLNK(member.mode):
            os.symlink(member.target, name, dir_fd=folder)
            return True
        is_device = not stat.S_ISFIFO(member.mode)
        if is_device and not self._is_root_user:
            self.left_out += 1
            return False
        mode = stat.S_IFMT(member.mode) | PRIVATE_FILE
        os.mknod(name, mode, os.makedev(*member.rdev) if is_device else 0, dir_fd=folder)
        return True

    def _apply(self, path: int | bytes, member: Member, follow: bool = True) -> None:
        """Give a file the attributes of its member: each undoes some of those before it."""
        if self._is_root_user:
            os.chown(path, member.uid, member.gid, follow_symlinks=follow)
        for name, value in member.xattrs.items():
            if name.startswith(ROOTS_ONLY) and not self._is_root_user:
                self.left_out += 1
            elif name not in ACLS:
                os.setxattr(path, name, value, follow_symlinks=follow)
        if not stat.S_ISLNK(member.mode):
            if acl.ACCESS in member.xattrs:
                os.setxattr(path, acl.ACCESS, member.xattrs[acl.ACCESS], follow_symlinks=follow)
            os.chmod(path, stat.S_IMODE(member.mode))
            if acl.DEFAULT in member.xattrs:
                os.setxattr(path, acl.DEFAULT, member.xattrs[acl.DEFAULT], follow_symlinks=follow)
        atime_ns = member.mtime_ns if member.atime_ns is None else member.atime_ns
        os.utime(path, ns=(atime_ns, member.mtime_ns), follow_symlinks=follow)

    def finish(self) -> None:
        """Give folders their attributes, the deepest first; the root keeps its own."""
        for path in sorted(self._folders, key=lambda path: path.count(b"/"), reverse=True):
            if path != b".":
                self._apply(self._folder(path), self._folders[path])
        self._let_go()

    def apply_to_root(self, member: Member) -> None:
        """Give the root its attributes, after all else."""
        self._apply(self._root, member)

    def close(self) -> None:
        """Let go of what is open."""
        self._let_go()


def _path(folder: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (folder, name)


Attributes = tuple[os.stat_result, dict[str, bytes]]


def attributes_of(fd: int) -> Attributes:
    """Return what `set_attributes` needs to make a folder again what it is now."""
    return os.fstat(fd), {name: os.getxattr(fd, name) for name in os.listxattr(fd)}


def set_attributes(fd: int, attributes: Attributes) -> None:
    """Give a folder the owner, mode, extended attributes and times that another one had."""
    status, xattrs = attributes
    if os.geteuid() == 0:
        os.fchown(fd, status.st_uid, status.st_gid)
    for name in set(os.listxattr(fd)) - xattrs.keys():
        os.removexattr(fd, name)
    for name, value in xattrs.items():
        os.setxattr(fd, name, value)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def opened_folder(path: bytes, root: int) -> Iterator[int]:
    """Give a folder below another one, no link on the way to it followed.

    Raises:
        OSError: it is not there (ENOENT), or no folder (ENOTDIR).
    """
    fd = os.open(b".", FOLDER_FLAGS, dir_fd=root)
    try:
        for part in path.split(b"/"):
            below = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)
