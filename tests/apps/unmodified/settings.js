// Keeps settings and chat sessions as programs often do: each file written in place, nothing synced.
//
//   node settings.js FOLDER SNAPSHOTS TURNS
//
// A turn writes all files, marks its end by a folder in SNAPSHOTS, and prints "turn N". Begun anew,
// it goes on from its files; where they are not whole, from those of the last turn's snapshot.
const fs = require("node:fs");
const path = require("node:path");

const [folder, snapshots, turns] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const SESSIONS = ["first", "second", "third"];

function write(name, document) {
  fs.writeFileSync(path.join(folder, name), JSON.stringify(document, null, 2));
}

function turnOf(place) {
  const read = (name) => JSON.parse(fs.readFileSync(path.join(place, name), "utf8"));
  const known = [read("settings.json"), read("sessions/index.json")];
  known.push(...SESSIONS.map((id) => read(`sessions/${id}.json`)));
  if (known.some((document) => document.turn !== known[0].turn)) throw new Error("mixed turns");
  return known[0].turn;
}

function lastTurn() {
  const names = fs.readdirSync(snapshots).filter((name) => /^turn-\d+$/.test(name));
  return Math.max(0, ...names.map((name) => Number(name.slice(5))));
}

function begin() {
  try {
    return turnOf(folder);
  } catch {
    const last = lastTurn();
    if (last) {
      const kept = path.join(snapshots, `turn-${last}`, "files", path.basename(folder));
      fs.cpSync(kept, folder, { recursive: true });
    }
    return last;
  }
}

fs.mkdirSync(path.join(folder, "sessions"), { recursive: true });
for (let turn = begin() + 1; turn <= turns; turn++) {
  write("settings.json", { turn, theme: "dark", recent: Array(turn % 50).fill("a file") });
  for (const id of SESSIONS) {
    const length = 20 * (turn % 50);
    const said = Array.from({ length }, (_, n) => ({ n, text: `${id} ${turn} ${n}` }));
    write(`sessions/${id}.json`, { turn, id, said });
  }
  const entries = SESSIONS.map((id) => ({ id, turnCount: turn }));
  write("sessions/index.json", { turn, sessions: entries });
  fs.mkdirSync(path.join(snapshots, `turn-${turn}`));
  fs.writeSync(1, `turn ${turn}\n`);
}
