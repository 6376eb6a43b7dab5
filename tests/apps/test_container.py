"""Containers that bind-mount parts of a state, run by crun from a root folder of busybox alone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from statefs.hooks.commands import Account
from tests.apps.programs import RUN_SECONDS, needs, reporting, run
from tests.harness.mounted_state import MountedState

BUSYBOX: Final = Path(shutil.which("busybox") or "/nonexistent")


def is_static(program: Path) -> bool:
    """Return whether a program needs nothing but itself: its head names no dynamic linker."""
    with open(program, "rb") as file:
        return b"/ld-" not in file.read(4096)


pytestmark = [
    needs("crun", "busybox"),
    pytest.mark.skipif(
        BUSYBOX.exists() and not is_static(BUSYBOX), reason="not installed: busybox-static"
    ),
]
SECONDS_IN_CONTAINER: Final = "40"
"""Every container ends itself before the test gives up on it."""
SAVES: Final = 4
ORDINARY: Final = Account(1_000, 1_000)
UNIFIED_CGROUPS: Final = Path("/sys/fs/cgroup/cgroup.controllers")
WITH_UNIFIED_CGROUPS: Final = (
    "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec $0 $@"
)
"""Gives crun, in a mount namespace of its own, the only kind of cgroups that it takes."""


REFUSALS: Final = ("not permitted", "ermission denied", "cgroup")
"""In what crun says where a container may not be run at all."""


@dataclass
class Bundle:
    """What crun runs: a root folder, and for each container a configuration.

    Args:
        folder: where all of it lies, on the disk.
    """

    folder: Path
    ids: list[str] = field(default_factory=list)

    def make_root(self) -> None:
        """Make a root folder with busybox and the folders that states are mounted at."""
        for name in ("bin", "data", "state", "past", "proc", "dev"):
            (self.folder / "rootfs" / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.folder / "rootfs" / "bin" / "busybox")
        for name in ("sh", "timeout"):
            (self.folder / "rootfs" / "bin" / name).symlink_to("busybox")

    def command(
        self, script: str, binds: dict[str, Path], account: Account | None = None
    ) -> list[str]:
        """Return the command that runs a shell script in a new container.

        Args:
            script: for busybox' shell, which finds all of busybox' programs.
            binds: what is bind-mounted, by its path in the container.
            account: the user in the container; None is root.
        """
        name = f"statefs-test-{os.getpid()}-{len(self.ids)}"
        self.ids.append(name)
        bundle = self.folder / name
        bundle.mkdir()
        configuration = self._configuration(script, binds, account or Account(0, 0))
        (bundle / "config.json").write_text(json.dumps(configuration))
        return self.crun("run", "--bundle", str(bundle), name)

    def _configuration(
        self, script: str, binds: dict[str, Path], account: Account
    ) -> dict[str, Any]:
        mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}]
        bind = {"type": "bind", "options": ["rbind", "rw"]}
        return {
            "ociVersion": "1.0.0",
            "process": {
                "terminal": False,
                "user": {"uid": account.uid, "gid": account.gid},
                "args": ["/bin/timeout", SECONDS_IN_CONTAINER, "/bin/sh", "-euc", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": str(self.folder / "rootfs"), "readonly": True},
            "mounts": [
                *mounts,
                *({"destination": to, "source": str(at), **bind} for to, at in binds.items()),
            ],
            "linux": self._namespaces(),
        }

    def _namespaces(self) -> dict[str, Any]:
        """Return what is a container's own; for an ordinary user, being root there is."""
        kinds = ["mount", "pid", "ipc", "uts"]
        if os.geteuid() == 0:
            return {"namespaces": [{"type": kind} for kind in kinds]}
        return {
            "namespaces": [{"type": kind} for kind in (*kinds, "user")],
            "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}],
        }

    def crun(self, *words: str) -> list[str]:
        """Return a command of crun, which keeps its own state in this folder too."""
        command = ["crun", "--cgroup-manager=disabled", "--root", str(self.folder / "run"), *words]
        if not UNIFIED_CGROUPS.exists() and os.geteuid() == 0:
            apart = ["unshare", "-m", "--propagation", "private"]
            return [*apart, "sh", "-c", WITH_UNIFIED_CGROUPS, *command]
        return command

    def run(self, script: str, binds: dict[str, Path], account: Account | None = None) -> str:
        """Run a shell script in a new container and return what it printed."""
        return run(*self.command(script, binds, account))

    def remove_containers(self) -> None:
        """Kill and forget every container that has not ended by itself."""
        for name in self.ids:
            if (self.folder / "run" / name).exists():
                subprocess.run(self.crun("delete", "--force", name), timeout=RUN_SECONDS)


@pytest.fixture
def bundle(disk: Path, app_state: MountedState) -> Iterator[Bundle]:
    """A bundle on the disk; its containers are gone before the state is unmounted."""
    made = Bundle(disk / "bundle")
    made.make_root()
    yield made
    made.remove_containers()


@pytest.fixture(autouse=True)
def containers_run_here(bundle: Bundle) -> None:
    """Skips where not even a container that has nothing of statefs can be run."""
    command = bundle.command("true", {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)
    refused = any(word in done.stderr for word in REFUSALS)
    if done.returncode != 0 and refused:
        pytest.skip(f"this machine lets nobody run a container: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


WRITE: Final = """
cd /data
mkdir -p app/log
echo first > app/config
ln app/config app/hard
ln -s config app/soft
dd if=/dev/zero bs=1000 count=300 2> /dev/null | tr '\\0' x > app/big
echo draft > app/config.new
mv app/config.new app/other
chmod 600 app/other
"""
COMPARE: Final = """
echo second > /data/app/config
cat /past/app/hard /data/app/soft
cmp /past/app/big /data/app/big && echo same
rm -r /data/app/log
if echo x 2> /dev/null > /past/app/config; then echo written; fi
ls /past/app
"""


def test_what_a_container_writes_is_in_the_snapshot(
    app_state: MountedState, bundle: Bundle
) -> None:
    """Current's files at /data take every change; a later container sees past and present."""
    files = app_state.files
    bundle.run(WRITE, {"/data": files})
    snapshot = app_state.snapshots / app_state.save("by a container") / "files"
    assert (snapshot / "app" / "config").read_text() == "first\n"
    assert (snapshot / "app" / "big").read_bytes() == b"x" * 300_000
    said = bundle.run(COMPARE, {"/data": files, "/past": snapshot}).split()
    assert said[:3] == ["first", "second", "same"]
    assert said[3:] == ["big", "config", "hard", "log", "other", "soft"]
    assert (snapshot / "app" / "config").read_text() == "first\n"
    assert (files / "app" / "hard").read_text() == "second\n"
    assert stat.S_IMODE((snapshot / "app" / "other").stat().st_mode) == 0o600


WRITE_UNTIL_STOPPED: Final = """
n=0
until [ -e /data/stop ]; do
    n=$((n + 1))
    echo line $n >> /data/log
    echo $n > /data/new
    mv /data/new /data/number
    echo $n
done
"""


def test_snapshots_while_a_container_writes(
    app_state: MountedState, bundle: Bundle, disk: Path
) -> None:
    """What a running container had reported as written before a save is in the snapshot."""
    command = bundle.command(WRITE_UNTIL_STOPPED, {"/data": app_state.files})
    known: dict[str, int] = {}
    with reporting(*command, log=disk / "container.log") as container:
        for _ in range(SAVES):
            last = int(container.lines_after(5)[-1])
            known[app_state.save()] = last
        container.assert_running()
        (app_state.files / "stop").touch()
        container.lines_at_end()
    for name, last in known.items():
        files = app_state.snapshots / name / "files"
        lines = (files / "log").read_text().splitlines()
        assert len(lines) >= last
        assert lines == [f"line {n}" for n in range(1, len(lines) + 1)]
        assert int((files / "number").read_text()) in (len(lines) - 1, len(lines))


SAVE_AND_LOOK_BACK: Final = """
cd /state/current/files
echo before > file
mkdir /state/snapshots/mine
echo after > file
cat /state/snapshots/mine/files/file /state/snapshots/latest/files/file file
mkdir /state/snapshots/short-lived
rmdir /state/snapshots/short-lived
if mkdir /state/snapshots/mine 2> /dev/null; then echo twice; fi
"""


def test_a_container_takes_snapshots_and_reads_its_own_past(
    app_state: MountedState, bundle: Bundle
) -> None:
    """With the whole state mounted, mkdir and rmdir are all that it needs."""
    said = bundle.run(SAVE_AND_LOOK_BACK, {"/state": app_state.state})
    assert said.split() == ["before", "before", "after"]
    (saved,) = app_state.listing()
    assert saved["labels"]["name"] == "mine"
    assert (app_state.snapshots / "mine" / "files" / "file").read_text() == "before\n"


TRY: Final = """
cd /state
id -u
echo mine > current/files/own/file
ls snapshots/first/files
for attempt in 'mkdir snapshots/second' 'rmdir snapshots/first' 'touch current/files/new' \\
    'cat current/files/others' 'cat snapshots/first/files/others'
do
    if $attempt 2> /dev/null; then echo allowed: $attempt; fi
done
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may let others into a mount")
def test_an_ordinary_user_of_a_container_has_its_own_rights_only(
    app_state: MountedState, bundle: Bundle
) -> None:
    """It writes in its folder and reads snapshots, and may not take, delete or change one."""
    (app_state.files / "own").mkdir()
    os.chown(app_state.files / "own", ORDINARY.uid, ORDINARY.gid)
    (app_state.files / "others").write_text("secret")
    (app_state.files / "others").chmod(0o600)
    (app_state.snapshots / "first").mkdir()
    said = bundle.run(TRY, {"/state": app_state.state}, ORDINARY)
    assert said.splitlines() == [str(ORDINARY.uid), "others", "own"]
    assert (app_state.files / "own" / "file").stat().st_uid == ORDINARY.uid
    assert [saved["labels"]["name"] for saved in app_state.listing()] == ["first"]
