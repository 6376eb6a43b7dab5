"""Values that look like a secret itself, where a reference to one belongs.

A list of well-known forms of tokens, and of names under which secrets stand. It catches what a
program writes by mistake; it cannot know every secret, and a message never quotes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from statefs.errors import UsageError

REMOVED: Final = "secret:removed"
"""What stands in place of a secret that was taken out: a reference that leads nowhere."""


class _Form(NamedTuple):
    """What a kind of secret looks like.

    Args:
        name: for a message, with its article.
        hints: one of them is in each such secret; found much faster than the form.
        form: looks at no byte more than some hundred times, for the text may be anybody's.
    """

    name: str
    hints: tuple[str, ...]
    form: re.Pattern[str]


_FORMS: Final = [
    _Form(name, tuple(hints.split()), re.compile(form))
    for name, hints, form in (
        ("a private key", "-----BEGIN", r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"),
        (
            "a JSON Web Token",
            "eyJ",
            r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
        ),
        (
            "an API key",
            "sk- sk_ rk- rk_",
            r"\b(sk-(ant|proj|or|admin)-[\w-]{20,}|[sr]k[-_]((live|test)_)?[A-Za-z0-9]{20,})",
        ),
        (
            "a GitHub token",
            "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
            r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22})",
        ),
        ("a GitLab token", "glpat-", r"\bglpat-[\w-]{20}"),
        ("an AWS key", "AKIA ASIA", r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
        ("a Google key", "AIza ya29.", r"\b(AIza[\w-]{35}|ya29\.[\w-]{20,})"),
        ("a Slack token", "xox", r"\bxox[abeoprs]-[\w-]{10,}"),
        ("a Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{30,}"),
        (
            "a token of a package index",
            "npm_ pypi-",
            r"\b(npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,})",
        ),
        (
            "a bearer token",
            "Bearer bearer BEARER",
            r"\b(Bearer|bearer|BEARER) {1,4}[\w.~+/-]{16,}",
        ),
        (
            "a password in an address",
            "://",
            r"://[^\s/:@]{0,200}:[^\s/@$:]{1,200}@",
        ),
    )
]

_SECRET_KEYS: Final = re.compile(
    r"(.*_)?(password|passwd|passphrase|secret|client_secret|credentials?|authorization"
    r"|(api|access|private|secret|signing|encryption)_?key"
    r"|(access|refresh|auth|bearer|id|api|session)_?token)"
)
"""Names of keys, in small letters and with `_`, whose text is a secret or a reference to one."""
_WORD_BREAK: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")
_REFERENCE: Final = re.compile(r"(secret|env|file|keyring|vault):\S+|\$\{\w+\}|\*+|")


class Suspect(NamedTuple):
    """A text that looks like a secret.

    Args:
        at: where in the value, such as `headers.authorization` or `[2]`; empty for all of it.
        looks_like: what it seems to be, with its article.
    """

    at: str
    looks_like: str


def require_no_secret(value: Any, what: str) -> None:
    """Refuse a value in which something looks like a secret.

    Args:
        value: as JSON holds it, or bytes.
        what: it is, for the message.

    Raises:
        UsageError: it has one; the message says where, and does not quote it.
    """
    for at, looks_like in suspects_in(value):
        place = f" at '{at}'" if at else ""
        raise UsageError(
            f"{what} has what looks like {looks_like}{place}: keep a reference in its place, "
            "such as 'env:NAME'"
        )


def suspects_in(value: Any) -> Iterator[Suspect]:
    """Return what looks like a secret in a value that JSON holds, or in bytes."""
    waiting: list[tuple[str, str, Any]] = [("", "", value)]
    while waiting:
        at, key, each = waiting.pop()
        if isinstance(each, bytes):
            each = each.decode("latin-1")
        if isinstance(each, str):
            looks_like = _likeness(key, each)
            if looks_like is not None:
                yield Suspect(at, looks_like)
        elif isinstance(each, dict):
            for name, member in each.items():
                yield from (Suspect(at, looks_like) for looks_like in _forms_in(name))
                waiting.append((f"{at}.{name}".lstrip("."), name, member))
        elif isinstance(each, list):
            waiting += [(f"{at}[{number}]", key, member) for number, member in enumerate(each)]


def without_secrets(value: Any) -> Any:
    """Return a value that JSON holds with REMOVED in place of all that looks like a secret.

    For text that a program has not made itself, such as what a tool has printed.
    """
    return _cleaned("", value)


def _cleaned(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {_redacted(name): _cleaned(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [_cleaned(key, member) for member in value]
    if not isinstance(value, str):
        return value
    text = _redacted(value)
    return REMOVED if _likeness(key, text) is not None else text


def _redacted(text: str) -> str:
    for each in _FORMS:
        text = each.form.sub(REMOVED, text)
    return text


def _likeness(key: str, text: str) -> str | None:
    """Return what a text looks like that stands under a key; None where it is no secret."""
    for looks_like in _forms_in(text):
        return looks_like
    name = _WORD_BREAK.sub("_", key).lower()
    if _SECRET_KEYS.fullmatch(name) and not _REFERENCE.fullmatch(text):
        return "the secret that the name of its key promises"
    return None


def _forms_in(text: str) -> Iterator[str]:
    for each in _FORMS:
        if any(hint in text for hint in each.hints) and each.form.search(text):
            yield each.name
