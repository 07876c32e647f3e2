#!/usr/bin/env bash
# How true the planner is on this machine: trains a small model on every mesh of 1, 2 and 4 ranks, and prints predicted
# against measured step time and memory. Calibrates before every mesh, with as many ranks: the cores of a virtual machine
# get faster and slower by a tenth within minutes. On a quiet machine. More ranks than cores share them evenly, calibrated as
# they run; what they cannot share evenly is left out.
# Usage: bench_plan.sh [BUILD_FOLDER] [RANKS...]    (default: build 1 2 4)
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build}
shift || true
counts=(${*:-1 2 4})
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} XDG_CONFIG_HOME=$work
"$build/longspan" prepare --kind text --output "$work/d.h5" /usr/include/c++ >"$work/prepare.log"

number() { grep -o "\"$2\": *[0-9.e+-]*" "$1" | head -n "${3:-1}" | tail -1 | sed 's/.*: *//'; }
printf '%-7s %-9s %-10s %-10s  %10s %10s %6s   %9s %9s %6s\n' mesh scheme keep shard "predicted s" "measured s" ratio \
  "MiB" "allocated" ratio
for ranks in "${counts[@]}"; do
  binding=(--bind-to none)
  if [[ $ranks -gt $(nproc) ]]; then
    if ((ranks % $(nproc) != 0)); then
      echo "($ranks ranks: $(nproc) cores cannot be shared evenly)"
      continue
    fi
    binding=(--map-by core --bind-to core:overload-allowed) # as `launch` does it
  fi
  for mesh in 1x1x1 2x1x1 1x2x1 1x1x2 4x1x1 1x4x1 1x1x4 2x2x1 2x1x2 1x2x2; do
    IFS=x read -r data context tensor <<<"$mesh"
    [[ $((data * context * tensor)) == "$ranks" ]] || continue
    mkdir -p "$work/longspan"
    mpirun --allow-run-as-root --oversubscribe "${binding[@]}" -n "$ranks" -x XDG_CONFIG_HOME "$build/longspan" doctor \
      --calibrate >"$work/calibrate.log"
    schemes=(ring)
    [[ $context == 1 ]] || schemes=(ring allgather ulysses)
    shards=(none)
    [[ $data == 1 ]] || shards=(none parameters)
    for scheme in "${schemes[@]}"; do
      for keep in all attention block; do
        for shard in "${shards[@]}"; do
          rm -rf "$work/run"
          "$build/longspan" launch --ranks "$ranks" --data.path "$work/d.h5" --run.directory "$work/run" \
            --model.layers 4 --model.width 256 --model.heads 4 --data.sequence-length 1024 --train.global-batch 4 \
            --train.steps 6 --mesh.data "$data" --mesh.context "$context" --mesh.tensor "$tensor" \
            --attention.scheme "$scheme" --memory.keep "$keep" --optimizer.shard "$shard" >"$work/run.log" 2>&1 || {
            cat "$work/run.log" >&2
            exit 1
          }
          plan=$work/run/plan.json
          awk -v m="$mesh" -v c="$scheme" -v k="$keep" -v o="$shard" -v p="$(number "$plan" predicted 2)" \
            -v s="$(number "$plan" measured)" -v b="$(number "$plan" predicted)" -v a="$(number "$plan" allocated)" \
            'BEGIN {printf "%-7s %-9s %-10s %-10s  %10.4f %10.4f %6.2f   %9.1f %9.1f %6.3f\n", m, c, k, o, p, s, p / s, b / 2^20, a / 2^20, b / a}'
        done
      done
    done
  done
done
