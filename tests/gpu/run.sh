#!/bin/bash
# Runs the GPU's tests and measures its figures on a machine that may have nothing but a GPU driver and CUDA's libraries:
#
#   bundle/bin/run-gpu-tests [OPTION...]         from a bundle made by launcher/bundle.sh
#   tests/gpu/run.sh [OPTION...] [BUILD]         from a build folder (default: build)
#
#   --only NAME      this row, or the rows of this group; may be given again
#   --list           the rows and their groups, in their order
#   --minutes M      no row begins that would probably not end in this time (default 9.5)
#   --results DIR    keeps rows and logs there; what is done there already is not done again unless --only names it
#   --tiny           small shapes, for testing this script with an emulated GPU
#
# First what shows quickly whether all is right: kernels against the processor's and against double precision, losses of a
# training against the processor's. Then the figures, beside PyTorch's where python3 (or $LONGSPAN_PYTHON) has torch. What
# takes long is last: `longspan verify` with 1, 2 and 4 ranks on one GPU over MPI and over NCCL, and compute-sanitizer.
# A row that fails says why and the next one begins. The table comes last.
# Exit status: 0 all good, or no GPU here (it says so); 1 something failed; 2 wrong usage.
set -u
export LC_ALL=C
tiny= build= results= minutes=9.5 list_only=
only=()
while [ $# -gt 0 ]; do
  case $1 in
    --tiny) tiny=1 ;;
    --list) list_only=1 ;;
    --only | --minutes | --results)
      [ $# -ge 2 ] || { echo "run.sh: $1 wants a value" >&2; exit 2; }
      case $1 in --only) only+=("$2") ;; --minutes) minutes=$2 ;; --results) results=$2 ;; esac
      shift ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) echo "run.sh: unknown argument '$1': see --help" >&2; exit 2 ;;
    *) build=$1 ;;
  esac
  shift
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "run.sh: --minutes $minutes: it must be a number" >&2; exit 2; }
if [ -n "${LONGSPAN_BUNDLE:-}" ] && [ -z "$build" ]; then
  longspan=$LONGSPAN_BUNDLE/bin/longspan tests=$LONGSPAN_BUNDLE/libexec/tests list=$LONGSPAN_BUNDLE/share/gpu_tests.txt
  bench=$LONGSPAN_BUNDLE/bin/bench_gpu_kernels configs=$LONGSPAN_BUNDLE/share/configs
  plugin=$LONGSPAN_BUNDLE/libexec/liblongspan_cuda.so pytorch_scripts=$LONGSPAN_BUNDLE/share/pytorch
  here=$LONGSPAN_BUNDLE/share
else
  here=$(cd "$(dirname "$0")" && pwd)
  source=$(cd "$here/../.." && pwd)
  build=$(cd "${build:-$source/build}" && pwd) || exit 2
  longspan=$build/longspan tests=$build/tests list=$build/gpu_tests.txt
  bench=$build/benchmarks/bench_gpu_kernels configs=$source/configs plugin=$build/liblongspan_cuda.so
  pytorch_scripts=$source/tests/benchmarks
fi
for file in "$longspan" "$bench" "$list"; do
  [ -e "$file" ] || { echo "run.sh: no $file: build everything first" >&2; exit 2; }
done
. "$here/rows.sh"
. "$here/figures.sh"
# Tests and benchmarks are not beside the plug-in.
export LONGSPAN_CUDA_PLUGIN=${LONGSPAN_CUDA_PLUGIN:-$plugin}
work=$(mktemp -d)
trap 'end_training; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
results=${results:-$work/results}
mkdir -p "$results" || exit 2

kernel_test() { logged 120 env LONGSPAN_TEST_DEVICE=cuda "$tests/$1"; }

# Text that is the same everywhere.
small_dataset() {
  [ -e "$work/text.h5" ] && return
  awk 'BEGIN { srand(7); for (i = 0; i < 60000; i++) { n = 2 + int(rand() * 9); w = "";
    for (j = 0; j < n; j++) w = w substr("etaoinshrdlu", 1 + int(rand() * rand() * 12), 1);
    printf "%s%s", w, i % 12 == 11 ? ".\n" : " " } }' > "$work/text.txt"
  logged 60 "$longspan" prepare --kind text --output "$work/text.h5" "$work/text.txt"
}
small_training() { # name, arguments
  local name=$1
  shift
  logged 120 "$longspan" train --config "$configs/tiny.ini" --data.path "$work/text.h5" --run.directory "$work/$name" \
    --train.validate-every 0 --checkpoint.every 0 --data.sequence-length 128 --train.steps $((tiny ? 4 : 20)) "$@"
}
losses() { sed 's/.*"loss":\([^,]*\),.*/\1/' "$work/$1/metrics.jsonl"; }
same_losses() { # runs, relative bound
  paste <(losses "$1") <(losses "$2") | awk -v bound="$3" '
    { d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > worst) worst = d }
    END { printf "%d steps, largest difference %.2g, allowed %s\n", NR, worst, bound; exit !(NR > 0 && worst <= bound) }' |
    tee -a "$log"
  return "${PIPESTATUS[1]}"
}
# In bf16 the order of a sum can decide a rounding: the losses agree to its precision, not to fp32's.
training_test() { # precision, bound
  small_dataset && rm -rf "$work"/{cpu,cuda}-"$1" &&
    small_training "cpu-$1" --run.device cpu --model.precision "$1" &&
    small_training "cuda-$1" --run.device cuda --model.precision "$1" &&
    remark=$(same_losses "cpu-$1" "cuda-$1" "$2")
}
same_bits_test() { # precision
  local name
  small_dataset || return
  for name in once again; do
    rm -rf "$work/$name-$1"
    small_training "$name-$1" --run.device cuda --run.deterministic on --model.precision "$1" || return
  done
  remark=$(same_losses "once-$1" "again-$1" 0)
}
verify_test() { # communication, more
  local kind=$1
  shift
  logged 900 "$longspan" verify --device cuda --communication "$kind" "$@"
}
sanitizer_test() { # tool, test
  logged 300 env LONGSPAN_TEST_DEVICE=cuda "$sanitizer" --tool "$1" --error-exitcode 9 "$tests/$2"
}

all_rows() {
  local name tool
  group=kernels
  while read -r name; do row "$name" 30 kernel_test "$name"; done < "$list"
  group=training
  row training-fp32 20 training_test fp32 1e-5
  row training-bf16 20 training_test bf16 2e-2
  row same-bits-fp32 20 same_bits_test fp32
  row same-bits-bf16 20 same_bits_test bf16
  group=figures
  figure_rows
  group=slow
  if [ -z "$tiny" ]; then
    # Groups say in the first line whether NCCL was found. First one case of every kind, then all.
    kinds=staged
    case $gpu in *"has no libnccl"* | *"no NCCL"*) ;; *) kinds="staged nccl" ;; esac
    for kind in $kinds; do row verify-$kind 150 verify_test $kind --quick --ranks 1,2,4; done
    for kind in $kinds; do
      for ranks in 2 4; do row verify-$kind-$ranks 300 verify_test $kind --ranks $ranks; done
    done
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
    if [ -n "$sanitizer" ] || [ -n "$list_only" ]; then
      while read -r name; do
        for tool in memcheck racecheck; do row "$tool-$name" 200 sanitizer_test $tool "$name"; done
      done < "$list"
    fi
  fi
}

gpu=
if [ -z "$list_only" ]; then
  if ! "$bench" --tiny > "$work/probe" 2>&1; then
    why=$(tail -1 "$work/probe")
    case $why in
      *"no GPU"*) echo "no GPU to test: ${why#bench_gpu_kernels: }"; exit 0 ;;
      *) cat "$work/probe"; echo "run.sh: the GPU plug-in does not work here" >&2; exit 1 ;;
    esac
  fi
  gpu=$(head -1 "$work/probe")
  echo "$gpu"
fi
all_rows
for name in ${only[@]+"${only[@]}"}; do
  [[ " ${matched[*]-} " == *" $name "* ]] || { echo "run.sh: --only $name: no such row or group, see --list" >&2; exit 2; }
done
[ -n "$list_only" ] && exit 0
print_table
exit $failed
