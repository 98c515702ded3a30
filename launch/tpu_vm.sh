#!/usr/bin/env bash
# The program on a Cloud TPU slice: one process on each of its hosts, kept alive over preemptions.
#
#   launch/tpu_vm.sh run --name=dimo --zone=us-central2-b --accelerator_type=v4-32 --spot -- \
#       --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet
#
#   run      create, install, start; then look every minute, and create and start again after each
#            preemption, until the program has ended. Interrupt it and type it again at will: it
#            takes up what it finds.
#   create   ask for the slice as a queued resource, and wait until it is there
#   install  copy the committed files of this checkout to all workers, and install them
#   start    start the program on all workers, detached, with a log on each
#   status   the state of the slice, and of the program on each worker
#   logs     the end of the workers' logs
#   stop     SIGTERM to the program: it saves on all workers at the same step and leaves
#   delete   give the slice back
#
#   --name=NAME --zone=ZONE --project=PROJECT
#   --accelerator_type=TYPE   as gcloud names it: v4-32, v5litepod-16, v5p-64, v6e-16
#   --runtime_version=NAME    the image                       (the one for JAX on that type)
#   --spot                    capacity that can be taken away at any time
#   --create_flag=FLAG        one more flag for gcloud ... queued-resources create; may be repeated
#   --ssh_flag=FLAG           one more for gcloud ... tpu-vm ssh and scp: --internal-ip; likewise
#   --ref=COMMIT              what install copies             (HEAD)
#   --python_version=3.12     what install installs
#   --module=NAME             what runs: python -m NAME       (dimo_jax.main)
#   --worker=N                for logs                        (all)
#   --lines=N --follow        for logs: how many lines (50), or all as they come
#   --poll_s=S                how often run and create look   (60)
#   --max_failures=N          run starts the program again after it failed, N times   (3)
#   --dry-run                 print the commands, run nothing
#
# The work directory must be on gs://: a worker's disk ends with the worker.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

COMMANDS='run create install start status logs stop delete'
name='' zone='' project='' accelerator_type='' runtime_version='' spot=false
create_flag=() ssh_flag=() ref=HEAD python_version=3.12 module=dimo_jax.main
worker=all lines=50 follow=false poll_s=60 max_failures=3
parse_flags "name zone project accelerator_type runtime_version spot! create_flag+ ssh_flag+ ref
  python_version module worker lines follow! poll_s max_failures" "$@"
[[ -n $COMMAND ]] || die "name one of: $COMMANDS"
require name zone
require_count lines
[[ $poll_s =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll_s=$poll_s is not a number of seconds"
[[ $max_failures =~ ^[0-9]+$ ]] || die "--max_failures=$max_failures is not a whole number from 0"
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  die "--name=$name: a letter first, then letters, digits and hyphens, all small"
[[ $COMMAND != run && $COMMAND != create ]] || require accelerator_type
if [[ $accelerator_type =~ ^v5(e|lite)-([0-9]+)$ ]]; then
  die "--accelerator_type=$accelerator_type: gcloud's name is v5litepod-${BASH_REMATCH[2]}"
fi
if [[ $COMMAND == run || $COMMAND == start ]]; then
  require_program
  [[ " ${PROGRAM[*]} " == *" --workdir=gs://"* ]] ||
    note "the work directory is not on gs://; a preemption takes what is on a worker's disk"
fi

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
tpus=(gcloud compute tpus)

# The images that Google names for JAX, by the accelerator.
image() {
  case $accelerator_type in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "no image is known for --accelerator_type=$accelerator_type; give --runtime_version" ;;
  esac
}

# remote WORKERS COMMAND: fills the array `ssh` with what runs COMMAND in their home directories.
remote() {
  ssh=(
    "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1"
    ${ssh_flag[@]+"${ssh_flag[@]}"} "--command=$2"
  )
}

# on WORKERS WORD...: a command of tpu_worker.sh there.
on() {
  local workers=$1
  shift
  remote "$workers" "$(quote bash dimo_jax/launch/tpu_worker.sh "$@")"
  run "${ssh[@]}"
}

# ask WORD...: a question to gcloud. A dry run prints it, and the answer is empty.
ask() {
  if $DRY_RUN; then quote "$@" && echo; else "$@"; fi
}

# The queued resource's state: ACTIVE, WAITING_FOR_RESOURCES, ...; empty if there is none.
slice_state() {
  ask "${tpus[@]}" queued-resources list "${where[@]}" \
    "--filter=name~/queuedResources/$name\$" '--format=value(state.state)'
}

# The slice's own state: READY, PREEMPTED, ...
node_state() { ask "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" '--format=value(state)'; }

request() {
  [[ -n $runtime_version ]] || runtime_version=$(image)
  local flags=("--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version")
  ! $spot || flags+=(--spot)
  run "${tpus[@]}" queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "${flags[@]}" ${create_flag[@]+"${create_flag[@]}"}
}

delete() { run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet; }

create() {
  local state
  request
  if $DRY_RUN; then
    slice_state
    return
  fi
  while :; do
    state=$(slice_state)
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED) note "the request ended as $state" && return 1 ;;
    esac
    note "$name is ${state:-requested}"
    sleep "$poll_s"
  done
}

install() {
  [[ $ref != HEAD || -z $(git status --porcelain --untracked-files=no) ]] ||
    note "what is not committed stays here; the workers get $ref"
  run git -C "$ROOT" archive --format=tar.gz "--output=$scratch/dimo_jax.tar.gz" "$ref" &&
    run "${tpus[@]}" tpu-vm scp "$scratch/dimo_jax.tar.gz" "$name:" "${where[@]}" --worker=all \
      ${ssh_flag[@]+"${ssh_flag[@]}"} &&
    remote all 'mkdir -p dimo_jax && tar -xzf dimo_jax.tar.gz -C dimo_jax' &&
    run "${ssh[@]}" &&
    on all install "--python_version=$python_version"
}

start() { on all start "--module=$module" -- "${PROGRAM[@]}"; }

# One line "worker HOST STATE" for each worker; "new" is one without the checkout.
workers() {
  local there='if [ -e dimo_jax/.venv/installed ]; then bash dimo_jax/launch/tpu_worker.sh status'
  # shellcheck disable=SC2016  # expanded there
  remote all "$there"'; else echo "worker $(hostname) new"; fi'
  ask "${ssh[@]}"
}

status() {
  local state
  if $DRY_RUN; then
    slice_state
    workers
  else
    state=$(slice_state)
    echo "slice $name ${state:-absent}"
    if [[ $state == ACTIVE ]]; then workers; fi
  fi
}

# What the loop finds, as one word: absent, lost, failed, waiting, unreachable; or of the program:
# new, idle, running, ended, stopped, refused (ended with 2: bad input), broken (with another).
look() {
  local state node answers
  state=$(slice_state) || { echo unreachable && return; }
  case $state in
    '') echo absent && return ;;
    SUSPENDED) echo lost && return ;;
    FAILED) echo failed && return ;;
    ACTIVE) ;;
    *) echo waiting && return ;;
  esac
  node=$(node_state) || { echo unreachable && return; }
  case $node in
    READY) ;;
    PREEMPTED | TERMINATED | STOPPED) echo lost && return ;;
    *) echo waiting && return ;;
  esac
  if ! answers=$(workers 2>"$scratch/errors" | grep '^worker '); then
    tail -n 3 "$scratch/errors" >&2
    echo unreachable && return
  fi
  # A process that is left alone ends by itself; until then the workers are not all free.
  if grep -q ' running$' <<<"$answers"; then
    echo running
  elif grep -q ' new$' <<<"$answers"; then
    echo new
  elif grep -q ' stopped$' <<<"$answers"; then
    echo stopped
  elif grep -q ' ended 2$' <<<"$answers"; then
    echo refused
  elif grep -q ' ended [^0]' <<<"$answers"; then
    echo broken
  elif grep -qv ' ended 0$' <<<"$answers"; then
    echo idle # not started yet, or interrupted with its machine
  else
    echo ended
  fi
}

# The loop remembers nothing but the failures: each round looks, and does the one thing that is due.
keep_running() {
  local found before='' failures=0 requested=false
  while :; do
    found=$(look)
    [[ $found == "$before" ]] || note "$name: $found"
    before=$found
    case $found in
      absent)
        # The first request fails for what is wrong with it; a later one may be tried again.
        request || $requested || exit 1
        requested=true
        ;;
      lost) delete || true ;;
      failed)
        note "the request failed; see: $(
          quote "${tpus[@]}" queued-resources describe "$name" "${where[@]}"
        )"
        exit 1
        ;;
      new) if install; then start || true; fi ;;
      idle) start || true ;;
      ended | stopped)
        note "the program has $found; the slice is yours, and charged, until: $SCRIPT delete" \
          "--name=$name --zone=$zone"
        return
        ;;
      refused | broken)
        on "$worker" logs "--lines=$lines" || true
        if [[ $found == refused ]] || ((failures++ == max_failures)); then
          note "the program failed, and is not started again; its last lines are above"
          exit 1
        fi
        start || true
        ;;
    esac
    sleep "$poll_s"
  done
}

# What the loop would run, in its order.
show_loop() {
  slice_state
  echo "# if there is none:"
  request
  echo "# every $poll_s s until it is ACTIVE, and then READY:"
  slice_state
  node_state
  echo "# on new workers:"
  install
  start
  echo "# every $poll_s s until the program has ended on all workers:"
  workers
  echo "# after a preemption, before it all begins again:"
  delete
}

if $DRY_RUN; then
  scratch=/tmp
else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi
case $COMMAND in
  run) if $DRY_RUN; then show_loop; else keep_running; fi ;;
  logs) if $follow; then on "$worker" logs --follow; else on "$worker" logs "--lines=$lines"; fi ;;
  stop) on all stop ;;
  *) "$COMMAND" ;;
esac
