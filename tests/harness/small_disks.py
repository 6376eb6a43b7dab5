"""Small filesystems of their own for a store, made in a file: to fill them, to limit them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1024 * 1024


def run(*command: str | Path) -> None:
    """Run a command of the system that must succeed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


def need(*programs: str) -> None:
    """Skip the test where it has not the right or the programs to make a filesystem."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a filesystem from a file")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@contextmanager
def read_only_view(source: Path, view: Path) -> Iterator[Path]:
    """Show a folder at another place, the new folder `view`, where nothing can be written."""
    need("mount")
    view.mkdir()
    run("mount", "--bind", source, view)
    try:
        run("mount", "-o", "remount,bind,ro", view)
        yield view
    finally:
        run("umount", view)


@contextmanager
def loop_disk(folder: Path, size_bytes: int, *make: str) -> Iterator[Path]:
    """Mount a new filesystem of `size_bytes` in `folder`.

    Args:
        folder: an empty folder on the disk.
        size_bytes: of the file that holds it.
        make: the program that formats it, with its options.
    """
    need(make[0], "losetup")
    image, mount_point = folder / "image", folder / "disk"
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    run(*make, image)
    mount_point.mkdir()
    attached = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, timeout=60
    )
    if attached.returncode != 0:
        pytest.skip(f"no loop devices here: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        run("mount", device, mount_point)
        try:
            yield mount_point
        finally:
            run("umount", mount_point)
    finally:
        run("losetup", "--detach", device)
        image.unlink()
