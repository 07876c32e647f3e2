#!/usr/bin/env bash
# How true the planner is on this machine: trains a small model on every mesh of 1, 2 and 4 ranks, and prints predicted
# against measured step time and memory. Calibrates before every mesh, with as many ranks: the cores of a virtual machine
# get faster and slower by a tenth within minutes. With several rounds each row is the median of them: each round of a mesh
# calibrates anew and trains all its rows. On a quiet machine. More ranks than cores share them evenly, calibrated as they
# run; what they cannot share evenly is left out.
# Usage: bench_plan.sh [--rounds N] [BUILD_FOLDER] [RANKS or DATAxCONTEXTxTENSOR...]    (default: 1 round, build 1 2 4)
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=1
if [[ ${1:-} == --rounds ]]; then
  rounds=${2:?--rounds takes a number}
  shift 2
fi
build=${1:-build}
shift || true
wanted=(${*:-1 2 4})
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} XDG_CONFIG_HOME=$work
"$build/longspan" prepare --kind text --output "$work/d.h5" /usr/include/c++ >"$work/prepare.log"

number() { grep -o "\"$2\": *[0-9.e+-]*" "$1" | head -n "${3:-1}" | tail -1 | sed 's/.*: *//'; }
median() { sort -g | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }

# All rows of a mesh: adds predicted and measured seconds, their ratio, predicted and allocated bytes to one file a row.
round() {
  local data=$1 context=$2 tensor=$3 ranks=$(($1 * $2 * $3))
  local binding=(--bind-to none) schemes=(ring) shards=(none) scheme keep shard plan
  [[ $ranks -le $(nproc) ]] || binding=(--map-by core --bind-to core:overload-allowed) # as `launch` does it
  [[ $context == 1 ]] || schemes=(ring allgather ulysses)
  [[ $data == 1 ]] || shards=(none parameters)
  mkdir -p "$work/longspan"
  mpirun --allow-run-as-root --oversubscribe "${binding[@]}" -n "$ranks" -x XDG_CONFIG_HOME "$build/longspan" doctor \
    --calibrate >"$work/calibrate.log"
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
        echo "$(number "$plan" predicted 2) $(number "$plan" measured) $(number "$plan" predicted) $(number "$plan" allocated)" |
          awk '{print $1, $2, $1 / $2, $3, $4}' >>"$work/rows/$scheme $keep $shard"
      done
    done
  done
}

printf '%-7s %-9s %-10s %-10s  %10s %10s %6s   %9s %9s %6s\n' mesh scheme keep shard "predicted s" "measured s" ratio \
  "MiB" "allocated" ratio
for one in "${wanted[@]}"; do
  for mesh in 1x1x1 2x1x1 1x2x1 1x1x2 4x1x1 1x4x1 1x1x4 2x2x1 2x1x2 1x2x2; do
    IFS=x read -r data context tensor <<<"$mesh"
    ranks=$((data * context * tensor))
    [[ $one == "$mesh" || $one == "$ranks" ]] || continue
    if ((ranks > $(nproc) && ranks % $(nproc) != 0)); then
      echo "($mesh: $(nproc) cores cannot be shared evenly)"
      continue
    fi
    mkdir -p "$work/rows"
    for ((i = 0; i < rounds; ++i)); do round "$data" "$context" "$tensor"; done
    # In the order of the rows: of their files' making.
    ls -tr --time=birth "$work/rows" | while IFS= read -r row; do
      column() { cut -d' ' -f"$1" "$work/rows/$row" | median; }
      read -r scheme keep shard <<<"$row"
      awk -v m="$mesh" -v c="$scheme" -v k="$keep" -v o="$shard" -v p="$(column 1)" -v s="$(column 2)" -v r="$(column 3)" \
        -v b="$(column 4)" -v a="$(column 5)" \
        'BEGIN {printf "%-7s %-9s %-10s %-10s  %10.4f %10.4f %6.2f   %9.1f %9.1f %6.3f\n", m, c, k, o, p, s, r, b / 2^20, a / 2^20, b / a}'
    done
    rm -r "$work/rows"
  done
done
