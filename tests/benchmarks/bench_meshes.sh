#!/usr/bin/env bash
# Whole training steps of one sequence over two ranks, one thread each, on text that every machine has.
# Usage: bench_meshes.sh [BUILD_FOLDER] [meshes] [long] [million]    (default: all three)
#   meshes   one model and one batch on every mesh of two ranks, in turns: tokens/s, exposed communication
#   long     131072 tokens, 2 layers, width 128, memory.keep=attention: memory against the formula
#   million  1048576 tokens, the same model with a window of 1024 tokens
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build}
shift || true
parts=${*:-meshes long million}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$build/longspan" prepare --kind text --output "$work/d.h5" /usr/include/c++ /usr/include/boost >"$work/prepare.log"

# run NAME SETTINGS...: two ranks; the log stays in $work/NAME.log.
run() {
  local name=$1
  shift
  "$build/longspan" launch --ranks 2 --data.path "$work/d.h5" --run.directory "$work/$name" --run.threads 1 \
    --train.validate-every 0 --checkpoint.every 0 --checkpoint.keep 1 "$@" >"$work/$name.log" 2>&1 || {
    cat "$work/$name.log" >&2
    exit 1
  }
}
# median KEY FILE: of the steps after the first two.
median() { sed 1,2d "$2" | grep -o "\"$1\":[^,}]*" | cut -d: -f2 | sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

for part in $parts; do
  case $part in
  meshes)
    small=(--model.layers 4 --model.width 512 --model.heads 8 --data.sequence-length 4096 --train.global-batch 2 --train.steps 5)
    for round in 1 2 3; do
      rm -rf "$work"/mesh-*
      run mesh-2x1x1 "${small[@]}" --mesh.data 2
      run mesh-1x2x1 "${small[@]}" --mesh.context 2 --train.micro-batch 2
      run mesh-1x1x2 "${small[@]}" --mesh.data 1 --mesh.tensor 2 --train.micro-batch 2
      run mesh-2x1x1-parameters "${small[@]}" --mesh.data 2 --optimizer.shard parameters
      for mesh in 2x1x1 1x2x1 1x1x2 2x1x1-parameters; do
        echo "$mesh $(median tokens_per_second "$work/mesh-$mesh/metrics.jsonl")" \
          "$(median comm_seconds "$work/mesh-$mesh/metrics.jsonl") $(median step_seconds "$work/mesh-$mesh/metrics.jsonl")"
      done
    done >"$work/table"
    echo "data x context x tensor, 2 ranks, 4 layers, width 512, 2 sequences of 4096 tokens a step, medians of 3 rounds:"
    for mesh in 2x1x1 1x2x1 1x1x2 2x1x1-parameters; do
      grep "^$mesh " "$work/table" | sort -k4 -g | sed -n 2p |
        awk '{printf "  %-18s %8.0f tokens/s   %6.3f s a step, of it %4.1f %% communication in the way\n", $1, $2, $4, 100 * $3 / $4}'
    done
    ;;
  long | million)
    tiny=(--model.layers 2 --model.width 128 --model.heads 2 --mesh.context 2 --memory.keep attention --train.global-batch 1)
    if [[ $part == long ]]; then
      run long "${tiny[@]}" --data.sequence-length 131072 --train.steps 2
    else
      run million "${tiny[@]}" --data.sequence-length 1048576 --attention.window 1024 --train.steps 2
    fi
    echo "$part:"
    grep -o '"step":[0-9]*\|"loss":[^,]*\|"step_seconds":[^,]*\|"comm_seconds":[^,]*' "$work/$part/metrics.jsonl" | paste -sd ' ' | sed 's/^/  /'
    grep -E "memory per rank|attention over|peak:" "$work/$part.log" | sed 's/^/  /'
    ;;
  *)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
  esac
done
