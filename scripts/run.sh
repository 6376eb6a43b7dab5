#!/bin/sh
# Mount a state, where it is not mounted yet, and show what to do with it: the second half of `make run`.
set -eu

cd "$(dirname "$0")/.."
state=${1:-./state}

.venv/bin/statefs mount "$state"

line() { printf '  %-46s %s\n' "$1" "$2"; }
echo "$state/current is mounted: any program can write there. For example:"
line "echo hello > $state/current/files/note" "write with any program"
line ".venv/bin/statefs save $state -m 'my first'" "keep a snapshot of all of it"
line "ls $state/snapshots/latest/files" "every snapshot is a folder to look into"
line "make stop" "unmount; the data stays in $state.store"
