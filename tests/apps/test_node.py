"""Node's fs on the mount: write, rename over, watch, and a document saved while saves are taken."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.apps.programs import needs, reporting, run
from tests.harness.mounted_state import MountedState

pytestmark = needs("node")
VERSIONS: Final = 200
SAVES: Final = 8
ITEMS_MAX: Final = 3_000
"""About 70 KiB of text: some versions lie in the database, some in object files."""
FILES: Final = 300
CALLS: Final = """
const fs = require("node:fs/promises");
const { createReadStream, createWriteStream, existsSync } = require("node:fs");
const { pipeline } = require("node:stream/promises");
const path = require("node:path");
const [folder, count] = [process.argv[1], Number(process.argv[2])];
const at = (name) => path.join(folder, name);

(async () => {
  const seen = {};
  await fs.mkdir(at("a/b/c"), { recursive: true });
  await Promise.all(
    Array.from({ length: count }, (_, n) => fs.writeFile(at(`a/file ${n}`), `text ${n}`)));
  const names = await fs.readdir(at("a"), { withFileTypes: true });
  seen.files = names.filter((one) => one.isFile()).length;
  seen.folders = names.filter((one) => one.isDirectory()).map((one) => one.name);
  const texts = await Promise.all(
    Array.from({ length: count }, (_, n) => fs.readFile(at(`a/file ${n}`), "utf8")));
  seen.texts = texts.filter((text, n) => text === `text ${n}`).length;

  await fs.writeFile(at("old"), "old");
  await fs.writeFile(at("new"), "new");
  const before = (await fs.stat(at("new"))).ino;
  await fs.rename(at("new"), at("old"));
  seen.renamed = [await fs.readFile(at("old"), "utf8"), existsSync(at("new"))];
  seen.sameInode = (await fs.stat(at("old"))).ino === before;

  await fs.appendFile(at("old"), " and more");
  await fs.truncate(at("old"), 7);
  await fs.copyFile(at("old"), at("copied"));
  await fs.symlink("copied", at("link"));
  seen.copied = await fs.readFile(at("link"), "utf8");
  await fs.utimes(at("copied"), 1000.25, 2000.5);
  seen.mtime = (await fs.stat(at("copied"))).mtimeMs;
  await fs.chmod(at("copied"), 0o640);
  seen.mode = (await fs.stat(at("copied"))).mode & 0o7777;

  await fs.writeFile(at("large"), Buffer.alloc(5_000_001, "0123456789"));
  await pipeline(createReadStream(at("large")), createWriteStream(at("streamed")));
  seen.streamed = (await fs.readFile(at("streamed"))).equals(await fs.readFile(at("large")));
  await fs.cp(at("a"), at("recursive"), { recursive: true });
  seen.recursive = (await fs.readdir(at("recursive"))).length;
  await fs.rm(at("a"), { recursive: true });
  seen.removed = !existsSync(at("a"));
  seen.missing = await fs.readFile(at("a")).catch((error) => error.code);
  seen.exists = await fs.mkdir(at("recursive")).catch((error) => error.code);
  console.log(JSON.stringify(seen));
})();
"""
WATCH: Final = """
const fs = require("node:fs");
const path = require("node:path");
const folder = process.argv[1];
const watcher = fs.watch(folder, (kind, name) => {
  console.log(JSON.stringify([kind, name]));
  if (name === "end") watcher.close();
});
console.log(JSON.stringify(["watching", ""]));
"""
DOCUMENT: Final = """
const fs = require("node:fs");
const [file, itemsMax] = [process.argv[1], Number(process.argv[2])];
for (let version = 1; ; version += 1) {
  const items = Array.from({ length: (version * 20) % itemsMax }, (_, n) => ({ n, version }));
  fs.writeFileSync(`${file}.new`, JSON.stringify({ version, items }));
  fs.renameSync(`${file}.new`, file);
  console.log(version);
}
"""


def test_the_calls_of_fs_do_what_node_documents(app_state: MountedState) -> None:
    """Files written at once, streams, copies, renames, times and the codes of errors."""
    said = run("node", "-e", CALLS, app_state.files, str(FILES))
    assert json.loads(said) == {
        "files": FILES,
        "folders": ["b"],
        "texts": FILES,
        "renamed": ["new", False],
        "sameInode": True,
        "copied": "new and",
        "mtime": 2_000_500,
        "mode": 0o640,
        "streamed": True,
        "recursive": FILES + 1,
        "removed": True,
        "missing": "ENOENT",
        "exists": "EEXIST",
    }


def watched_events(folder: Path, log: Path, save: Callable[[], object]) -> list[list[str]]:
    """Change a folder under Node's eyes and return what it reported, repetitions left out."""
    folder.mkdir()
    (folder / "document").write_text("old")
    (folder / "other").write_text("to be removed")
    with reporting("node", "-e", WATCH, folder, log=log) as watcher:
        watcher.lines_after(1)
        (folder / "document.new").write_text("new")
        save()
        (folder / "document.new").rename(folder / "document")
        (folder / "other").unlink()
        (folder / "end").touch()
        events: list[list[str]] = [json.loads(line) for line in watcher.lines_at_end()]
    return [event for event, _ in itertools.groupby(events)]


def test_a_watcher_is_told_of_every_change(app_state: MountedState, disk: Path) -> None:
    """What fs.watch reports of a folder is what it reports on the disk, a rename over included."""
    on_disk = watched_events(disk / "watched", disk / "disk.log", lambda: None)
    assert ["rename", "document"] in on_disk
    assert ["change", "document.new"] in on_disk
    found = watched_events(app_state.files / "watched", disk / "watch.log", app_state.save)
    assert found == on_disk


def test_a_document_saved_over_and_over_is_whole_in_every_snapshot(
    app_state: MountedState, disk: Path
) -> None:
    """Each snapshot holds one complete version, not older than the last acknowledged one."""
    document = app_state.files / "state.json"
    known: dict[str, int] = {}
    with reporting("node", "-e", DOCUMENT, document, str(ITEMS_MAX), log=disk / "n.log") as node:
        while len(node.lines()) < VERSIONS or len(known) < SAVES:
            version = int(node.lines_after(9)[-1])
            (app_state.snapshots / f"with-{version}").mkdir()
            known[f"with-{version}"] = version
            version = int(node.lines()[-1])
            known[app_state.save()] = version
        node.assert_running()
    last = int(node.lines()[-1])
    for snapshot, version in known.items():
        check_document(app_state.snapshots / snapshot / "files" / document.name, version)
    check_document(document, last)


def check_document(path: Path, version_least: int) -> None:
    """Read a document and see that all of it is of one version."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    version = content["version"]
    assert version >= version_least
    count = version * 20 % ITEMS_MAX
    assert content["items"] == [{"n": n, "version": version} for n in range(count)]
