#!/usr/bin/env bash
# What tpu_vm.py calls on each worker of a slice, over ssh; nobody else needs it.
#
#   launch/tpu_worker.sh install             an environment in .venv with the TPU's JAX
#   launch/tpu_worker.sh start -- ARGUMENTS  the program, detached from the connection
#   launch/tpu_worker.sh status              one line: worker HOST STATE
#   launch/tpu_worker.sh logs                the end of this worker's log, or all as it grows
#   launch/tpu_worker.sh stop                SIGTERM to the program
#
#   --python_version=3.12   for install
#   --module=NAME           for start: python -m NAME   (dimo_jax.main)
#   --lines=N --follow      for logs                    (50)
#   --dry-run               print the commands, run nothing
#
# STATE is idle, running, "ended N" with the program's exit status, stopped, or interrupted: it was
# running when the machine went down. The log is ~/dimo_jax_run/log.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

COMMANDS='install start status logs stop supervise'
python_version=3.12 lines=50 follow=false module=dimo_jax.main
parse_flags "python_version lines follow! module" "$@"
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
  run python3 -m pip install --quiet --upgrade --target="$HOME/.uv" uv
  [[ -x .venv/bin/python ]] ||
    run env "PYTHONPATH=$HOME/.uv" python3 -m uv venv --quiet "--python=$python_version" .venv
  run env "PYTHONPATH=$HOME/.uv" python3 -m uv pip install --quiet --python=.venv/bin/python \
    --constraint=constraints.txt --editable '.[tpu]'
  $DRY_RUN || touch .venv/installed
}

start() {
  require_program
  if $DRY_RUN; then
    quote nohup setsid .venv/bin/python -m "$module" "${PROGRAM[@]}"
    echo ' >>~/dimo_jax_run/log 2>&1 &'
    return
  fi
  if alive; then
    die "worker $host runs the program already; stop it first"
  fi
  mkdir -p "$state_dir"
  rm -f "$state_dir"/{supervisor,program,ended,stop}
  nohup setsid bash "$SELF" supervise "--module=$module" -- "${PROGRAM[@]}" \
    >>"$state_dir/log" 2>&1 </dev/null &
  until [[ -s $state_dir/program ]]; do sleep 0.1; done
  echo "worker $host $(state)"
}

# Runs the program and writes down how it ended. When the machine goes down, SIGTERM reaches this
# shell and the program both: the program saves and leaves with 0, but that is not the run's end.
supervise() {
  local status signalled=false
  echo $$ >"$state_dir/supervisor"
  echo "== $(date -u +%FT%TZ) $host: $(quote "$module" "${PROGRAM[@]}")"
  trap 'signalled=true' TERM HUP
  .venv/bin/python -m "$module" "${PROGRAM[@]}" &
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

case $COMMAND in
  install) install ;;
  start) start ;;
  supervise) supervise ;;
  status) echo "worker $host $(state)" ;;
  logs)
    how=(-n "$lines")
    ! $follow || how=(-n +1 -F)
    run tail "${how[@]}" "$state_dir/log"
    ;;
  stop)
    if alive; then
      $DRY_RUN || touch "$state_dir/stop"
      run kill -s TERM "$(<"$state_dir/program")"
    fi
    ;;
  *) die "name one of: $COMMANDS" ;;
esac
