"""ACLs: what the kernel's byte form holds, and how ACL and mode follow each other (acl(5))."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statefs.errors import PosixError
from statefs.volume import acl
from statefs.volume.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry

MINIMAL = [AclEntry(USER_OBJ, 6), AclEntry(GROUP_OBJ, 4), AclEntry(OTHER, 0)]
EXTENDED = [
    AclEntry(USER_OBJ, 7),
    AclEntry(USER, 6, 1000),
    AclEntry(GROUP_OBJ, 5),
    AclEntry(GROUP, 7, 100),
    AclEntry(MASK, 6),
    AclEntry(OTHER, 1),
]


def test_the_byte_form_is_the_kernels() -> None:
    """Version 2, then tag, permissions and id of each entry, little-endian."""
    assert acl.encode([AclEntry(USER, 6, 1000)]) == struct.pack("<IHHI", 2, 2, 6, 1000)
    assert acl.parse(acl.encode(EXTENDED)) == EXTENDED


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", errno.EINVAL),
        (b"\2\0\0", errno.EINVAL),
        (struct.pack("<I", 2) + b"half", errno.EINVAL),
        (struct.pack("<I", 1), errno.EOPNOTSUPP),
        (acl.encode(MINIMAL[:2]), errno.EINVAL),
        (acl.encode([*MINIMAL, AclEntry(USER_OBJ, 7)]), errno.EINVAL),
        (acl.encode([*MINIMAL, AclEntry(USER, 7, 5)]), errno.EINVAL),
        (acl.encode([*EXTENDED, AclEntry(MASK, 7)]), errno.EINVAL),
        (acl.encode([*EXTENDED, AclEntry(USER, 7, 1000)]), errno.EINVAL),
        (acl.encode([*MINIMAL, AclEntry(0x40, 7)]), errno.EINVAL),
        (acl.encode([*MINIMAL[:2], AclEntry(OTHER, 8)]), errno.EINVAL),
    ],
    ids=[
        "empty", "short", "half an entry", "version", "no other", "two owners", "no mask",
        "two masks", "a user twice", "unknown tag", "permission 8",
    ],
)  # fmt: skip
def test_what_is_no_acl_is_refused(value: bytes, expected: int) -> None:
    """With the errno that the kernel gives."""
    with pytest.raises(PosixError) as failure:
        acl.parse(value)
    assert failure.value.errno == expected


def test_an_acl_without_entries_is_one() -> None:
    """It means: none, take it away."""
    assert acl.parse(struct.pack("<I", 2)) == []


def test_the_mode_shows_the_mask_as_the_groups_bits() -> None:
    """With a mask; without one, the group's own. Other bits of the mode stay."""
    assert acl.mode_of(EXTENDED, 0o102000) == 0o102761
    assert acl.mode_of(MINIMAL, 0o4777) == 0o4640


def test_chmod_changes_the_mask_and_not_the_group() -> None:
    """So that chmod g-w takes it from every named user and group, too."""
    changed = {entry[:]: None for entry in acl.with_mode(EXTENDED, 0o640)}
    assert (MASK, 4, 0xFFFFFFFF) in changed
    assert (GROUP_OBJ, 5, 0xFFFFFFFF) in changed
    assert (USER_OBJ, 6, 0xFFFFFFFF) in changed
    assert acl.with_mode(MINIMAL, 0o751) == [
        AclEntry(USER_OBJ, 7), AclEntry(GROUP_OBJ, 5), AclEntry(OTHER, 1),
    ]  # fmt: skip


def test_a_new_file_gets_no_more_than_its_creator_asked_for() -> None:
    """The default ACL is what may be had, the mode given to open(2) takes away."""
    mode, access = acl.inherited(EXTENDED, 0o100640)
    assert mode == 0o100640
    assert access == [
        AclEntry(USER_OBJ, 6), AclEntry(USER, 6, 1000), AclEntry(GROUP_OBJ, 5),
        AclEntry(GROUP, 7, 100), AclEntry(MASK, 4), AclEntry(OTHER, 0),
    ]  # fmt: skip


def test_a_minimal_default_acl_is_just_a_mode() -> None:
    """No access ACL is stored for what the mode says already."""
    assert acl.inherited(MINIMAL, 0o100777) == (0o100640, None)


named = st.lists(
    st.tuples(st.sampled_from([USER, GROUP]), st.integers(0, 7), st.integers(0, 50)),
    max_size=4,
    unique_by=lambda entry: (entry[0], entry[2]),
)


@given(named=named, bits=st.tuples(*[st.integers(0, 7)] * 4), mode=st.integers(0, 0o7777))
def test_inheritance_never_gives_more(
    named: list[tuple[int, int, int]], bits: tuple[int, ...], mode: int
) -> None:
    """The new mode is within both the default ACL and what was asked for, and fits the ACL."""
    default = [
        AclEntry(USER_OBJ, bits[0]),
        *(AclEntry(*entry) for entry in named if entry[0] == USER),
        AclEntry(GROUP_OBJ, bits[1]),
        *(AclEntry(*entry) for entry in named if entry[0] == GROUP),
        *([AclEntry(MASK, bits[2])] if named else []),
        AclEntry(OTHER, bits[3]),
    ]
    assert acl.parse(acl.encode(default)) == default
    made, access = acl.inherited(default, mode)
    assert made & ~mode == 0
    assert made & ~acl.mode_of(default, mode) == 0
    assert (access is None) == (not named)
    if access is not None:
        assert acl.mode_of(access, mode) == made
        assert {entry[::2] for entry in access} == {entry[::2] for entry in default}
