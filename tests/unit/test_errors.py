from __future__ import annotations

import errno
import inspect
import re
from collections import Counter

import statefs.errors
from statefs.errors import NoSpace, PosixError, StatefsError, refusal, unforeseen

_LINE = re.compile(
    r"^ {4}(?:[├└]── )?(?P<name>[A-Z]\w+) +exit (?P<exit>\d+) +(?P<errno>its own|\w+)"
)
SHARED_EXIT_CODES = {StatefsError, PosixError}
"""PosixError is drawn with the exit code of its parent: on the command line it is any failure."""


def drawn_errors() -> list[tuple[str, int, str]]:
    """Return name, exit code and errno of each line of the drawing in errors.py, in order."""
    assert statefs.errors.__doc__ is not None
    found = (_LINE.match(line) for line in statefs.errors.__doc__.splitlines())
    return [(hit["name"], int(hit["exit"]), hit["errno"]) for hit in found if hit]


def error_classes() -> list[type[StatefsError]]:
    """Return every error class, in the order of the file."""
    members = inspect.getmembers(statefs.errors, inspect.isclass)
    classes = [each for _, each in members if issubclass(each, StatefsError)]
    return sorted(classes, key=lambda each: inspect.getsourcelines(each)[1])


def test_the_drawing_shows_exactly_the_classes() -> None:
    """Each class is drawn once, with its exit code and errno, in the order of the file."""
    classes = [
        (
            each.__name__,
            each.exit_code,
            "its own" if each is PosixError else errno.errorcode[each.errno],
        )
        for each in error_classes()
    ]
    assert drawn_errors() == classes


def test_each_error_is_a_child_of_the_root() -> None:
    """The tree is one level deep, as drawn."""
    assert {each.__base__ for each in error_classes()} == {Exception, StatefsError}


def test_exit_codes_tell_errors_apart() -> None:
    """No two errors share an exit code, but for the one that is drawn so."""
    codes = Counter(each.exit_code for each in error_classes() if each is not PosixError)
    assert max(codes.values()) == 1
    assert {each for each in error_classes() if each.exit_code == 1} == SHARED_EXIT_CODES


def test_exit_codes_are_none_of_the_shells_own() -> None:
    """Codes from 126 on mean something else to a shell, and 0 is success."""
    assert all(0 < each.exit_code < 126 for each in error_classes())


def test_each_error_says_when_it_is_raised() -> None:
    """Each class has a docstring of its own."""
    assert all(each.__doc__ and each.__doc__ != Exception.__doc__ for each in error_classes())


def test_what_the_host_refuses_is_no_internal_error() -> None:
    """It is told with its place and what to do, wherever it comes out; all else as what it is."""
    error = OSError(errno.EACCES, "Permission denied", "/srv/state.store/meta.db")
    told = str(unforeseen(error))
    assert told.startswith("/srv/state.store/meta.db: Permission denied; run this as")
    assert str(unforeseen(KeyError("x"))) == "internal error: KeyError: 'x'"
    full = refusal(OSError(errno.ENOSPC, "No space left on device"), "/srv/state.store")
    assert (type(full), str(full)[:40]) == (NoSpace, "/srv/state.store: No space left on devic")
    assert str(refusal(OSError(errno.EBADF, "Bad file descriptor", 7))) == "Bad file descriptor"


def test_a_posix_error_carries_the_errno_it_is_given() -> None:
    """Its text is the operating system's."""
    error = PosixError(errno.ENOTEMPTY)
    assert error.errno == errno.ENOTEMPTY
    assert str(error) == "Directory not empty"
