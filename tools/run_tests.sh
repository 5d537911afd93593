#!/bin/bash
# Runs pytest: first what computes, on all CPUs; then what records with the real kernel, alone.  Arguments go to both;
# those that name files are run as they are.
set -uo pipefail
pytest=$1
shift

for argument in "$@"; do
    if [[ $argument != -* && -e ${argument%%::*} ]]; then
        exec "$pytest" "$@"
    fi
done

"$pytest" --numprocesses auto --dist worksteal --ignore tests/live "$@"
first=$?
"$pytest" tests/live "$@"
second=$?

none=5 # pytest's status when nothing was chosen
if [[ $first -eq $none ]]; then
    exit "$second"
elif [[ $first -ne 0 || $second -eq $none ]]; then
    exit "$first"
fi
exit "$second"
