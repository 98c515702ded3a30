#!/usr/bin/env bash
# The first process of a pod (see gke.py): runs the program and passes SIGTERM on to it.
#
#   launch/pod.sh python -m dimo_jax.main --config=...
#
#   --help   this text
#
# The exit status is the program's, but 143 after a SIGTERM: then the program has saved and left
# with 0, and the pod must not count as done.
set -euo pipefail

case ${1:-} in
  -h | --help)
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
    exit 0
    ;;
  '' | -*)
    echo "pod.sh: a command is expected, found '${1:-}': launch/pod.sh python -m ..." >&2
    exit 2
    ;;
esac
terminated=false
trap 'terminated=true; kill -s TERM "$program" 2>/dev/null || true' TERM
# The TPU's driver locks memory; what a container may lock by default is too little for it.
ulimit -l unlimited 2>/dev/null || true
"$@" &
program=$!
while :; do
  status=0
  wait "$program" || status=$?           # a signal ends the wait, not the program
  kill -0 "$program" 2>/dev/null || break
done
if $terminated; then exit 143; fi
exit "$status"
