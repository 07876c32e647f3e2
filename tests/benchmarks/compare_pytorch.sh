#!/usr/bin/env bash
# The standard comparison with PyTorch: GPT-2 (124M) at 1024 tokens, a small model at 4096 and at 16384 tokens.
# Makes the Python environment first; takes half an hour on two cores. Everything given goes on to compare_pytorch.py:
#   compare_pytorch.sh [--steps N] [--rounds N] [--threads N] [--only longspan|pytorch] [--json]
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0; fi
tests/support/python_environment.sh --torch >&2

status=0
compare() {
  echo "== $*" >&2
  .venv-tests/bin/python tests/benchmarks/compare_pytorch.py "$@" || status=1
  echo
}
compare --config configs/gpt2-124m.ini --set data.sequence-length=1024 --set train.micro-batch=4 --set train.global-batch=4 "$@"
compare --config tests/benchmarks/long.ini --set data.sequence-length=4096 "$@"
compare --config tests/benchmarks/long.ini --set data.sequence-length=16384 --steps 3 "$@"
exit $status
