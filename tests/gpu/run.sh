#!/bin/bash
# Runs the GPU's tests and measurements on a machine that may have nothing but a GPU driver and CUDA's libraries:
#
#   bundle/bin/run-gpu-tests [--tiny]   from a bundle made by launcher/bundle.sh
#   tests/gpu/run.sh [--tiny] [BUILD]   from a build folder (default: build)
#
# Kernels against the processor's and against double precision; losses of a training against the processor's; `longspan
# verify` with 1, 2 and 4 ranks on one GPU, over MPI and over NCCL; compute-sanitizer where it is; then the benchmarks.
# The table comes last. --tiny: small shapes (what the tests of this script use, with an emulated GPU).
# Exit status: 0 all good, or no GPU here (it says so); 1 something failed; 2 wrong usage.
set -u
tiny=
build=
for argument in "$@"; do
  case $argument in
    --tiny) tiny=1 ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) echo "run.sh: unknown argument '$argument': see --help" >&2; exit 2 ;;
    *) build=$argument ;;
  esac
done
if [ -n "${LONGSPAN_BUNDLE:-}" ] && [ -z "$build" ]; then
  longspan=$LONGSPAN_BUNDLE/bin/longspan tests=$LONGSPAN_BUNDLE/libexec/tests list=$LONGSPAN_BUNDLE/share/gpu_tests.txt
  bench=$LONGSPAN_BUNDLE/bin/bench_gpu_kernels configs=$LONGSPAN_BUNDLE/share/configs
  plugin=$LONGSPAN_BUNDLE/libexec/liblongspan_cuda.so
else
  source=$(cd "$(dirname "$0")/../.." && pwd)
  build=$(cd "${build:-$source/build}" && pwd) || exit 2
  longspan=$build/longspan tests=$build/tests list=$build/gpu_tests.txt
  bench=$build/benchmarks/bench_gpu_kernels configs=$source/configs plugin=$build/liblongspan_cuda.so
fi
for file in "$longspan" "$bench" "$list"; do
  [ -e "$file" ] || { echo "run.sh: no $file: build everything first" >&2; exit 2; }
done
# Tests and benchmarks are not beside the plug-in.
export LONGSPAN_CUDA_PLUGIN=${LONGSPAN_CUDA_PLUGIN:-$plugin}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rows=()
failed=0
row() { rows+=("$(printf '%-52s %-8s %s' "$1" "$2" "$3")"); [ "$2" = FAILED ] && failed=1; return 0; }
# Runs the rest of its arguments; the row says how that went. Its output is shown if it failed.
step() {
  local name=$1 begin=$SECONDS
  shift
  echo "--- $name"
  if "$@" > "$work/output" 2>&1; then
    row "$name" good "$((SECONDS - begin)) s"
  else
    local status=$?
    tail -40 "$work/output"
    row "$name" FAILED "status $status after $((SECONDS - begin)) s"
  fi
}

if ! "$bench" --tiny > "$work/probe" 2>&1; then
  why=$(tail -1 "$work/probe")
  case $why in
    *"no GPU"*) echo "no GPU to test: ${why#bench_gpu_kernels: }"; exit 0 ;;
    *) cat "$work/probe"; echo "run.sh: the GPU plug-in does not work here" >&2; exit 1 ;;
  esac
fi
gpu=$(head -1 "$work/probe")
echo "$gpu"

while read -r name; do
  step "$name" env LONGSPAN_TEST_DEVICE=cuda timeout 600 "$tests/$name"
done < "$list"

# Text that is the same everywhere.
awk 'BEGIN { srand(7); for (i = 0; i < 60000; i++) { n = 2 + int(rand() * 9); w = "";
  for (j = 0; j < n; j++) w = w substr("etaoinshrdlu", 1 + int(rand() * rand() * 12), 1);
  printf "%s%s", w, i % 12 == 11 ? ".\n" : " " } }' > "$work/text.txt"
step "a dataset" "$longspan" prepare --kind text --output "$work/data.h5" "$work/text.txt"

train() { # name, arguments
  local name=$1
  shift
  "$longspan" train --config "$configs/tiny.ini" --data.path "$work/data.h5" --run.directory "$work/$name" \
    --train.validate-every 0 --checkpoint.every 0 "$@"
}
losses() { sed 's/.*"loss":\([^,]*\),.*/\1/' "$work/$1/metrics.jsonl"; }
same_losses() { # runs, relative bound
  paste <(losses "$1") <(losses "$2") | awk -v bound="$3" '
    { d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > worst) worst = d }
    END { printf "%d steps, largest difference %.2g\n", NR, worst; exit !(NR > 0 && worst <= bound) }'
}
steps=20
[ -n "$tiny" ] && steps=4
small="--data.sequence-length 128 --train.steps $steps"
for precision in fp32 bf16; do
  # In bf16 the order of a sum can decide a rounding: the losses agree to its precision, not to fp32's.
  bound=1e-5
  [ $precision = bf16 ] && bound=2e-2
  step "training on the processor, $precision" train cpu-$precision --run.device cpu --model.precision $precision $small
  step "training on the GPU, $precision" train cuda-$precision --run.device cuda --model.precision $precision $small
  step "the same losses, $precision, within $bound" same_losses cpu-$precision cuda-$precision $bound
  step "the same bits twice, $precision" eval "train again-$precision --run.device cuda --run.deterministic on \
    --model.precision $precision $small && train once-$precision --run.device cuda --run.deterministic on \
    --model.precision $precision $small && same_losses again-$precision once-$precision 0"
done
# Groups say in the first line whether NCCL was found.
kinds=staged
case $gpu in *"has no libnccl"* | *"no NCCL"*) ;; *) kinds="staged nccl" ;; esac
for kind in $kinds; do
  verify=("$longspan" verify --device cuda --communication "$kind")
  if [ -n "$tiny" ]; then
    step "verify on 2 ranks, 2 steps, $kind" timeout 300 "${verify[@]}" --ranks 2 --quick --tokens 33 --steps 2
    continue
  fi
  step "verify on 1, 2 and 4 ranks, one case of every kind, $kind" timeout 600 "${verify[@]}" --ranks 1,2,4 --quick
  for ranks in 2 4; do
    step "verify on $ranks ranks, $kind" timeout 900 "${verify[@]}" --ranks $ranks
  done
done

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ] && [ -z "$tiny" ]; then
  while read -r name; do
    for tool in memcheck racecheck; do
      step "$tool: $name" env LONGSPAN_TEST_DEVICE=cuda timeout 300 "$sanitizer" --tool $tool --error-exitcode 9 "$tests/$name"
    done
  done < "$list"
else
  row "compute-sanitizer" "not run" "${tiny:+--tiny}${tiny:-it is not here}"
fi

echo "--- benchmarks"
if timeout 600 "$bench" ${tiny:+--tiny} > "$work/bench" 2>&1; then row "bench_gpu_kernels" good ""; else row "bench_gpu_kernels" FAILED "$(tail -1 "$work/bench")"; fi
if [ -z "$tiny" ]; then
  step "GPT-2 124M, 20 steps" timeout 600 "$longspan" train --config "$configs/gpt2-124m.ini" --data.path "$work/data.h5" \
    --run.directory "$work/gpt2" --run.device cuda --model.precision bf16 --data.sequence-length 1024 --model.vocabulary 50304 \
    --train.steps 20 --train.micro-batch 16 --train.global-batch 32 --train.validate-every 0 --checkpoint.every 0
  if [ -s "$work/gpt2/metrics.jsonl" ]; then
    speed=$(sed 's/.*"tokens_per_second":\([^,]*\),.*/\1/' "$work/gpt2/metrics.jsonl" | sort -g | awk '{v[NR] = $1} END {print int(v[int((NR + 1) / 2)])}')
    row "GPT-2 124M, sequence 1024, bf16" "" "$speed tokens/s (median)"
  fi
fi

echo
echo "$gpu"
cat "$work/bench"
echo
printf '%s\n' "${rows[@]}"
exit $failed
