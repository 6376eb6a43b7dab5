from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statefs.errors import UsageError
from statefs.state.identifiers import NAME_BYTES_MAX, checked_id, file_name_of, name_of_file

HOSTILE = ["/", "\\", ":", "*", "?", '"', "<", ">", "|", "..", ".", "../../etc/passwd", "a/../b",
           "con.", "a ", ".hidden", "%2E", "%", "a..b", "\n", "\0", "ü", "...json"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_id_becomes_one_harmless_file_name(name: str) -> None:
    """No separator, no way out of the folder, nothing hidden; and it leads back."""
    file_name = file_name_of(name, ".json")
    assert not set('/\\:*?"<>|\n\0') & set(file_name)
    assert ".." not in file_name and not file_name.startswith(".")
    assert name_of_file(file_name, ".json") == name


@given(st.lists(st.text(alphabet='ab./\\%:2EF"', min_size=1, max_size=8), max_size=20, unique=True))
def test_no_two_ids_have_one_file(names: list[str]) -> None:
    """Whatever percent signs and dots an id holds."""
    assert len({file_name_of(name) for name in names}) == len(names)
    assert [name_of_file(file_name_of(name)) for name in names] == names


@pytest.mark.parametrize(
    "file_name",
    [
        ".json",
        "x.txt",
        "..json",
        "%2e.json",
        "%41.json",
        "a%.json",
        "%ff.json",
        ".x.json",
        "a:b.json",
    ],
)
def test_a_file_that_stands_for_no_id_is_told_apart(file_name: str) -> None:
    """It was made by somebody else, or by hand."""
    assert name_of_file(file_name, ".json") is None


@pytest.mark.parametrize("text", ["", 7, None, b"a", "\udcff"])
def test_what_is_no_id_is_refused(text: object) -> None:
    """In one line that says what it was meant to be."""
    with pytest.raises(UsageError, match=r"^the session id [^\n]+$"):
        checked_id(text, "session id")


def test_an_id_may_be_as_long_as_a_file_name_with_what_stands_beside_it() -> None:
    """Room stays for the names of temporary files and copies; one byte more is refused."""
    longest = "x" * (NAME_BYTES_MAX - len(".json"))
    assert len(file_name_of(longest, ".json")) == NAME_BYTES_MAX
    for too_long in (longest + "x", "ü" * NAME_BYTES_MAX, "/" * 100):
        with pytest.raises(UsageError, match="bytes"):
            file_name_of(too_long, ".json")
