"""What programs do to a folder, one system call or one habit at a time.

A workload's `run` is what is measured. `prepare` and `finish` are not: one makes what `run` needs,
the other lets go of what it holds. They get a folder of their own, the same in every round.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.mounted import drop_kernel_caches

KIBIBYTE: Final = bytes(range(256)) * 4
LINE: Final = b"2026-03-13T12:00:00Z INFO a line as a program appends it".ljust(99, b".") + b"\n"
PAGE: Final = KIBIBYTE * 4
LARGE_BYTES: Final = 8 << 20
"""Size of the file for writes in place: well beyond what is kept inline."""
OTHER_DESCRIPTORS: Final = 64
"""What a benchmark has open beside the files of a workload, with room to spare."""
_AT_FDCWD: Final = -100
_AT_STATX_FORCE_SYNC: Final = 0x2000
_STATX_BASIC_STATS: Final = 0x7FF
_libc = ctypes.CDLL(None, use_errno=True)

Step = Callable[[Path, int], None]


def _nothing(_folder: Path, _operations: int) -> None:
    """Prepare, or finish, nothing."""


@dataclass(frozen=True)
class Workload:
    """One thing that is measured.

    Args:
        name: in the table.
        operations: how often `run` does it; each of them is one operation.
        prepare: makes what `run` needs, in an existing folder that earlier rounds have used.
        run: does the operations.
        is_cold: whether the kernel's names and attributes are dropped before `run`.
        finish: lets go of what `run` holds; called after `run`, also when that has failed.
    """

    name: str
    operations: int
    prepare: Step
    run: Step
    is_cold: bool = False
    finish: Step = _nothing


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _small_files(folder: Path, operations: int) -> None:
    if (folder / "f0").exists():
        return
    for number in range(operations):
        _write_new(folder / f"f{number}")


def _write_new(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, KIBIBYTE)
    os.close(fd)


def _stat_each(folder: Path, operations: int) -> None:
    for number in range(operations):
        os.stat(f"{folder}/f{number}")


def forced_stats(path: Path, times: int) -> None:
    """Ask for attributes that are not from the kernel's cache: statx(2), AT_STATX_FORCE_SYNC."""
    name = os.fsencode(path)
    buffer = ctypes.create_string_buffer(256)
    for _ in range(times):
        _libc.statx(_AT_FDCWD, name, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer)


def _forced_stat(folder: Path, operations: int) -> None:
    forced_stats(folder / "f0", operations)


def _read_each(folder: Path, operations: int) -> None:
    for number in range(operations):
        fd = os.open(f"{folder}/f{number}", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)


def _small_files_read(folder: Path, operations: int) -> None:
    _small_files(folder, operations)
    _read_each(folder, operations)


def _empty_folder(folder: Path, _operations: int) -> None:
    _emptied(folder)


def _create_each(folder: Path, operations: int) -> None:
    for number in range(operations):
        _write_new(folder / f"f{number}")


def _create_each_empty(folder: Path, operations: int) -> None:
    for number in range(operations):
        os.close(os.open(f"{folder}/f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


class _FilesLeftOpen:
    """New files whose descriptors are kept, so that their closing is not measured."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def prepare(self, folder: Path, operations: int) -> None:
        """Empty the folder, and have the kernel allow so many descriptors."""
        _emptied(folder)
        wanted = operations + OTHER_DESCRIPTORS
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            if hard != resource.RLIM_INFINITY and hard < wanted:
                raise SystemExit(f"{wanted} open files are needed: raise the limit, `ulimit -Hn`")
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    def create(self, folder: Path, operations: int) -> None:
        """Create files, and nothing else."""
        for number in range(operations):
            path = f"{folder}/f{number}"
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            self._descriptors.append(descriptor)

    def close(self, _folder: Path, _operations: int) -> None:
        """Close them."""
        while self._descriptors:
            os.close(self._descriptors.pop())


_files_left_open = _FilesLeftOpen()


def _unlink_each(folder: Path, operations: int) -> None:
    for number in range(operations):
        os.unlink(f"{folder}/f{number}")


def _rename_each(folder: Path, operations: int) -> None:
    here, there = ("f", "g") if (folder / "f0").exists() else ("g", "f")
    for number in range(operations):
        os.rename(f"{folder}/{here}{number}", f"{folder}/{there}{number}")


def _files_to_rename(folder: Path, operations: int) -> None:
    if not (folder / "g0").exists():
        _small_files(folder, operations)


def _mkdir_each(folder: Path, operations: int) -> None:
    for number in range(operations):
        os.mkdir(f"{folder}/d{number}")


def _rmdir_each(folder: Path, operations: int) -> None:
    for number in range(operations):
        os.rmdir(f"{folder}/d{number}")


def _folders(folder: Path, operations: int) -> None:
    _emptied(folder)
    _mkdir_each(folder, operations)


def _large_file(folder: Path, _operations: int) -> None:
    """Make a file that is kept in an object file, and warm."""
    path = folder / "large"
    if not path.exists() or path.stat().st_size != LARGE_BYTES:
        path.write_bytes(PAGE * (LARGE_BYTES // len(PAGE)))
    path.read_bytes()


def _append_each(folder: Path, operations: int) -> None:
    fd = os.open(folder / "large", os.O_WRONLY | os.O_APPEND)
    for _ in range(operations):
        os.write(fd, LINE)
    os.close(fd)


def _append_small(folder: Path, operations: int) -> None:
    """Append to files that stay small enough to be kept inline: 64 lines each."""
    for number in range(operations // 64):
        fd = os.open(folder / f"log{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for _ in range(64):
            os.write(fd, LINE)
        os.close(fd)


def _write_pages(folder: Path, operations: int) -> None:
    pages = LARGE_BYTES // len(PAGE)
    fd = os.open(folder / "large", os.O_WRONLY)
    for number in range(operations):
        os.pwrite(fd, PAGE, number * 7919 % pages * len(PAGE))
    os.close(fd)


def _write_mebibytes(folder: Path, operations: int) -> None:
    block = PAGE * 256
    fd = os.open(folder / "stream", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(operations):
        os.write(fd, block)
    os.close(fd)


def _missing_again(folder: Path, operations: int) -> None:
    path = f"{folder}/missing"
    for _ in range(operations):
        os.path.exists(path)


def _missing_first(folder: Path, operations: int) -> None:
    for number in range(operations):
        os.path.exists(f"{folder}/missing{number}")


def _list(folder: Path, _operations: int) -> None:
    """List a folder with the attributes of each entry, as `ls -l` does."""
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat()


def _small_files_listed(folder: Path, operations: int) -> None:
    _small_files(folder, operations)
    _list(folder, operations)


def _save_documents(folder: Path, operations: int) -> None:
    for _ in range(operations):
        _save_document(folder, is_synced=False)


def _save_documents_synced(folder: Path, operations: int) -> None:
    for _ in range(operations):
        _save_document(folder, is_synced=True)


def _save_document(folder: Path, is_synced: bool) -> None:
    """Replace a document as careful programs do: a new file, then a rename over the old one."""
    fd = os.open(folder / "state.json.new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    os.write(fd, KIBIBYTE)
    if is_synced:
        os.fsync(fd)
    os.close(fd)
    os.rename(folder / "state.json.new", folder / "state.json")


WORKLOADS: Final = (
    Workload("lookup, cold", 1000, _small_files, _stat_each, is_cold=True),
    Workload("getattr", 2000, _small_files, _forced_stat),
    Workload("open+read+close, warm", 1000, _small_files_read, _read_each),
    Workload("open+read+close, cold", 1000, _small_files, _read_each, is_cold=True),
    Workload("stat of a missing name, first", 1000, _nothing, _missing_first, is_cold=True),
    Workload("stat of a missing name, again", 5000, _nothing, _missing_again),
    Workload("list 1000 entries, cold", 1000, _small_files, _list, is_cold=True),
    Workload("list 1000 entries, warm", 1000, _small_files_listed, _list),
    Workload(
        "create",
        500,
        _files_left_open.prepare,
        _files_left_open.create,
        finish=_files_left_open.close,
    ),
    Workload("create+close, empty", 500, _empty_folder, _create_each_empty),
    Workload("create+write 1 KiB+close", 500, _empty_folder, _create_each),
    Workload("unlink", 500, _small_files, _unlink_each),
    Workload("rename", 500, _files_to_rename, _rename_each),
    Workload("mkdir", 500, _empty_folder, _mkdir_each),
    Workload("rmdir", 500, _folders, _rmdir_each),
    Workload("append 100 B, large file", 2000, _large_file, _append_each),
    Workload("append 100 B, small file", 640, _empty_folder, _append_small),
    Workload("pwrite 4 KiB", 2000, _large_file, _write_pages),
    Workload("safe JSON save", 200, _nothing, _save_documents),
    Workload("safe JSON save, fsync", 200, _nothing, _save_documents_synced),
    Workload("write 1 MiB", 64, _nothing, _write_mebibytes),
)


def make_cold(workload: Workload) -> None:
    """Empty the kernel's caches of names before a workload that wants that."""
    if workload.is_cold and not drop_kernel_caches():
        raise SystemExit("cold figures need root: /proc/sys/vm/drop_caches cannot be written")
