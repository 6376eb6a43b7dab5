"""statefs.toml: what it may say, and the one line that says what is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from statefs.config import (
    Config,
    ConfigFile,
    Duration,
    Size,
    VolumeConfig,
    keys_of,
    parse_config,
    read_config,
    tables,
)
from statefs.errors import InvalidConfig

A = '[[volumes]]\nname = "a"\n'
"""A volume to begin with."""
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def complaint(text: str) -> str:
    """Return the error that a text gets, without the name of the file."""
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text, "statefs.toml")
    said = str(caught.value)
    assert said.startswith("statefs.toml: ") and "\n" not in said
    return said.removeprefix("statefs.toml: ")


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    """Without statefs.toml nothing is saved by itself and a hundred snapshots may exist."""
    config = read_config(tmp_path / "statefs.toml")
    assert config == parse_config("", "x") == Config()
    assert not config.autosave and config.autosave_debounce_seconds == 30.0
    assert config.retention.max_snapshots == 100
    assert config.volumes == ()


def test_everything_that_can_be_said_is_understood() -> None:
    """Each table and the texts for durations and sizes arrive as numbers with units."""
    config = parse_config(
        """
        autosave = true
        autosave_debounce = "1m30s"
        [retention]
        keep_within = "2d"
        min_free = "1.5GiB"
        keep_labels = ["release"]
        relative_to = "newest"
        [scrub]
        rate = "20MB"
        [health]
        max_save_age = "1d"
        [[events]]
        hook = ["logger", "-t", "statefs"]
        on = ["disk:low"]
        [[volumes]]
        name = "db"
        consistency = "postgres"
        connection = "host=/run/postgresql"
        before_save = [["sync", "-f"], ["true"]]
        deadline = 2.5
        [[volumes]]
        name = "other"
        path = "files/other"
        """,
        "x",
    )
    assert (config.autosave, config.autosave_debounce_seconds) == (True, 90.0)
    assert config.retention.keep_within_seconds == 2 * 86400.0
    assert config.retention.min_free_bytes == 1536 * 2**20
    assert config.retention.keep_labels == ("release",)
    assert config.retention.relative_to == "newest"
    assert config.scrub.rate_bytes_per_second == 20_000_000
    assert config.health.max_save_age_seconds == 86400.0
    (hook,) = config.events
    assert (hook.hook, hook.on) == (("logger", "-t", "statefs"), ("disk:low",))
    database, other = config.volumes
    assert (database.folder, other.folder) == ("volumes/db", "files/other")
    assert database.before_save == (("sync", "-f"), ("true",))
    assert database.deadline_seconds == 2.5
    assert database.is_dumped and not other.is_dumped


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1.5, 1.5), ("30s", 30), ("5m", 300), ("1h 5m", 3900), ("1w", 604800)],
)
def test_durations(value: object, seconds: float) -> None:
    """A duration is seconds, or numbers with units that add up."""
    assert Duration.parse(value) == seconds


@pytest.mark.parametrize("value", ["", "30", "s", "5 x", "-5s", -1, True, float("nan"), [], "1y"])
def test_what_is_no_duration(value: object) -> None:
    """Anything else is refused, a text without a unit too."""
    with pytest.raises(ValueError, match="is no duration"):
        Duration.parse(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [(7, 7), ("20MB", 20_000_000), ("512KiB", 524288), ("1.5 GiB", 1610612736), ("3b", 3)],
)
def test_sizes(value: object, size: int) -> None:
    """A size is bytes, or a number with a decimal or binary unit."""
    assert Size.parse(value) == size


@pytest.mark.parametrize("value", ["", "20", "MB", "20M", "-1MB", -1, True, 1.5, "1ib"])
def test_what_is_no_size(value: object) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="is no size"):
        Size.parse(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("autosav = true", "autosav: this key is not known; did you mean autosave?"),
        (
            "[retention]\nkeep_dayly = 1",
            "retention.keep_dayly: this key is not known; did you mean keep_daily?",
        ),
        (
            "keep_last = 1",
            "keep_last: this key is not known here; did you mean keep_last in [retention]?",
        ),
        (
            "[scrub]\nautosave = true",
            "scrub.autosave: this key is not known here; did you mean autosave above all tables?",
        ),
        (
            A + '[[volumes]]\nname = "b"\nconection = ""',
            "volumes[1].conection: this key is not known; did you mean connection?",
        ),
        ("[scrub]\nzzz = 1", "scrub.zzz: this key is not known; known here: rate, interval"),
        ("autosave = 1", "autosave: expected true or false, found 1"),
        ('autosave_debounce = "soon"', "autosave_debounce: 'soon' is no duration"),
        (
            "[retention]\nmax_snapshots = -1",
            "retention.max_snapshots: expected a whole number from 0 to 1,000,000,000, found -1",
        ),
        ("[retention]\nkeep_last = 1.0", "retention.keep_last: expected a whole number from 0"),
        ("[retention]\nkeep_last = true", "retention.keep_last: expected a whole number from 0"),
        ('autosave = "true"', 'autosave: expected true or false, found "true"'),
        (
            '[retention]\nrelative_to = "newset"',
            (
                'retention.relative_to: expected "now" or "newest", found "newset"; did you mean'
                ' "newest"?'
            ),
        ),
        (
            A + 'consistency = "postgresql"',
            (
                'volumes[0].consistency: expected "generic", "sqlite" or "postgres", found'
                ' "postgresql"; did you mean "postgres"?'
            ),
        ),
        ("[retention]\nkeep_labels = 3", "retention.keep_labels: expected a list of texts in"),
        (
            "[retention]\nkeep_labels = [3]",
            "retention.keep_labels[0]: expected a text in quotes, found 3",
        ),
        ("[volumes]\nname = 'a'", "volumes: expected a list of tables in double brackets, found a"),
        ("volumes = [1]", "volumes[0]: expected a table, found 1"),
        (
            "[[volumes]]\nname = 1979-05-27",
            "volumes[0].name: expected a text in quotes, found 1979",
        ),
        (A + "dump = 'yes'", 'volumes[0].dump: expected true or false, found "yes"'),
        (
            "[retention]\nrelative_to = ['now']",
            'retention.relative_to: expected "now" or "newest", found a list of 1',
        ),
        (
            "[retention]\nkeep_labels = '" + "x" * 99 + "'",
            f'retention.keep_labels: expected a list of texts in quotes, found "{"x" * 59}...',
        ),
        (
            '[retention]\nrelative_to = "then"',
            'retention.relative_to: expected "now" or "newest", found "then"',
        ),
        ("retention = 3", "retention: expected a table, found 3"),
        ("[scrub]\nrate = 0", "scrub: rate must be more than 0"),
        ("[[volumes]]", "volumes[0].name: this key is missing"),
        ('[[volumes]]\nname = "a/b"', "volumes[0]: name 'a/b' may have letters"),
        (A + 'path = "/etc"', "volumes[0]: path '/etc' must be a folder inside of current/"),
        (A + 'path = "x/../.."', "volumes[0]: path 'x/../..' must be a folder inside"),
        (A + 'path = "runtime/a"', "volumes[0]: path is in runtime/"),
        (A + A, "two volumes have the name 'a'"),
        (A + 'connection = "x"', "volumes[0]: connection and dump need consistency"),
        (A + 'consistency = "postgres"\ndump = true', "volumes[0]: dump = true needs a connection"),
        (
            A + 'before_save = ["true"]',
            "volumes[0].before_save[0]: expected a list of one or more texts",
        ),
        (
            A + "before_save = [[]]",
            "volumes[0].before_save[0]: expected a list of one or more texts",
        ),
        (A + "deadline = 0", "volumes[0]: deadline must be more than 0"),
        ("autosave = maybe", "not TOML: Invalid value (at line 1, column 12)"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_key(text: str, said: str) -> None:
    """Each mistake names its key, and an unknown key the nearest known one."""
    assert complaint(text).startswith(said)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Only a missing file means the defaults: a folder, or bytes that are no text, do not."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidConfig, match="folder: Is a directory"):
        read_config(tmp_path / "folder")
    (tmp_path / "bytes").write_bytes(b"# \xff")
    with pytest.raises(InvalidConfig, match="bytes: not UTF-8 at byte 2"):
        read_config(tmp_path / "bytes")


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    """A new, a changed, a wrong and a removed file each take effect with the next look."""
    path = tmp_path / "statefs.toml"
    file = ConfigFile(path)
    assert file.read() == Config()
    path.write_text("autosave = true")
    first = file.read()
    assert first.autosave and file.read() is first
    path.write_text("autosave = what")
    for _ in range(2):
        with pytest.raises(InvalidConfig):
            file.read()
    path.write_text("autosave = true\n")
    os.utime(path, ns=(0, 0))
    assert file.read().autosave
    path.unlink()
    assert file.read() == Config()


@pytest.mark.parametrize("table", list(tables()))
def test_every_key_is_documented(table: str) -> None:
    """docs/configuration.md has a section for each table, with one row for each of its keys."""
    lists = ("volumes", "events")
    heading = f"[[{table}]]" if table in lists else f"[{table}]" if table else "Above all tables"
    section = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S
    )
    assert section, heading
    rows = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert sorted(rows) == sorted(set(keys_of(tables()[table])) - set(tables()))


def test_the_example_in_the_documents_is_understood() -> None:
    """The example in docs/configuration.md can be copied."""
    example = re.search(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example
    config = parse_config(example[1], "x")
    assert [volume.name for volume in config.volumes] == ["dbdata", "queue"]
    assert isinstance(config.volumes[0], VolumeConfig)
