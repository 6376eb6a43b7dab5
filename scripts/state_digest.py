#!/usr/bin/env python3
"""Print the stateDigest of a folder, e.g. state/snapshots/NAME; docs/state-digest.md says how.

With --volume behind it nothing in the folder is left out: the `digest` of a volume.
Needs Python alone, nothing of statefs. Run it as root: an ordinary user sees no trusted.*
attributes and cannot read everybody's files, and so gets another value or an error.
"""

import hashlib
import os
import stat
import sys

KINDS = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l", stat.S_IFIFO: b"p",
         stat.S_IFSOCK: b"s", stat.S_IFCHR: b"c", stat.S_IFBLK: b"b"}  # fmt: skip
SPACES = ("user.", "trusted.", "security.", "system.posix_acl_")


def netstring(data: bytes) -> bytes:
    """Return bytes with their length before them."""
    return b"%d:%b," % (len(data), data)


def entry(path: bytes, name: bytes) -> bytes:
    """Return what a folder's digest is made of, for one of its names."""
    status = os.lstat(path)
    kind, size, content = KINDS[stat.S_IFMT(status.st_mode)], 0, b""
    if kind == b"f":
        with open(path, "rb") as file:
            size, content = status.st_size, hashlib.file_digest(file, "sha256").digest()
    elif kind == b"l":
        content = os.readlink(path)
        size = len(content)
    elif kind == b"d":
        content = folder(path)
    elif kind in b"cb":
        content = b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
    names = [each for each in os.listxattr(path, follow_symlinks=False) if each.startswith(SPACES)]
    xattrs = b"".join(
        netstring(each) + netstring(os.getxattr(path, each, follow_symlinks=False))
        for each in sorted(map(os.fsencode, names))
    )
    numbers = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, size)
    fields = (name, kind, *(b"%d" % number for number in numbers), content, xattrs)
    return netstring(b"".join(map(netstring, fields)))


def folder(path: bytes, left_out: tuple[bytes, ...] = ()) -> bytes:
    """Return the digest of a folder."""
    names = sorted(set(os.listdir(path)) - set(left_out))
    entries = (entry(os.path.join(path, name), name) for name in names)
    return hashlib.sha256(b"".join(entries)).digest()


if __name__ == "__main__":
    not_of_the_state = () if "--volume" in sys.argv[2:] else (b"runtime", b"metadata.json")
    print("sha256:" + folder(os.fsencode(sys.argv[1]), not_of_the_state).hex())
