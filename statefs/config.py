"""A store's settings, statefs.toml, read strictly: names, defaults, and what may be wrong.

A file that is missing means the defaults. Anything that is not understood is an error of one line
that names the file and the key; nothing is ever ignored. docs/configuration.md explains each key.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from statefs.errors import InvalidConfig, refusal
from statefs.layout import RUNTIME

_DURATION_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds in each unit; there are no months and years, whose lengths differ."""
_SIZE_UNITS: Final = {
    **{f"{prefix}b": 1000**power for power, prefix in enumerate(("", "k", "m", "g", "t"))},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate(("k", "m", "g", "t"), 1)},
}
"""Bytes in each unit, in small letters."""
_NUMBER: Final = r"\d+(?:\.\d+)?"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""A volume's name is also the name of a file."""
_SHOWN_MAX: Final = 60
"""Characters of a wrong value that a message shows."""
_NEAR: Final = 0.6
"""How alike two keys are, from 0 to 1, for one to be suggested for the other."""


class Duration(float):
    """A number of seconds; in the file a number, or "30s", "5m", "1h30m", "2d", "1w"."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Return the seconds that a value of the file means. Raises ValueError."""
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
            return cls(value)
        text = value.replace(" ", "") if isinstance(value, str) else ""
        if not re.fullmatch(rf"(?:{_NUMBER}[smhdw])+", text):
            raise ValueError(f"'{value}' is no duration: write seconds, or '30s', '5m', '1h', '2d'")
        parts = re.findall(rf"({_NUMBER})([smhdw])", text)
        return cls.parse(sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts))


class Size(int):
    """A number of bytes; in the file a number, or "20MB", "1.5GiB"."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """Return the bytes that a value of the file means. Raises ValueError."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
            return cls(value)
        text = value.replace(" ", "").lower() if isinstance(value, str) else ""
        match = re.fullmatch(rf"({_NUMBER})([kmgt]?i?b)", text)
        if not match or match[2] not in _SIZE_UNITS:
            raise ValueError(f"'{value}' is no size: write bytes, or '20MB', '512KiB', '1.5GiB'")
        bytes_wanted = float(match[1]) * _SIZE_UNITS[match[2]]
        if bytes_wanted >= 1 << 63:
            raise ValueError(f"{_as_written(value)} is more than any disk holds")
        return cls(bytes_wanted)


Table = dict[str, Any]
LOOK_SECONDS_LEAST: Final = 0.1
"""Looking more often would cost more than it tells."""
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Command = Annotated[tuple[str, ...], Meta(min_length=1)]
"""A program and its arguments; no shell looks at them."""
EventName = Literal[
    "state:saved",
    "state:loaded",
    "state:save-error",
    "autosave:triggered",
    "disk:low",
    "corruption:detected",
    "worker:restarted",
    "health:changed",
]
"""What can happen (telemetry/events.py)."""
VolumeConsistency = Literal["generic", "sqlite", "postgres"]
"""What statefs does for a volume around a save (hooks/)."""


class Retention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[retention]: which snapshots are kept; 0 means that a rule is not used."""

    max_snapshots: Count = 100
    keep_last: Count = 0
    keep_hourly: Count = 0
    keep_daily: Count = 0
    keep_weekly: Count = 0
    keep_monthly: Count = 0
    keep_labels: tuple[str, ...] = ()
    keep_within_seconds: Duration = field(default=Duration(0), name="keep_within")
    protect_labelled: bool = True
    protect_before: bool = False
    relative_to: Literal["now", "newest"] = "now"
    min_free_bytes: Size = field(default=Size(0), name="min_free")
    max_store_bytes: Size = Size(0)


class Scrub(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[scrub]: reading everything again in the background, to find damage early."""

    rate_bytes_per_second: Size = field(default=Size(20_000_000), name="rate")
    interval_seconds: Duration = field(default=Duration(30 * 86400), name="interval")

    def __post_init__(self) -> None:
        if self.rate_bytes_per_second < 1:
            raise ValueError("rate must be more than 0 bytes per second")


class Backups(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[backups]: copies of the store's database, for `statefs repair`."""

    interval_seconds: Duration = field(default=Duration(3600), name="interval")
    count: Annotated[int, Meta(ge=1, le=1000)] = 10
    max_bytes: Size = Size(2 << 30)


class Health(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[health]: what is still well; 0 sets no limit."""

    min_free_bytes: Size = field(default=Size(100_000_000), name="min_free")
    full_within_seconds: Duration = field(default=Duration(0), name="full_within")
    max_save_age_seconds: Duration = field(default=Duration(0), name="max_save_age")
    max_unsynced_bytes: Size = field(default=Size(0), name="max_unsynced")
    max_seal_backlog: Count = 0
    max_restarts: Count = 0
    interval_seconds: Duration = field(default=Duration(10), name="interval")

    def __post_init__(self) -> None:
        if self.interval_seconds < LOOK_SECONDS_LEAST:
            raise ValueError(f"interval must be {LOOK_SECONDS_LEAST:g} seconds or more")


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[metrics]: where Prometheus finds what is counted."""

    textfile: str = ""
    interval_seconds: Duration = field(default=Duration(15), name="interval")
    port: Annotated[int, Meta(ge=0, le=65535)] = 0

    def __post_init__(self) -> None:
        if self.textfile and not self.textfile.startswith("/"):
            raise ValueError(f"textfile '{self.textfile}' must begin with /")
        if self.interval_seconds < LOOK_SECONDS_LEAST:
            raise ValueError(f"interval must be {LOOK_SECONDS_LEAST:g} seconds or more")


class EventHook(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[events]]: a command that is run when something has happened."""

    hook: Command
    on: tuple[EventName, ...] = ()
    deadline_seconds: Duration = field(default=Duration(30), name="deadline")

    def __post_init__(self) -> None:
        if self.deadline_seconds <= 0:
            raise ValueError("deadline must be more than 0 seconds")


class VolumeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[volumes]]: a folder of current/ whose application takes part in saves."""

    name: str
    path: str = ""
    consistency: VolumeConsistency = "generic"
    connection: str = ""
    dump: bool | None = None
    check: bool | None = None
    before_save: tuple[Command, ...] = ()
    after_save: tuple[Command, ...] = ()
    on_failure: tuple[Command, ...] = ()
    deadline_seconds: Duration = field(default=Duration(30), name="deadline")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name '{self.name}' may have letters, digits and . _ - only")
        parts = PurePosixPath(self.path).parts
        if self.path.startswith("/") or ".." in parts or "\0" in self.path:
            raise ValueError(f"path '{self.path}' must be a folder inside of current/")
        if parts[:1] == (RUNTIME.decode(),):
            raise ValueError("path is in runtime/, which snapshots leave out")
        if self.consistency != "postgres" and (self.connection or self.dump is not None):
            raise ValueError('connection and dump need consistency = "postgres"')
        if self.dump and not self.connection:
            raise ValueError("dump = true needs a connection")
        if self.deadline_seconds <= 0:
            raise ValueError("deadline must be more than 0 seconds")

    @property
    def folder(self) -> str:
        """The folder below current/; `volumes/NAME` when no path is given."""
        return self.path or f"volumes/{self.name}"

    @property
    def is_checked(self) -> bool:
        """Whether what is in it is opened after each save."""
        return self.consistency == "sqlite" if self.check is None else self.check

    @property
    def is_dumped(self) -> bool:
        """Whether a logical dump is made before each save."""
        return bool(self.connection) and self.dump is not False


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that statefs.toml may say."""

    log_format: Literal["text", "json"] = "text"
    autosave: bool = False
    autosave_debounce_seconds: Duration = field(default=Duration(30), name="autosave_debounce")
    retention: Retention = Retention()
    scrub: Scrub = Scrub()
    health: Health = Health()
    metrics: Metrics = Metrics()
    backups: Backups = Backups()
    events: tuple[EventHook, ...] = ()
    volumes: tuple[VolumeConfig, ...] = ()

    def __post_init__(self) -> None:
        names = [volume.name for volume in self.volumes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two volumes have the name '{name}'")


def read_config(path: Path) -> Config:
    """Return what a statefs.toml says; the defaults where there is no such file.

    Raises:
        InvalidConfig: it cannot be read or understood; one line with the file and the key.
    """
    try:
        return parse_config(path.read_bytes().decode(), str(path))
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise InvalidConfig(str(refusal(error, path))) from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path}: not UTF-8 at byte {error.start}") from error


def parse_config(text: str, source: str) -> Config:
    """Return what the text of a statefs.toml says.

    Args:
        source: what errors call the file.

    Raises:
        InvalidConfig: see `read_config`.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets in brackets
        raise InvalidConfig(f"{source}: not TOML: {_one_line(error)}") from error
    _refuse_nul(values, source)
    _refuse_mistakes(Config, values, "", source)
    try:
        return msgspec.convert(values, Config, dec_hook=from_file_value)
    except msgspec.ValidationError as error:
        what, _, where = _one_line(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        raise InvalidConfig(f"{source}: {f'{key}: ' if key else ''}{what}") from error


def from_file_value(kind: type, value: object) -> object:
    """Return a Duration or a Size for what the file says; for msgspec, as `dec_hook`."""
    assert issubclass(kind, Duration | Size)
    return kind.parse(value)


def to_file_value(value: object) -> float:
    """Return the number that a Duration or a Size is; for msgspec, as `enc_hook`."""
    assert isinstance(value, Duration | Size)
    return value + 0


def _refuse_nul(value: object, source: str) -> None:
    """Refuse what no path, no argument of a program and no label can hold."""
    if isinstance(value, str) and "\0" in value:
        raise InvalidConfig(f"{source}: {_as_written(value)}: no text may hold a NUL")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _refuse_nul(each, source)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def keys_of(kind: type[Struct]) -> dict[str, Any]:
    """Return the keys of a table of the file, with the type of each one's value."""
    hints = get_type_hints(kind, include_extras=True)
    names = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
    return {key: hints[name] for key, name in names}


def tables() -> dict[str, type[Struct]]:
    """Return the tables of the file by the name in brackets; "" is what stands above them all."""
    found: dict[str, type[Struct]] = {"": Config}
    for key, hint in keys_of(Config).items():
        if table := _table_of(hint):
            found[key] = table
    return found


def _table_of(hint: Any) -> type[Struct] | None:
    inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def _refuse_mistakes(kind: type[Struct], values: Table, place: str, source: str) -> None:
    """Refuse the first key of a table that is not known, is missing, or has a wrong value.

    What a value may be beyond its type its own type says, when it is made.
    """
    known = keys_of(kind)
    for key, value in values.items():
        if key not in known:
            raise InvalidConfig(f"{source}: {_suggestion(place, key, list(known))}")
        _refuse_wrong_value(known[key], value, f"{place}{key}", source)
    for each in msgspec.structs.fields(kind):
        if each.required and each.encode_name not in values:
            raise InvalidConfig(f"{source}: {place}{each.encode_name}: this key is missing")


def _refuse_wrong_value(hint: Any, value: Any, place: str, source: str) -> None:
    form = _form_of(hint)
    if not form.fits(value):
        near = difflib.get_close_matches(str(value), form.known, n=1, cutoff=_NEAR)
        meant = f"; did you mean {_as_written(near[0])}?" if near else ""
        found = _as_written(value)
        raise InvalidConfig(f"{source}: {place}: expected {form.one}, found {found}{meant}")
    if form.inner is not None:
        for number, each in enumerate(value):
            _refuse_wrong_value(form.inner, each, f"{place}[{number}]", source)
    elif table := _table_of(hint):
        _refuse_mistakes(table, value, f"{place}.", source)


class _Form(NamedTuple):
    """What a value must be.

    Args:
        one, many: in words, for messages.
        fits: whether a value is so; what a list holds is looked at by itself.
        known: the words that it may be.
        inner: the type of what a list holds.
    """

    one: str
    many: str
    fits: Callable[[Any], bool]
    known: tuple[str, ...] = ()
    inner: Any = None


def _form_of(hint: Any) -> _Form:
    """Return what a value of a type of `Config` must be."""
    limits = Meta()
    if get_origin(hint) is Annotated:
        hint, limits = get_args(hint)
    if get_origin(hint) is UnionType:  # with None, for what is left out
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        words = get_args(hint)
        *others, last = map(_as_written, words)
        choice = f"{', '.join(others)} or {last}"
        return _Form(choice, choice, lambda value: value in words, known=words)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        least = limits.min_length or 0
        what = f"{'one or more ' if least else ''}{_form_of(inner).many}"
        return _Form(
            f"a list of {what}",
            f"lists of {what}",
            lambda value: isinstance(value, list) and len(value) >= least,
            inner=inner,
        )
    if issubclass(hint, Struct):
        return _Form("a table", "tables in double brackets", lambda value: isinstance(value, dict))
    if hint is int:
        low, high = limits.ge or 0, limits.le or 0
        numbers = f"from {low} to {high:,}"
        return _Form(
            f"a whole number {numbers}",
            f"whole numbers {numbers}",
            lambda value: type(value) is int and low <= value <= high,
        )
    return _PLAIN[hint]


_PLAIN: Final[dict[type, _Form]] = {
    bool: _Form("true or false", "true or false", lambda value: isinstance(value, bool)),
    str: _Form("a text in quotes", "texts in quotes", lambda value: isinstance(value, str)),
    Duration: _Form("a duration", "durations", lambda _: True),
    Size: _Form("a size", "sizes", lambda _: True),
}
"""Durations and sizes say themselves how they are written, when they are made."""


def _as_written(value: object) -> str:
    """Return a value as it stands in the file, in short."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, bool):
        return str(value).lower()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def _suggestion(place: str, key: str, known: list[str]) -> str:
    unknown = f"{place}{key}: this key is not known"
    elsewhere = [name for name, kind in tables().items() if key in keys_of(kind)]
    if elsewhere:
        table = f"in [{elsewhere[0]}]" if elsewhere[0] else "above all tables"
        return f"{unknown} here; did you mean {key} {table}?"
    near = difflib.get_close_matches(key, known, n=1, cutoff=_NEAR)
    if near:
        return f"{unknown}; did you mean {near[0]}?"
    return f"{unknown}; known here: {', '.join(known)}"


class ConfigFile:
    """A statefs.toml that is read again when it has changed.

    Args:
        path: where it is, if it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], Config] | None = None

    def read(self) -> Config:
        """Return what the file says now; costs one stat(2) while it stays the same.

        Raises:
            InvalidConfig: it says something wrong, each time until it is put right.
        """
        seen, known = self._stamp(), self._known  # both at once: a save reads it in a thread
        if known is None or known[0] != seen:
            self._known = known = (seen, read_config(self._path))
        return known[1]

    def _stamp(self) -> tuple[int, ...]:
        try:
            now = os.stat(self._path)
        except OSError:
            return ()  # read_config says why, or takes the defaults
        return (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
