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
said=$(.venv/bin/statefs umount "$state" 2>&1) || code=$?
if [ $code -eq $not_mounted ]; then
    echo "nothing to stop: $state is not mounted"
    exit 0
fi
if [ $code -ne 0 ]; then
    echo "$said" >&2
    exit $code
fi
echo "$said"
