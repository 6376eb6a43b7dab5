"""The user that PostgreSQL runs as, and folders of theirs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from statefs.hooks.commands import Account


def postgres_account() -> Account | None:
    """Return whom PostgreSQL is to run as: root's tests may not, all others do themselves (None).

    Skips the test where root has nobody else.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root and there is no user postgres")
    return Account(entry.pw_uid, entry.pw_gid)


def make_private_folder(path: Path, account: Account | None) -> None:
    """Make a folder for one user alone; None is the user of the test."""
    path.mkdir(parents=True, mode=0o700)
    if account:
        os.chown(path, account.uid, account.gid)
