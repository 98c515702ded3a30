#!/usr/bin/env bash
# N processes of the program on this machine, joined into one run: what many hosts do, in small.
#
#   launch/local_processes.sh --processes=2 --cpu_devices=4 -- \
#       --config=configs/digits.py --workdir=runs/two
#
#   --processes=N     how many                               (2)
#   --cpu_devices=K   each simulates K devices on the CPU
#   --one_gpu_each    process I sees GPU I only
#   --log_dir=DIR     process I appends to DIR/process_I.log; otherwise each line on the terminal
#                     begins with [I]
#   --port=PORT       where process 0 listens                (a free one)
#   --grace_s=S       seconds from SIGTERM to SIGKILL, for the others once one has failed   (30)
#   --python=PATH     the interpreter                        (.venv/bin/python, else python3)
#   --module=NAME     what runs: python -m NAME              (dimo_jax.main)
#   --dry-run         print the commands, run nothing
#
# SIGTERM and SIGINT go on to every process. When one fails the others are ended, and the exit
# status is that of the first failure (128 + the signal's number for a signal).
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 cpu_devices='' one_gpu_each=false log_dir='' port='' grace_s=30
python=$(default_python) module=dimo_jax.main
parse_flags "processes cpu_devices one_gpu_each! log_dir port grace_s python module" "$@"
require_program
require_count processes grace_s
[[ -z $cpu_devices ]] || require_count cpu_devices
[[ -z $port ]] || require_count port
[[ -z $cpu_devices ]] || ! $one_gpu_each || die "--cpu_devices excludes --one_gpu_each"

while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 20000))
  ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || port=''
done

# command_of I: fills the array `command` with what process I runs.
command_of() {
  command=(env)
  [[ -z $cpu_devices ]] || command+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$cpu_devices")
  ! $one_gpu_each || command+=("CUDA_VISIBLE_DEVICES=$1")
  command+=(
    "$python" -m "$module" "${PROGRAM[@]}"
    "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$1"
  )
}

if $DRY_RUN; then
  echo "cd $(quote "$ROOT")"
  [[ -z $log_dir ]] || echo "mkdir -p $(quote "$log_dir")"
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    echo "$(quote "${command[@]}") ${log_dir:+>>$(quote "$log_dir/process_$i.log") 2>&1 }&"
  done
  echo wait
  exit
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pids=() readers=() alive=() failure=0 deadline=''

# Writes stdin with [I] before each line, to its end: it must not die of a signal meant for all.
prefix() {
  trap '' INT TERM
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# start I: process I in a process group of its own, so that a Ctrl-C at the terminal reaches this
# script alone, which passes it on once.
start() {
  local output
  command_of "$1"
  if [[ -n $log_dir ]]; then
    output=$log_dir/process_$1.log
  else
    output=$scratch/$1
    mkfifo "$output"
    prefix "$1" <"$output" &
    readers+=($!)
  fi
  set -m
  "${command[@]}" >>"$output" 2>&1 </dev/null &
  set +m
  pids+=($!)
}

# forward SIGNAL: to each process that still runs.
forward() {
  local i
  for i in ${alive[@]+"${alive[@]}"}; do kill -s "$1" "${pids[i]}" 2>/dev/null || true; done
}

# ended I: takes the exit status of process I; the first that is not 0 ends the others.
ended() {
  local status=0
  wait "${pids[$1]}" || status=$?
  if ((status && !failure)); then
    failure=$status
    note "process $1 ended with status $status; ending the others"
    forward TERM
    deadline=$((SECONDS + grace_s))
  fi
}

trap 'forward TERM' TERM
trap 'forward INT' INT
[[ -z $log_dir ]] || mkdir -p "$log_dir"
for ((i = 0; i < processes; i++)); do
  start "$i"
  alive+=("$i")
done

while ((${#alive[@]})); do
  sleep 0.2 || true # Ctrl-C ends the sleep too
  running=() finished=()
  for i in "${alive[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then running+=("$i"); else finished+=("$i"); fi
  done
  alive=(${running[@]+"${running[@]}"})
  for i in ${finished[@]+"${finished[@]}"}; do ended "$i"; done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then forward KILL; fi
done
# What a process may have left behind would hold its pipe open.
for pid in "${pids[@]}"; do kill -s KILL -- "-$pid" 2>/dev/null || true; done
for pid in ${readers[@]+"${readers[@]}"}; do wait "$pid" || true; done
exit "$failure"
