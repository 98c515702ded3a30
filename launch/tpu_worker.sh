#!/usr/bin/env bash
# What tpu_vm.py calls on each worker of a slice, over ssh; nobody else needs it.
#
#   launch/tpu_worker.sh install --python_version=3.12       an environment in .venv with the TPU's JAX
#   launch/tpu_worker.sh start --module=NAME -- ARGUMENTS    the program, detached from the connection
#   launch/tpu_worker.sh status                              one line: worker HOST STATE
#   launch/tpu_worker.sh logs --lines=N | --follow           the end of this worker's log, or all
#   launch/tpu_worker.sh stop                                SIGTERM to the program
#
# STATE is idle, running, "ended N" with the program's exit status, stopped, or interrupted: it was
# running when the machine went down. The log is ~/dimo_jax_run/log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command=${1:-} flag=${2:-}
value=${flag#*=}
state_dir=$HOME/dimo_jax_run
host=$(hostname)

# The supervisor runs; after a reboot its number may be another process's.
alive() {
  [[ -s $state_dir/supervisor ]] &&
    grep -qs supervise "/proc/$(<"$state_dir/supervisor")/cmdline"
}

state() {
  if alive; then
    echo running
  elif [[ -s $state_dir/ended ]]; then
    cat "$state_dir/ended"
  elif [[ -e $state_dir/supervisor ]]; then
    echo interrupted
  else
    echo idle
  fi
}

install() {
  # The images carry Python 3.10 at best; uv brings another, and needs neither root nor venv.
  set -x
  python3 -m pip install --quiet --upgrade --target="$HOME/.uv" uv
  export PYTHONPATH=$HOME/.uv
  [[ -x .venv/bin/python ]] || python3 -m uv venv --quiet "--python=$value" .venv
  python3 -m uv pip install --quiet --python=.venv/bin/python \
    --constraint=constraints.txt --editable '.[tpu]'
  touch .venv/installed
}

# start ARGUMENT...
start() {
  if alive; then
    echo "tpu_worker.sh: worker $host runs the program already; stop it first" >&2
    exit 2
  fi
  mkdir -p "$state_dir"
  rm -f "$state_dir"/{supervisor,program,ended,stop}
  nohup setsid bash launch/tpu_worker.sh supervise "$flag" -- "$@" \
    >>"$state_dir/log" 2>&1 </dev/null &
  until [[ -s $state_dir/program ]]; do sleep 0.1; done
  echo "worker $host $(state)"
}

# Runs the program and writes down how it ended. When the machine goes down, SIGTERM reaches this
# shell and the program both: the program saves and leaves with 0, but that is not the run's end.
supervise() {
  local status signalled=false
  echo $$ >"$state_dir/supervisor"
  echo "== $(date -u +%FT%TZ) $host: $(printf '%q ' "$value" "$@")"
  trap 'signalled=true' TERM HUP
  .venv/bin/python -m "$value" "$@" &
  echo $! >"$state_dir/program"
  while :; do
    status=0
    wait $! || status=$?              # a signal ends the wait, not the program
    kill -0 $! 2>/dev/null || break
  done
  if [[ -e $state_dir/stop ]]; then
    echo stopped >"$state_dir/ended"
  elif ! $signalled; then
    echo "ended $status" >"$state_dir/ended"
  fi
  echo "== $(date -u +%FT%TZ) $host: $(state), status $status"
}

case $command in
  install) install ;;
  start | supervise) "$command" "${@:4}" ;; # the module and the -- come before
  status) echo "worker $host $(state)" ;;
  logs)
    how=(-n "$value")
    [[ $flag != --follow ]] || how=(-n +1 -F)
    tail "${how[@]}" "$state_dir/log"
    ;;
  stop)
    if alive; then
      touch "$state_dir/stop"
      kill -s TERM "$(<"$state_dir/program")"
    fi
    ;;
  *)
    echo "tpu_worker.sh: name one of: install start status logs stop" >&2
    exit 2
    ;;
esac
