#!/usr/bin/env bash
# The program on all GPUs of this machine, in one process.
#
#   launch/gpu_node.sh -- --config=configs/imagenet.py --workdir=runs/imagenet
#
#   --gpus=0,1       only these GPUs
#   --log=FILE       append the output to FILE instead of the terminal
#   --python=PATH    the interpreter                       (.venv/bin/python, else python3)
#   --module=NAME    what runs: python -m NAME             (dimo_jax.main)
#   --dry-run        print the command, run nothing
#
# SIGTERM and Ctrl-C make it save and leave; the same command goes on from there.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpus='' log='' python=$(default_python) module=dimo_jax.main
parse_flags "gpus log python module" "$@"
require_program

# In an interactive SLURM step, under mpirun or in a pod JAX would take itself for one process of
# several, and use one GPU only.
command=(env -u SLURM_STEP_NODELIST -u OMPI_MCA_orte_hnp_uri -u KUBERNETES_SERVICE_HOST)
[[ -z $gpus ]] || command+=("CUDA_VISIBLE_DEVICES=$gpus")
command+=("$python" -m "$module" "${PROGRAM[@]}")

if $DRY_RUN; then
  printf '%s\n' "cd $(quote "$ROOT")" "$(quote "${command[@]}")${log:+ >>$(quote "$log") 2>&1}"
  exit
fi
[[ -z $log ]] || exec >>"$log" 2>&1
note "$(quote "${command[@]}")"
exec "${command[@]}"
