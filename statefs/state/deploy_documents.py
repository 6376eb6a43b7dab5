"""What a deploy state is: the resources of one project on one target, by URN. Types and names."""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec

from statefs.errors import UsageError
from statefs.state.documents import Form
from statefs.state.identifiers import checked_id, file_name_of, name_of_file

DEPLOY_VERSION: Final = 1
PREFIX: Final = "state."
SUFFIX: Final = ".json"

Serial = Annotated[int, msgspec.Meta(ge=0)]
Lineage = Annotated[str, msgspec.Meta(min_length=1)]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where something is deployed.

    Args:
        provider: such as `aws` or `ssh`; without a dot.
        locator: which one of the provider's, such as a region or a host.
    """

    provider: str
    locator: str


class Primitive(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A resource that exists.

    Args:
        id: by which its provider knows it.
        attributes: whatever the program wants to know of it.
        recorded_at: in ISO 8601.
        adopted: whether a lookup has found it, in place of this project's own making it.
    """

    id: str
    attributes: dict[str, Any] = {}
    recorded_at: str
    adopted: bool = False


class DeployDocument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The file of a deploy state.

    Args:
        lineage: the same in all versions of one state, in no other.
        serial: counted up with each version, from 1.
        primitives: by URN.
    """

    version: int = DEPLOY_VERSION
    lineage: Lineage
    serial: Serial
    project: str
    target: Target
    primitives: dict[str, Primitive] = {}


DEPLOY_FORM: Final = Form(DeployDocument, DEPLOY_VERSION)


class Urn(NamedTuple):
    """The parts of `<project>.<type>.<name>`.

    Args:
        project, type: without a dot.
        name: may have dots.
    """

    project: str
    type: str
    name: str

    def __str__(self) -> str:
        return ".".join(self)


def urn_of(text: object) -> Urn:
    """Return the parts of a URN.

    Raises:
        UsageError: it has not the three of them.
    """
    project, _, rest = checked_id(text, "URN").partition(".")
    type_, _, name = rest.partition(".")
    if not (project and type_ and name):
        raise UsageError(f"the URN '{text}' is not of the form PROJECT.TYPE.NAME")
    return Urn(project, type_, name)


def checked_part(text: object, what: str) -> str:
    """Return a part of a URN or a file name that a dot ends.

    Raises:
        UsageError: it is empty, has a dot, or is no text.
    """
    if "." in checked_id(text, what):
        raise UsageError(f"the {what} '{text}' has a dot, which would end it")
    return str(text)


def file_of_target(target: Target) -> str:
    """Return the file name of the state of a target.

    Raises:
        UsageError: the provider has a dot, or one of the two cannot be part of a file name.
    """
    provider = checked_part(target.provider, "provider")
    locator = checked_id(target.locator, "locator")
    return file_name_of(f"{PREFIX}{provider}.{locator}", SUFFIX, "target")


def target_of_file(file_name: str) -> Target | None:
    """Return the target whose state a file name stands for; None for any other file."""
    name = name_of_file(file_name, SUFFIX)
    if name is None or not name.startswith(PREFIX):
        return None
    provider, _, locator = name.removeprefix(PREFIX).partition(".")
    return Target(provider, locator) if provider and locator else None
