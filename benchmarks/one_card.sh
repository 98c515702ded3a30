#!/usr/bin/env bash
# The table of one card, in one call on a bare machine: an NVIDIA GPU with its driver, Python 3.11 to
# 3.13 and a package index are enough.
#
#   benchmarks/one_card.sh [--output=one_card] [--config=configs/imagenet.py] [--batch_sizes 64 256]
#
# It ends in ONE_CARD/one_card.json. Interrupted, the same command goes on where it was. JAX and
# PyTorch each get a virtual environment in ONE_CARD, since each wants NVIDIA's libraries in versions
# of its own; JAX_PYTHON and TORCH_PYTHON name those that are there already, PYTHON what makes new
# ones.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
output=one_card
for argument in "$@"; do
  case $argument in
    --output=*) output=${argument#*=} ;;
    --output) echo "one_card.sh: write --output=FOLDER" >&2 && exit 2 ;;
  esac
done
mkdir -p "$output"
output=$(cd "$output" && pwd)

environment() { # FOLDER PACKAGES...: makes it once
  [ -e "$1/complete" ] && return
  "${PYTHON:-python3}" -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
  touch "$1/complete"
}

if [ -z "${JAX_PYTHON:-}" ]; then
  if ! command -v nvidia-smi >/dev/null; then
    echo "one_card.sh: there is no nvidia-smi, so no NVIDIA driver; elsewhere set JAX_PYTHON" >&2
    exit 2
  fi
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
  cuda=cuda13
  [ "${driver%%.*}" -ge 580 ] || cuda=cuda12
  environment "$output/jax" --editable "${root}[$cuda]"
  JAX_PYTHON=$output/jax/bin/python
fi
if [ -z "${TORCH_PYTHON:-}" ]; then
  TORCH_PYTHON=$output/torch/bin/python
  # Without PyTorch the rest is measured all the same.
  environment "$output/torch" --editable "$root" torch || TORCH_PYTHON=
fi
exec "$JAX_PYTHON" "$root/benchmarks/one_card.py" --torch_python="$TORCH_PYTHON" "$@"
