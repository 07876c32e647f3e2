#!/usr/bin/env bash
# From a fresh Debian or Ubuntu machine to a trained model: installs what is missing, builds, makes a dataset from the C++
# and Boost headers, trains on two ranks that share every sequence, stops, resumes, inspects the checkpoint, writes text.
# Run again, it does only what is not done yet.
#   quickstart.sh                 everything; ten minutes at most on two cores
#   quickstart.sh --fresh         forgets its dataset and its run first
#   quickstart.sh --no-install    leaves the packages alone
set -euo pipefail
cd "$(dirname "$0")/.."

config=configs/code-8k.ini data=data/code.h5 run=runs/quickstart
longspan=build/longspan
install=yes
for argument in "$@"; do
  case $argument in
    --fresh) echo "removing $data and $run"; rm -rf "$data" "$run" ;;
    --no-install) install=no ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "$0: unknown option $argument; valid: --fresh, --no-install" >&2; exit 2 ;;
  esac
done

started=$SECONDS step_started=$SECONDS step_number=0
finish_step() { ((step_number == 0)) || echo "(took $((SECONDS - step_started)) s)"; }
step() {
  finish_step
  step_number=$((step_number + 1)) step_started=$SECONDS
  printf '\n== %d. %s\n' "$step_number" "$*"
}
say() { echo "\$ $*"; "$@"; }
trap 'status=$?; ((status == 0)) || echo "quickstart: step $step_number did not work (exit status $status)" >&2' EXIT

step "packages"
if [[ $install == yes ]]; then launcher/install_dependencies.sh; else echo "packages: left alone"; fi

step "build"
# A build folder that was configured before keeps its options; one that came with a moved or copied folder is of no use.
if [[ -f build/CMakeCache.txt ]] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)" build/CMakeCache.txt; then
  echo "build/ was made for another folder: making it anew"
  rm -rf build
fi
# Without a GPU here the plug-in would be built for nobody.
gpu=OFF
if [[ -e /dev/nvidiactl ]]; then gpu=ON; fi
if [[ ! -f build/build.ninja ]]; then
  # Warnings of a compiler that nobody has tried yet must not stand in a newcomer's way.
  say cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DLONGSPAN_TESTS=OFF -DLONGSPAN_WERROR=OFF -DLONGSPAN_CUDA=$gpu
fi
say ninja -C build longspan
if [[ $gpu == ON ]] && ninja -C build -t targets | grep -q '^longspan_cuda:'; then say ninja -C build longspan_cuda; fi

step "dataset: the C++ and Boost headers of this machine, a token per byte"
if [[ -f $data ]] && "$longspan" inspect "$data"; then
  echo "$data is there and sound"
else
  mkdir -p "$(dirname "$data")"
  rm -rf "$run"  # it belongs to the dataset that is being replaced
  say "$longspan" prepare --kind text --extensions .hpp,.h,.tcc,.ipp --max-bytes 24M --force \
    --output "$data" /usr/include/c++ /usr/include/boost
fi

# Two ranks share every sequence; the same command continues from the newest checkpoint.
train=("$longspan" launch --ranks 2 --config "$config" --mesh.context 2 --data.path "$data" --run.directory "$run")
steps=$(sed -n 's/^[[:space:]]*steps[[:space:]]*=[[:space:]]*\([0-9]*\).*/\1/p' "$config" | head -n 1)
stop_after=$((steps / 3))

step "training on two ranks, stopped after $stop_after of $steps steps"
if [[ -e $run/checkpoints/latest ]]; then
  echo "$run has a checkpoint already: $(readlink "$run/checkpoints/latest")"
else
  status=0
  say "${train[@]}" --train.stop-after "$stop_after" || status=$?
  if ((status != 75)); then
    echo "quickstart: expected exit status 75 (stopped on purpose after a checkpoint), got $status" >&2
    exit 1
  fi
  echo "exit status 75: stopped on purpose after a good checkpoint"
fi

step "training, continued from the checkpoint to the end"
say "${train[@]}"

step "the checkpoint, with every hash checked"
say "$longspan" inspect "$run" --verify

step "text from the trained model"
say "$longspan" generate --checkpoint "$run" --tokens 300 --temperature 0.7 --prompt $'template <class T>\nclass '
echo
finish_step

losses=$(sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' "$run/metrics.jsonl")
printf '\nquickstart: done in %d s; loss %.3f at step 1, %.3f at the last\n' $((SECONDS - started)) \
  "$(head -n 1 <<<"$losses")" "$(tail -n 1 <<<"$losses")"
echo "next: $longspan --help, $longspan config, configs/README.md"
