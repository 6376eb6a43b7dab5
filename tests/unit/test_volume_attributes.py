"""Attributes of the living tree: modes, owners, times, extended attributes, durability."""

from __future__ import annotations

import errno
import stat

import pytest

from statefs.errors import PosixError
from statefs.ids import TREE_ROOT
from statefs.metadata.inodes import InodeFlag
from statefs.volume import acl
from statefs.volume.attributes import (
    CAPABILITY,
    DURABILITY,
    TIME_MAX_NS,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
    AttributeChange,
    storable_time,
)
from statefs.volume.names import RENAME_EXCHANGE
from tests.unit.engine_store import ME, EngineStore

BIG = 20_000
SETUID_MODE = stat.S_IFREG | 0o6755
ACCESS = acl.encode(
    [
        acl.AclEntry(acl.USER_OBJ, 7),
        acl.AclEntry(acl.USER, 6, 9),
        acl.AclEntry(acl.GROUP_OBJ, 5),
        acl.AclEntry(acl.MASK, 7),
        acl.AclEntry(acl.OTHER, 1),
    ]
)


def error_of(engine: EngineStore, ino: int, name: bytes, value: bytes) -> str:
    """Return the errno with which setting an attribute fails."""
    with pytest.raises(PosixError) as failure:
        engine.attributes.set_xattr(ino, name, value)
    return errno.errorcode[failure.value.errno]


def test_chmod_keeps_the_type_and_changes_ctime_alone(engine: EngineStore) -> None:
    """Bits beyond the twelve of a mode are not taken."""
    ino = engine.file("f")
    before = engine.node(ino).mtime_ns
    node = engine.attributes.set(ino, AttributeChange(mode=stat.S_IFDIR | 0o4751))
    assert node.mode == stat.S_IFREG | 0o4751
    assert node.mtime_ns == before < node.ctime_ns


def test_chown_takes_setuid_and_capabilities_from_all_but_folders(engine: EngineStore) -> None:
    """The setgid bit goes only where the group may execute."""
    ino, folder = engine.file("f"), engine.folder("d")
    engine.attributes.set(ino, AttributeChange(mode=0o6745))
    engine.attributes.set(folder, AttributeChange(mode=0o6755))
    engine.attributes.set_xattr(ino, CAPABILITY, b"cap")
    for one in (ino, folder):
        engine.attributes.set(one, AttributeChange(uid=5))
    assert stat.S_IMODE(engine.node(ino).mode) == 0o2745
    assert stat.S_IMODE(engine.node(folder).mode) == 0o6755
    assert engine.attributes.xattr_names(ino) == []


@pytest.mark.parametrize("size", [5, BIG])
@pytest.mark.parametrize("is_truncated", [False, True])
def test_a_write_takes_setuid_and_capabilities(
    engine: EngineStore, size: int, is_truncated: bool
) -> None:
    """The kernel leaves it to us: inline and in objects, by write and by truncation."""
    ino = engine.file("f", b"a" * size)
    engine.attributes.set(ino, AttributeChange(mode=SETUID_MODE))
    engine.attributes.set_xattr(ino, CAPABILITY, b"cap")
    if is_truncated:
        engine.data.truncate(ino, size - 1)
    else:
        engine.data.write(ino, 0, b"b")
    engine.forget_memory()
    assert stat.S_IMODE(engine.node(ino).mode) == 0o755
    assert engine.attributes.xattr_names(ino) == []


def test_times_beyond_64_bits_are_the_nearest(engine: EngineStore) -> None:
    """As on ext4, which clamps to its own range; and the nearest can be stored."""
    ino = engine.file("f")
    latest, earliest = storable_time(TIME_MAX_NS * 100), storable_time(-TIME_MAX_NS * 100)
    engine.attributes.set(ino, AttributeChange(atime_ns=latest, mtime_ns=earliest))
    engine.forget_memory()
    assert (engine.node(ino).atime_ns, engine.node(ino).mtime_ns) == (TIME_MAX_NS, -TIME_MAX_NS)
    assert storable_time(5) == 5


def test_an_attribute_is_set_changed_listed_and_removed(engine: EngineStore) -> None:
    """Any bytes; the flag says whether there are any."""
    ino = engine.file("f")
    attributes = engine.attributes
    attributes.set_xattr(ino, b"user.b", b"")
    attributes.set_xattr(ino, b"user.a", b"\0\xff")
    attributes.set_xattr(ino, b"user.b", b"x")
    assert attributes.xattr_names(ino) == [b"user.a", b"user.b"]
    assert (attributes.xattr(ino, b"user.a"), attributes.xattr(ino, b"user.b")) == (b"\0\xff", b"x")
    attributes.remove_xattr(ino, b"user.a")
    assert engine.node(ino).flags == InodeFlag.XATTRS
    attributes.remove_xattr(ino, b"user.b")
    assert engine.node(ino).flags == 0
    for action in (attributes.xattr, attributes.remove_xattr):
        with pytest.raises(PosixError) as failure:
            action(ino, b"user.a")
        assert failure.value.errno == errno.ENODATA


def test_a_snapshot_keeps_the_attributes_it_saw(engine: EngineStore) -> None:
    """Changed and removed ones, and none that came later."""
    ino = engine.file("f")
    engine.attributes.set_xattr(ino, b"user.a", b"1")
    engine.attributes.set_xattr(ino, b"user.b", b"1")
    epoch = engine.save()
    engine.attributes.set_xattr(ino, b"user.a", b"2")
    engine.attributes.remove_xattr(ino, b"user.b")
    engine.attributes.set_xattr(ino, b"user.c", b"2")
    past = engine.past(epoch)
    assert past.xattr_names(ino) == [b"user.a", b"user.b"]
    assert past.xattr(ino, b"user.a") == b"1"
    assert engine.attributes.xattr_names(ino) == [b"user.a", b"user.c"]


def test_limits_and_values_are_checked(engine: EngineStore) -> None:
    """xattr(7)'s limits, the durability modes, ACLs that are none or in the wrong place."""
    ino, folder = engine.file("f"), engine.folder("d")
    link = engine.names.create(TREE_ROOT, b"l", stat.S_IFLNK | 0o777, ME, target=b"x").ino
    assert error_of(engine, ino, b"user." + b"x" * XATTR_NAME_MAX, b"") == "ERANGE"
    assert error_of(engine, ino, b"user.x", bytes(XATTR_SIZE_MAX + 1)) == "E2BIG"
    assert error_of(engine, ino, DURABILITY, b"never") == "EINVAL"
    assert error_of(engine, folder, acl.DEFAULT, b"?") == "EINVAL"
    assert error_of(engine, ino, acl.DEFAULT, ACCESS) == "EACCES"
    assert error_of(engine, link, acl.ACCESS, ACCESS) == errno.errorcode[errno.EOPNOTSUPP]
    engine.attributes.set_xattr(ino, b"user.x", bytes(XATTR_SIZE_MAX))


def test_a_removed_folder_takes_no_attribute(engine: EngineStore) -> None:
    """It may be somebody's working directory; a row would never go away."""
    folder = engine.folder("d")
    engine.names.rmdir(TREE_ROOT, b"d")
    assert error_of(engine, folder, b"user.x", b"") == "ENOENT"
    assert engine.rows("xattrs") == 0


def test_an_access_acl_and_the_mode_follow_each_other(engine: EngineStore) -> None:
    """Setting either changes the other; a minimal ACL is a mode and no attribute."""
    ino = engine.file("f")
    engine.attributes.set_xattr(ino, acl.ACCESS, ACCESS)
    assert stat.S_IMODE(engine.node(ino).mode) == 0o771
    engine.attributes.set(ino, AttributeChange(mode=0o640))
    entries = {entry.tag: entry.permissions for entry in acl.parse(
        engine.attributes.xattr(ino, acl.ACCESS))}  # fmt: skip
    assert (entries[acl.USER_OBJ], entries[acl.MASK], entries[acl.OTHER]) == (6, 4, 0)
    assert entries[acl.GROUP_OBJ] == 5
    minimal = [
        acl.AclEntry(acl.USER_OBJ, 7), acl.AclEntry(acl.GROUP_OBJ, 0), acl.AclEntry(acl.OTHER, 0),
    ]  # fmt: skip
    engine.attributes.set_xattr(ino, acl.ACCESS, acl.encode(minimal))
    assert stat.S_IMODE(engine.node(ino).mode) == 0o700
    assert engine.node(ino).flags == 0


def test_removing_an_acl_that_is_not_there_is_fine(engine: EngineStore) -> None:
    """As `setfacl -b` does; and an ACL without entries removes one."""
    folder = engine.folder("d")
    engine.attributes.remove_xattr(folder, acl.DEFAULT)
    engine.attributes.set_xattr(folder, acl.DEFAULT, ACCESS)
    assert engine.node(folder).flags == InodeFlag.XATTRS | InodeFlag.DEFAULT_ACL
    engine.attributes.set_xattr(folder, acl.DEFAULT, acl.encode([]))
    assert engine.node(folder).flags == 0


def durability(engine: EngineStore, ino: int) -> str:
    """Return the durability in force, of a mount whose own is `close`."""
    return engine.attributes.durability(engine.node(ino), "close")


def test_durability_comes_from_the_nearest_folder_that_says_it(engine: EngineStore) -> None:
    """A file's own attribute first; the mount's mode at last; known again after each change."""
    outer = engine.folder("outer")
    inner = engine.folder("inner", outer)
    ino = engine.file("f", b"", inner)
    assert durability(engine, ino) == "close"
    engine.attributes.set_xattr(outer, DURABILITY, b"fsync")
    assert durability(engine, ino) == "fsync"
    engine.attributes.set_xattr(ino, DURABILITY, b"write")
    assert durability(engine, ino) == "write"
    engine.attributes.remove_xattr(ino, DURABILITY)
    engine.attributes.remove_xattr(outer, DURABILITY)
    assert durability(engine, ino) == "close"


def test_durability_follows_a_move(engine: EngineStore) -> None:
    """Of the file, of a folder above it, and by exchange."""
    fast, slow = engine.folder("fast"), engine.folder("slow")
    engine.attributes.set_xattr(slow, DURABILITY, b"write")
    ino = engine.file("f", b"", fast)
    assert durability(engine, ino) == "close"
    engine.names.rename(fast, b"f", slow, b"f")
    assert durability(engine, ino) == "write"
    engine.names.rename(slow, b"f", fast, b"f")
    engine.names.rename(TREE_ROOT, b"fast", slow, b"fast")
    assert durability(engine, ino) == "write"
    other = engine.folder("other")
    engine.names.rename(slow, b"fast", TREE_ROOT, b"other", RENAME_EXCHANGE)
    assert (durability(engine, ino), durability(engine, other)) == ("close", "write")


def test_a_file_outlives_the_folder_of_its_newest_name(engine: EngineStore) -> None:
    """Its durability is then the mount's, instead of an error at close(2)."""
    ino, folder = engine.file("f"), engine.folder("d")
    engine.names.link(ino, folder, b"g")
    engine.names.unlink(folder, b"g")
    engine.names.rmdir(TREE_ROOT, b"d")
    engine.forget_memory()
    assert durability(engine, ino) == "close"
