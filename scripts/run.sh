#!/bin/sh
# Mount a state, where it is not mounted yet, and show what to do with it: the second half of `make run`.
set -eu

cd "$(dirname "$0")/.."
state=${1:-./state}

.venv/bin/statefs mount "$state"

quoted() { # as a shell takes it
    case $1 in
    *[!A-Za-z0-9_./-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
    esac
}
line() { printf '  %-46s %s\n' "$1" "$2"; }
stop="make stop"
[ "$state" = ./state ] || stop="make stop STATE=$(quoted "$state")"
echo "$state/current is mounted: any program can write there. For example:"
line "echo hello > $(quoted "$state/current/files/note")" "write with any program"
line ".venv/bin/statefs save $(quoted "$state") -m 'my first'" "keep a snapshot of all of it"
line "ls $(quoted "$state/snapshots/latest/files")" "every snapshot is a folder to look into"
line "$stop" "unmount; the data stays in $state.store"
