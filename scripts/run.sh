#!/bin/sh
# Mount a state, unless it is mounted, and show what to do with it: the second half of `make run`.
set -eu

cd "$(dirname "$0")/.."
state=${1:-./state}
already_mounted=5 # the exit code of errors.AlreadyMounted

code=0
.venv/bin/statefs mount "$state" || code=$?
if [ $code -ne 0 ] && ! { [ $code -eq $already_mounted ] && [ -d "$state/current" ]; }; then
    exit $code
fi

cat <<EOF_TOUR
$state/current is mounted: any program can write there.
  echo hello > $state/current/files/note       write with any program
  .venv/bin/statefs save $state -m "my first"   keep a snapshot of all of it
  ls $state/snapshots/latest/files             every snapshot is a folder to look into
  make stop                                    unmount; the data stays in $state.store
EOF_TOUR
