from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from statefs import mounts
from statefs.errors import (
    FuseUnavailable,
    MountBusy,
    MountPointNotEmpty,
    NotMounted,
    StatefsError,
    UsageError,
)
from statefs.mounts import MountInfo, MountOptions, attach, processes, table

LINES = r"""
22 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw
40 22 0:39 / /srv/a\040b rw,nosuid,nodev,relatime - fuse.statefs /srv/s\134t\054o\011re rw,user_id=0
41 22 0:40 / /mnt/other rw - fuse.sshfs host: rw
42 40 0:41 / /srv/a\040b rw,noexec - fuse.statefs /srv/upper ro
a line that makes no sense
"""


@pytest.fixture
def mount_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mount table with one statefs mount at tmp_path/state, which is a plain folder."""
    state = tmp_path / "state"
    state.mkdir()
    path = tmp_path / "mountinfo"
    path.write_text(f"40 22 0:39 / {state} rw - fuse.statefs {tmp_path}/store rw\n")
    monkeypatch.setattr(table, "MOUNTINFO", path)
    return path


def test_octal_escapes_of_the_mount_table_are_undone() -> None:
    """Space, tab, comma and backslash in mount point and source come out as they are."""
    mount = table.parse_mountinfo(LINES)[1]
    assert mount.mount_point == Path("/srv/a b")
    assert mount.source == "/srv/s\\t,o\tre"


def test_a_line_of_the_mount_table_is_read_whole() -> None:
    """Optional fields are skipped, and options of mount and filesystem are put together."""
    first = table.parse_mountinfo(LINES)[0]
    assert first == MountInfo(
        Path("/"), "/dev/root", "ext4", frozenset({"rw", "relatime"}), (254, 0), 22
    )


def test_only_lines_that_make_sense_are_kept() -> None:
    """The line of prose and the empty one are left out."""
    assert [mount.mount_id for mount in table.parse_mountinfo(LINES)] == [22, 40, 41, 42]


def test_names_that_are_not_utf8_survive(mount_table: Path) -> None:
    """A mount point of arbitrary bytes comes out as os.fsdecode() has it."""
    mount_table.write_bytes(b"40 22 0:39 / /srv/\xff\xfe rw - fuse.statefs /s rw\n")
    assert os.fsencode(mounts.statefs_mounts()[0].mount_point) == b"/srv/\xff\xfe"


def test_the_topmost_of_two_mounts_is_found(mount_table: Path, tmp_path: Path) -> None:
    """Where one statefs lies over another, the one that can be seen counts."""
    state = tmp_path / "state"
    mount_table.write_text(
        f"40 22 0:39 / {state} rw - fuse.statefs /lower rw\n"
        f"42 40 0:41 / {state} rw - fuse.statefs /upper rw\n"
    )
    found = mounts.find_mount(state)
    assert found is not None and found.source == "/upper"


def test_a_mount_is_found_through_links_and_dots(mount_table: Path, tmp_path: Path) -> None:
    """A symbolic link to the mount point, relative or absolute, and `..` lead to the mount."""
    (tmp_path / "absolute").symlink_to(tmp_path / "state")
    (tmp_path / "relative").symlink_to("absolute")
    for path in ("state", "absolute", "relative", "state/../state", "./relative"):
        assert mounts.find_mount(tmp_path / path) is not None, path


def test_a_relative_path_is_taken_from_the_working_directory(
    mount_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`statefs status state` works wherever the user is."""
    monkeypatch.chdir(tmp_path)
    assert mounts.find_mount(Path("state")) is not None


def test_a_path_inside_a_mount_is_not_its_mount_point(mount_table: Path, tmp_path: Path) -> None:
    """find_mount() wants the mount point itself; mount_containing() takes anything below it."""
    inside = tmp_path / "state" / "current" / "files"
    assert mounts.find_mount(inside) is None
    containing = mounts.mount_containing(inside)
    assert containing is not None and containing.mount_point == tmp_path / "state"


def test_a_mount_inside_a_mount_is_found(mount_table: Path, tmp_path: Path) -> None:
    """The innermost counts, and `..` leads out of it into the outer one."""
    inner = tmp_path / "state" / "current" / "inner"
    with mount_table.open("a") as lines:
        lines.write(f"41 40 0:40 / {inner} rw - fuse.statefs /inner.store rw\n")
    found = mounts.mount_containing(inner / "files")
    assert found is not None and found.source == "/inner.store"
    around = mounts.mount_containing(inner / ".." / "files")
    assert around is not None and around.mount_point == tmp_path / "state"


def test_a_bind_mount_of_a_folder_inside_a_state_is_no_state(
    mount_table: Path, tmp_path: Path
) -> None:
    """What shows only a part of a filesystem is neither a state nor inside one."""
    part = tmp_path / "data"
    mount_table.write_text(f"41 22 0:39 /current/files {part} rw - fuse.statefs /srv/store rw\n")
    assert table.find_mount(part) is None
    assert table.mount_containing(part / "deep") is None


def test_a_path_beside_a_mount_is_in_no_mount(mount_table: Path, tmp_path: Path) -> None:
    """A common beginning of the name is no containment."""
    assert mounts.mount_containing(tmp_path / "state.store") is None


def test_a_circle_of_links_is_no_mount(mount_table: Path, tmp_path: Path) -> None:
    """Links that lead to each other end the search instead of going on for ever."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert mounts.find_mount(tmp_path / "a") is None


def test_options_come_back_from_their_text() -> None:
    """text() and parse() undo each other for every switch, alone."""
    for field in fields(MountOptions):
        if field.type == "bool":
            options = MountOptions(**{field.name: True})  # type: ignore[arg-type]  # bools only
            assert MountOptions.parse(options.text()) == options
    for durability in ("close", "fsync", "write"):
        options = MountOptions.parse(f"durability={durability}")
        assert options.durability == durability
        assert MountOptions.parse(options.text()) == options


@pytest.mark.parametrize(
    ("present", "asked", "phrases"),
    [
        ("", "ro", ["rw instead of ro"]),
        ("ro,noexec", "rw", ["ro instead of rw"]),
        ("", "durability=fsync", ["durability=close instead of durability=fsync"]),
        ("", "allow_other,suid", ["without allow_other", "nosuid instead of suid"]),
        ("allow_other", "allow_root", ["without allow_root"]),
        ("ro,durability=write,allow_other", "ro,durability=write", []),
        ("ro", "", []),
        ("", "rw,durability=close,nosuid,defaults", []),
    ],
)
def test_options_are_compared_where_they_are_named(
    present: str, asked: str, phrases: list[str]
) -> None:
    """What nobody asks for may be as it is; each phrase has the word that is in force first."""
    wanted, named = MountOptions.parse(asked), MountOptions.named(asked)
    assert MountOptions.parse(present).differences(wanted, named) == phrases


def test_words_of_fstab_have_no_effect() -> None:
    """What a line of fstab carries for mount(8) and systemd is accepted."""
    text = "defaults,rw,noauto,user,nofail,_netdev,x-systemd.automount,noatime, comment=x,"
    assert MountOptions.parse(text) == MountOptions()


def test_a_later_option_wins() -> None:
    """As with mount(8), so that a command line can override a line of fstab."""
    assert not MountOptions.parse("ro,suid,rw,nosuid").read_only
    assert MountOptions.parse("exec,noexec").noexec


def test_a_misspelt_option_is_refused_with_the_nearest_one() -> None:
    """The message says what was probably meant."""
    with pytest.raises(UsageError, match="did you mean allow_other"):
        MountOptions.parse("allow-other")
    with pytest.raises(UsageError, match="did you mean durability=write"):
        MountOptions.parse("durabilty=write")


def test_a_strange_option_is_refused_with_the_list() -> None:
    """Where nothing is near, all the options are named."""
    with pytest.raises(UsageError, match=r"zzz is not known; statefs knows: .*durability=fsync"):
        MountOptions.parse("zzz")


def test_an_unknown_durability_is_refused() -> None:
    """The message lists the three that exist."""
    with pytest.raises(UsageError, match="close, fsync, write"):
        MountOptions.parse("durability=always")


def test_allow_other_and_allow_root_exclude_each_other() -> None:
    """As with every FUSE filesystem: one of them is meant."""
    with pytest.raises(UsageError, match="leave allow_root out"):
        MountOptions.parse("allow_other,allow_root")


def test_a_missing_device_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the kernel module and the container option are named."""
    monkeypatch.setattr(attach, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(FuseUnavailable, match=r"modprobe fuse.*--device"):
        mounts.mount_fuse(tmp_path / "store", tmp_path, MountOptions())


def test_a_file_in_place_of_the_device_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container leaves one behind; the cure is named."""
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(attach, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(FuseUnavailable, match=r"not the device of FUSE.*mknod"):
        mounts.require_fuse(MountOptions())


def as_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the mounting code take this process for an ordinary user's, with a device it may open."""
    stand_in = Path("/dev/null")
    monkeypatch.setattr(attach, "FUSE_DEVICE", stand_in)
    monkeypatch.setattr(attach, "FUSE_NUMBER", stand_in.stat().st_rdev)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_a_missing_fusermount3_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the package."""
    as_ordinary_user(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FuseUnavailable, match="apt install fuse3"):
        mounts.mount_fuse(tmp_path / "store", tmp_path, MountOptions())
    with pytest.raises(FuseUnavailable, match="apt install fuse3"):
        mounts.unmount(tmp_path)


@pytest.mark.parametrize(
    ("content", "is_permitted"),
    [
        (None, False),
        ("# user_allow_other\nmount_max = 5\n", False),
        ("mount_max = 5\n  user_allow_other  \n", True),
    ],
)
def test_allow_other_needs_its_line_in_fuse_conf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, is_permitted: bool
) -> None:
    """The message names the line and the file; a commented line does not count."""
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, "exit 0")
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(attach, "FUSE_CONF", conf)
    if content is not None:
        conf.write_text(content)
    # With permission it gets as far as the fake, which sends no descriptor.
    expected = (
        "sent no descriptor" if is_permitted else f"add the line 'user_allow_other' to {conf}"
    )
    with pytest.raises(FuseUnavailable, match=expected):
        mounts.mount_fuse(tmp_path / "store", tmp_path, MountOptions(allow_other=True))


def fake_fusermount(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in the place of fusermount3; it leaves its arguments in `arguments`."""
    program = folder / "fusermount3"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{folder}/arguments\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_fusermount3_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line is the reason, without its name before it."""
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, "echo 'fusermount3: too many mounts' >&2; exit 1")
    with pytest.raises(FuseUnavailable, match=r": too many mounts$"):
        mounts.mount_fuse(tmp_path / "store", tmp_path, MountOptions())


def test_the_store_is_escaped_for_fusermount3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comma in the store's path does not begin another option."""
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(FuseUnavailable):
        mounts.mount_fuse(Path("/a,suid\\b"), tmp_path, MountOptions(read_only=True, noexec=True))
    words = (tmp_path / "arguments").read_text().splitlines()
    expected = r"fsname=/a\,suid\\b,subtype=statefs,default_permissions,nosuid,nodev,ro,noexec"
    assert words == ["-o", expected, "--", str(tmp_path)]


@pytest.mark.skipif(os.geteuid() != 0, reason="umount2(2) is for root")
def test_unmounting_what_is_not_mounted_is_refused(tmp_path: Path) -> None:
    """The kernel's EINVAL becomes NotMounted."""
    with pytest.raises(NotMounted, match=str(tmp_path)):
        mounts.unmount(tmp_path)


@pytest.mark.parametrize(
    ("said", "kind", "match"),
    [
        ("entry for /x not found in /etc/mtab", NotMounted, "nothing is mounted"),
        ("failed to unmount /x: Device or resource busy", MountBusy, "--lazy"),
        ("failed to unmount /x: Permission denied", FuseUnavailable, "Permission denied"),
    ],
)
def test_what_fusermount3_says_of_unmounting_becomes_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[StatefsError],
    match: str,
) -> None:
    """Its exit code is 1 for everything, so its words decide."""
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, f"echo 'fusermount3: {said}' >&2; exit 1")
    with pytest.raises(kind, match=match):
        mounts.unmount(tmp_path / "state")


def test_a_mount_that_fusermount3_does_not_know_is_somebody_elses(
    mount_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fusermount3 finds only mounts of its own user; the mount table shows all."""
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, "echo 'entry not found in mtab' >&2; exit 1")
    with pytest.raises(FuseUnavailable, match="belongs to another user"):
        mounts.unmount(tmp_path / "state")


def test_a_mount_inside_keeps_the_outer_one_busy(
    mount_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner mount is named, so that the user knows what to unmount first."""
    inner = tmp_path / "state" / "current" / "proc"
    with mount_table.open("a") as lines:
        lines.write(f"41 40 0:40 / {inner} rw - proc proc rw\n")
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, "echo 'Device or resource busy' >&2; exit 1")
    with pytest.raises(MountBusy, match=f"a mount at {inner}"):
        mounts.unmount(tmp_path / "state")


@pytest.mark.parametrize(("rights", "is_permitted"), [("1ffffffffff", True), ("1ffdfffff", False)])
def test_root_without_the_right_to_mount_is_told_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rights: str, is_permitted: bool
) -> None:
    """CAP_SYS_ADMIN is looked at before anything is made."""
    as_ordinary_user(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "status").write_text(f"Name:\tstatefs\nCapEff:\t{rights}\nSeccomp:\t0\n")
    monkeypatch.setattr(attach, "PROCESS_STATUS", tmp_path / "status")
    if is_permitted:
        mounts.require_fuse(MountOptions())
        return
    with pytest.raises(FuseUnavailable, match="--cap-add SYS_ADMIN"):
        mounts.require_fuse(MountOptions())


def test_a_folder_of_another_user_is_no_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fusermount3 sees it: an ordinary user must be able to write there."""
    as_ordinary_user(monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="this user may not write in"):
        mounts.require_mount_point(tmp_path)


def test_a_user_cannot_mount_on_what_is_no_folder(tmp_path: Path) -> None:
    """A missing path and a file are named as such."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="No such file"):
        mounts.mount_fuse(tmp_path / "store", tmp_path / "missing", MountOptions())
    with pytest.raises(UsageError, match="not a folder"):
        mounts.mount_fuse(tmp_path / "store", tmp_path / "file", MountOptions())


def test_a_mount_point_with_files_is_refused(tmp_path: Path) -> None:
    """One of the files and the cure are named; an empty folder passes."""
    mounts.require_empty(tmp_path)
    (tmp_path / "forgotten").touch()
    with pytest.raises(MountPointNotEmpty, match=r"forgotten.*--adopt"):
        mounts.require_empty(tmp_path)


HOLD = """
import mmap, os, sys
how, path = sys.argv[1:]
if how == "cwd":
    os.chdir(path)
else:
    fd = os.open(path + "/file", os.O_RDWR)
    if how == "map":
        held = mmap.mmap(fd, 4096)
        os.close(fd)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(how: str, folder: Path) -> Iterator[Popen[bytes]]:
    """Run a process that has `folder`, or the file in it, in use as `how` says."""
    with Popen([sys.executable, "-c", HOLD, how, folder], stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield holder
        holder.stdin.close()


@pytest.mark.parametrize("how", ["cwd", "file", "map"])
def test_the_processes_that_use_a_mount_are_named(tmp_path: Path, how: str) -> None:
    """A working directory, an open file and a mapping each count, with the process's pid."""
    (tmp_path / "file").write_bytes(bytes(4096))
    with held(how, tmp_path) as holder:
        found = mounts.processes_using(tmp_path)
        assert len(found) == 1 and str(found[0]).endswith(f"(pid {holder.pid})")
        assert found[0].only_stands is (how == "cwd")
    assert mounts.processes_using(tmp_path) == []


@pytest.mark.parametrize(
    ("ours", "match"),
    [
        (("cwd",), r"your shell \(pid 0\) stands in it: cd out of it first, or detach .*--lazy"),
        (("file",), r"in use by \S+ \(pid 0\): end that, or detach .*--lazy"),
        ((), r"in use by \S+ \(pid 0\): end that, or"),
        (
            ("cwd", "file"),
            r"by your shell \(pid 0, standing in it\), \S+ \(pid 1\): cd out of it and",
        ),
    ],
    ids=["only a shell", "a caller with a file open", "a stranger", "both"],
)
def test_the_shell_that_stands_in_the_mount_is_told_to_leave(
    mount_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: tuple[str, ...],
    match: str,
) -> None:
    """It is no stranger to be ended; this process itself is not named at all."""
    state = tmp_path / "state"
    (state / "file").write_bytes(bytes(4096))
    monkeypatch.chdir(state)
    as_ordinary_user(monkeypatch)
    fake_fusermount(tmp_path, monkeypatch, "echo 'Device or resource busy' >&2; exit 1")
    with ExitStack() as stack:
        holders = [stack.enter_context(held(how, state)) for how in ours or ("cwd",)]
        monkeypatch.setattr(attach, "callers", lambda: [each.pid for each in holders if ours])
        with pytest.raises(MountBusy) as caught:
            mounts.unmount(state)
    said = str(caught.value)
    for number, holder in enumerate(holders):
        said = said.replace(f"pid {holder.pid}", f"pid {number}")
    assert re.search(match, said) and str(os.getpid()) not in said


def test_the_callers_of_a_process_are_its_ancestors() -> None:
    """The nearest first; init is nobody's caller."""
    code = "from statefs.mounts.processes import callers; print(*callers())"
    with Popen([sys.executable, "-c", code], stdout=PIPE) as child:
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.read().split()]
    assert pids[:2] == [os.getpid(), os.getppid()][: len(pids)] and 1 not in pids


def test_a_neighbour_with_a_longer_name_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """state.store in use does not make state busy."""
    (tmp_path / "state.store").mkdir()
    monkeypatch.chdir(tmp_path / "state.store")
    assert mounts.processes_using(tmp_path / "state") == []


def test_a_folder_that_answers_is_not_stale(tmp_path: Path) -> None:
    """statfs(2) on it succeeds, which is all that is asked."""
    assert not mounts.is_stale(MountInfo(tmp_path, "/store", table.FSTYPE))


@pytest.mark.parametrize(
    ("number", "is_stale"), [("ENOTCONN", True), ("ECONNABORTED", True), ("EACCES", False)]
)
def test_only_a_lost_connection_makes_a_mount_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, is_stale: bool
) -> None:
    """The daemon of another user may refuse us and is alive all the same."""
    import errno

    def fail(path: Path) -> None:
        raise OSError(getattr(errno, number), "made up")

    monkeypatch.setattr(os, "statvfs", fail)
    assert mounts.is_stale(MountInfo(tmp_path, "/store", table.FSTYPE)) is is_stale


@pytest.mark.parametrize(("server", "is_stale"), [(True, False), (None, False), (False, True)])
def test_a_silent_mount_is_stale_only_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: bool | None, is_stale: bool
) -> None:
    """A daemon that is stopped, or that we cannot see, is not declared dead."""
    import threading

    answer = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _path: answer.wait())
    monkeypatch.setattr(table, "STALE_SECONDS", 0.01)
    monkeypatch.setattr(table, "has_connection_open", lambda _connection: server)
    try:
        assert mounts.is_stale(MountInfo(tmp_path, "/store", table.FSTYPE)) is is_stale
    finally:
        answer.set()


def test_a_connection_that_nobody_has_is_known_to_have_no_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root sees every descriptor and may say no; anybody else can only not know."""
    nobody_has = 1 << 20
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert processes.has_connection_open(nobody_has) is None
