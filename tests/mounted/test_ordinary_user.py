"""An ordinary user mounts through fusermount3.

Run as root, the user is nobody, in a mount namespace where every user may open /dev/fuse, and
where this project and its Python can be reached though they may lie in a private folder.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mounted_state import END_SECONDS, detach
from tests.harness.namespaces import NoNamespaceError, with_open_fuse
from tests.harness.processes import NOBODY, Person, run_as

COMMAND_SECONDS = 2 * END_SECONDS
ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
NAMELESS = 54_321
"""A user that no /etc/passwd has a line for."""


@dataclass(frozen=True)
class OrdinaryUser:
    """Somebody without any right, who has a home and this project.

    Args:
        home: the user's folder.
        project: the top folder of statefs's code.
        python: an interpreter with what statefs needs.
        place: the folder that the namespace's own files are mounted on; empty outside.
        uid: the user's and the group's number, where root runs the tests.
    """

    home: Path
    project: Path
    python: Path
    place: Path
    uid: int = NOBODY

    @property
    def person(self) -> Person | None:
        """Who the user is; None is whoever runs the tests."""
        return Person(self.uid, self.uid) if IS_ROOT else None

    def do(self, function: Callable[[], Any]) -> Any:
        """Return what `function` returns when the user calls it."""
        return run_as(self.person, function)

    def statefs(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one `statefs` command as the user."""
        return self.run(self.python, "-m", "statefs", *arguments)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program as the user."""
        words = [str(word) for word in command]
        if IS_ROOT:
            ids = ["--reuid", str(self.uid), "--regid", str(self.uid), "--clear-groups"]
            words = ["setpriv", *ids, "--", *words]
        return subprocess.run(
            words,
            cwd="/",
            env=os.environ | {"HOME": str(self.home), "PYTHONPATH": str(self.project)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )

    def where_users_mount(self, body: Callable[[], None]) -> None:
        """Run the body of a test where the user can open /dev/fuse; nothing stays mounted."""

        def freed() -> None:
            try:
                body()
            finally:
                detach(self.home)

        if IS_ROOT:
            shown = {"project": ROOT, "python": Path(sys.prefix)}
            with_open_fuse(self.place, shown, freed)
        else:
            freed()


@pytest.fixture(scope="module")
def user(wide_folder: Path) -> OrdinaryUser:
    """The ordinary user, on a machine that lets one mount."""
    fusermount = shutil.which("fusermount3")
    if fusermount is None:
        pytest.skip("fusermount3 is not installed")
    home = Path(tempfile.mkdtemp(dir=wide_folder, prefix="home-"))
    place = Path(tempfile.mkdtemp(dir=wide_folder, prefix="place-"))
    if not IS_ROOT:
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("this user may not open /dev/fuse, and only root could change that")
        return OrdinaryUser(home, ROOT, Path(sys.executable), place)
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed: root cannot become an ordinary user")
    if not os.stat(fusermount).st_mode & stat.S_ISUID:
        pytest.skip(f"{fusermount} is not setuid root: an ordinary user cannot mount")
    os.chown(home, NOBODY, NOBODY)
    made = OrdinaryUser(home, place / "project", place / "python" / "bin" / "python", place)

    def check() -> None:
        done = made.run(made.python, "-c", "import statefs.cli.app, pyfuse3, apsw, trio")
        assert done.returncode == 0, done.stderr

    try:
        made.where_users_mount(check)
    except NoNamespaceError as error:
        pytest.skip(f"root cannot have a /dev/fuse of its own here: {error}")
    except AssertionError as error:
        pytest.skip(f"an ordinary user cannot run this Python: {error}")
    return made


def unmount_sound(user: OrdinaryUser, state: Path) -> None:
    """Unmount as the user; what is left is a sound store."""
    for command in ("umount", "verify"):
        done = user.statefs(command, state)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_ordinary_user_mounts_saves_and_unmounts(user: OrdinaryUser) -> None:
    """Without any right, through fusermount3; nobody else looks in, not even root."""
    state = user.home / "first"

    def body() -> None:
        done = user.statefs("mount", state)
        assert (done.returncode, done.stderr) == (0, "")
        user.do(lambda: (state / "current/files/f").write_bytes(b"mine"))
        if IS_ROOT:
            with pytest.raises(PermissionError):
                os.listdir(state)
        saved = user.statefs("save", state)
        assert saved.returncode == 0, saved.stderr
        past = state / "snapshots" / saved.stdout.strip() / "files/f"
        assert user.do(past.read_bytes) == b"mine"
        unmount_sound(user, state)

    user.where_users_mount(body)


def test_suid_and_dev_are_warned_of_and_the_mount_goes_on(user: OrdinaryUser) -> None:
    """Their absence is no difference either, when the same command is given again."""
    state = user.home / "second"

    def body() -> None:
        for said in ("mounted", "already mounted"):
            done = user.statefs("mount", state, "-o", "suid,dev")
            assert done.returncode == 0 and said in done.stdout
            assert done.stderr.startswith("statefs: warning: suid and dev have no effect")
            assert done.stderr.count("\n") == 1
        unmount_sound(user, state)

    user.where_users_mount(body)


def test_allow_other_is_refused_with_the_line_to_add(user: OrdinaryUser) -> None:
    """Where /etc/fuse.conf does not allow it, the message says what to write there; no store."""
    configuration = Path("/etc/fuse.conf")
    lines = configuration.read_text().splitlines() if configuration.exists() else []
    if "user_allow_other" in [line.strip() for line in lines]:
        pytest.skip("/etc/fuse.conf allows it to everybody")
    state = user.home / "third"

    def body() -> None:
        done = user.statefs("mount", state, "-o", "allow_other")
        assert (done.returncode, done.stdout) == (9, "")
        assert done.stderr.count("\n") == 1
        assert "user_allow_other" in done.stderr and "/etc/fuse.conf" in done.stderr
        assert list(user.home.glob("third*")) == []

    user.where_users_mount(body)


def test_a_user_without_a_name_is_told_so_and_needs_no_mount(user: OrdinaryUser) -> None:
    """As in a container with a number for its user: a store is used without a mount, too."""
    if not IS_ROOT:
        pytest.skip("only root can become a user that has no name")
    nameless = replace(user, home=user.home.with_name("nameless"), uid=NAMELESS)
    nameless.home.mkdir()
    os.chown(nameless.home, NAMELESS, NAMELESS)
    state = nameless.home / "state"

    def body() -> None:
        refused = nameless.statefs("mount", state)
        assert (refused.returncode, refused.stdout) == (9, "")
        assert refused.stderr.count("\n") == 1 and f"{NAMELESS}" in refused.stderr
        assert list(nameless.home.iterdir()) == []
        for command in ("init", "save", "list", "verify"):
            done = nameless.statefs(command, state)
            assert (done.returncode, done.stderr) == (0, "")
        assert nameless.statefs("pin", state, "latest", "--reason", "release").returncode == 0
        refused = nameless.statefs("delete", state, "latest")
        assert f"{NAMELESS}" in refused.stderr and "release" in refused.stderr

    user.where_users_mount(body)


def test_an_export_to_where_the_user_may_not_write_is_refused(user: OrdinaryUser) -> None:
    """One line that names the file; nothing of it is left, and the store is as it was."""
    if not IS_ROOT:
        pytest.skip("a folder of another user is made by root")
    state, others = user.home / "fourth", user.home / "others"
    others.mkdir()

    def body() -> None:
        for command in ("init", "save"):
            assert user.statefs(command, state).returncode == 0
        for name in ("a.tar", "a.tar.zst", "missing/a.tar"):
            refused = user.statefs("export", state, "latest", others / name)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert refused.stderr.startswith("statefs: error: ") and refused.stderr.count("\n") == 1
            assert str(others / name) in refused.stderr or str(others) in refused.stderr
        assert list(others.iterdir()) == []
        assert user.statefs("verify", state).returncode == 0

    user.where_users_mount(body)
