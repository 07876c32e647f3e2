#!/usr/bin/env bash
# One 16384-token sequence through 8 layers of width 512: one rank with one thread against two ranks that share the
# sequence, one thread each. Alternating runs, the median of the steps after the first.
# Usage: bench_sequence.sh [BUILD_FOLDER] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-2}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c 2000000 /dev/urandom >"$work/random.bin"
"$build/longspan" prepare --kind text --output "$work/d.h5" "$work/random.bin" >"$work/prepare.log"
run() { # NAME RANKS
  rm -rf "$work/run"
  "$build/longspan" launch --ranks "$2" --config tests/benchmarks/long.ini --data.path "$work/d.h5" \
    --run.directory "$work/run" --run.threads 1 --mesh.context "$2" --train.steps 3 --train.validate-every 0 \
    --checkpoint.every 0 >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  sed -n 's/.*"step_seconds":\([0-9.e+-]*\).*/\1/p' "$work/run/metrics.jsonl" | tail -n +2 >>"$work/$1"
}
for ((i = 0; i < rounds; i++)); do run one 1; run two 2; done
median() { sort -n "$1" | awk '{t[NR] = $1} END {print t[int((NR + 1) / 2)]}'; }
one=$(median "$work/one") two=$(median "$work/two")
awk -v a="$one" -v b="$two" 'BEGIN {
  printf "one rank, one thread %.3f s a step; two ranks %.3f s: %.2f x\n", a, b, a / b }'
