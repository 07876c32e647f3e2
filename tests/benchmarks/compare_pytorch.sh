#!/usr/bin/env bash
# The standard comparison with PyTorch, at its best setting of each (eager or compiled, every allocator that is installed:
# libjemalloc2 and libtcmalloc-minimal4 are worth installing): GPT-2 (124M) at 1024 tokens; 8 layers of width 512 at 16384
# tokens, causal and with a window of 1024; two processes that share the batch; one sequence shared by two processes; the
# time to the first step. Makes the Python environment first; takes half an hour on two quiet cores.
#   compare_pytorch.sh [WORKLOAD...]      gpt2 long window data sequence startup, gpt2-bf16 long-bf16 window-bf16 data-bf16
#                                         (the same in bf16, for processors with AMX); without one: all of fp32
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0; fi
tests/support/python_environment.sh --torch >&2
python=.venv-tests/bin/python
status=0

precision=fp32
compare() {
  echo "== $precision $*"
  "$python" tests/benchmarks/compare_pytorch.py "$@" --set "model.precision=$precision" || status=1
  echo
}

gpt2() {
  compare --config configs/gpt2-124m.ini --set data.sequence-length=1024 --set train.micro-batch=4 \
    --set train.global-batch=4 --steps 3 --rounds 2
}
long() { compare --config tests/benchmarks/long.ini --steps 3 --rounds 2; }
window() { compare --config tests/benchmarks/long.ini --set attention.window=1024 --steps 3 --rounds 2; }
data() {
  compare --config configs/gpt2-124m.ini --ranks 2 --set data.sequence-length=1024 --set train.micro-batch=2 \
    --set train.global-batch=2 --steps 3 --rounds 2
}
sequence() {
  echo "== one sequence of 16384 tokens: one rank with one thread, then two ranks that share it, one thread each"
  "$python" tests/benchmarks/pytorch_context_parallel.py
  tests/benchmarks/bench_sequence.sh
  echo
}
startup() {
  echo "== from the command to the first finished step, tiny.ini"
  "$python" tests/benchmarks/compare_startup.py
  echo
}

workloads=("$@")
if ((${#workloads[@]} == 0)); then workloads=(gpt2 long window data sequence startup); fi
for workload in "${workloads[@]}"; do
  case $workload in
    gpt2 | long | window | data | sequence | startup) "$workload" ;;
    gpt2-bf16 | long-bf16 | window-bf16 | data-bf16) precision=bf16 && "${workload%-bf16}" && precision=fp32 ;;
    *) echo "$0: there is no workload $workload; valid: gpt2 long window data sequence startup, the first four with -bf16 too" >&2; exit 2 ;;
  esac
done
exit $status
