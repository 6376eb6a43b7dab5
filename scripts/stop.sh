#!/bin/sh
# Unmount a state if it is mounted: `make stop`.
set -eu

cd "$(dirname "$0")/.."
state=${1:-./state}
not_mounted=4 # the exit code of errors.NotMounted

if [ ! -x .venv/bin/statefs ]; then
    echo "nothing to stop: statefs is not set up here"
    exit 0
fi
code=0
.venv/bin/statefs umount "$state" || code=$?
[ $code -eq $not_mounted ] || exit $code
