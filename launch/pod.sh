#!/usr/bin/env bash
# The first process of a pod (gke_jobset.yaml): runs the program and passes SIGTERM on to it.
#
#   launch/pod.sh python -m dimo_jax.main --config=...
#
# The exit status is the program's, but 143 after a SIGTERM: then the program has saved and left
# with 0, and the pod must not count as done.
set -euo pipefail

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
