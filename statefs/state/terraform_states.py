"""States of Terraform and OpenTofu in a folder: a file each, as the program wrote it.

What is in a state is Terraform's affair; here it has a lineage, a serial, and some resources.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from statefs.clock import Clock, iso_time
from statefs.errors import UsageError
from statefs.state.deploy_documents import Lineage, Serial
from statefs.state.documents import Form
from statefs.state.identifiers import file_name_of
from statefs.state.operation_lock import OperationLock
from statefs.state.state_file import StateFile

SUFFIX: Final = ".tfstate"


class TerraformState(msgspec.Struct):
    """The part of Terraform's state that is looked at. Source: its JSON, version 4.

    Args:
        version: of the format; any.
        resources: of whatever kind.
    """

    version: int
    lineage: Lineage
    serial: Serial
    resources: list[dict[str, Any]] = []


TERRAFORM_FORM: Final = Form(TerraformState, version=None)


class LockInfo(msgspec.Struct, rename="pascal"):
    """A lock as Terraform sends it, and reads it. Source: its `statemgr.LockInfo`.

    Args:
        id: without which nobody gives it back.
        created: RFC 3339; Terraform cannot read a lock of which it is anything else.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] = msgspec.field(name="ID")
    operation: str = ""
    info: str = ""
    who: str = ""
    version: str = ""
    created: str = ""
    path: str = ""


def state_file(folder: Path, name: str, clock: Clock) -> StateFile:
    """Return the state of a name; each version that is replaced is kept.

    Raises:
        UsageError: nothing can be called so.
    """
    path = folder / file_name_of(name, SUFFIX, "state's name")
    return StateFile(path, TERRAFORM_FORM, keep_each=True, clock=clock)


def lock_from(data: bytes, clock: Clock) -> OperationLock:
    """Return the lock that a program asks for; nobody here can tell whether that program lives.

    Args:
        data: a `LockInfo`, in JSON; further fields are passed over.
        clock: for one that does not say when it was made.

    Raises:
        UsageError: it is none.
    """
    try:
        found = msgspec.json.decode(data, type=LockInfo)
        if found.created:
            msgspec.convert(found.created, datetime)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"that is no lock: {error}") from None
    return OperationLock(
        id=found.id,
        operation=found.operation,
        holder=found.who,
        created_at=found.created or iso_time(clock.now_ns()),
        info=found.info,
        software=found.version,
        path=found.path,
    )


def lock_info_of(lock: OperationLock) -> bytes:
    """Return a lock as Terraform reads it."""
    return msgspec.json.encode(
        LockInfo(
            id=lock.id,
            operation=lock.operation,
            info=lock.info,
            who=lock.holder,
            version=lock.software,
            created=lock.created_at,
            path=lock.path,
        )
    )
