#!/usr/bin/env bash
# From the command to the first finished step of `longspan launch --ranks 2` on tiny.ini: median of several runs.
# Usage: bench_startup.sh [BUILD_FOLDER] [RUNS]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} runs=${2:-7}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$build/longspan" prepare --kind text --output "$work/d.h5" model parallel >"$work/prepare.log"
for ((i = 1; i <= runs; i++)); do
  begin=$(date +%s.%N)
  "$build/longspan" launch --ranks 2 --config configs/tiny.ini --data.path "$work/d.h5" --run.directory "$work/run$i" \
    --train.steps 1 --train.validate-every 0 >"$work/log" 2>&1
  # The line of step 1 is flushed when the step has finished; saving the checkpoint and leaving come after it.
  first=$(stat -c %.9Y "$work/run$i/metrics.jsonl")
  awk -v a="$begin" -v b="$first" 'BEGIN { printf "%.4f\n", b - a }'
done | sort -n | awk '{t[NR] = $1} END {
  printf "command to first finished step, 2 ranks: median %.3f s (min %.3f, max %.3f, %d runs)\n", t[int((NR + 1) / 2)], t[1], t[NR], NR }'
