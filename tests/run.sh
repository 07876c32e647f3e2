#!/usr/bin/env bash
# Installs what is missing, builds everything, runs all tests; then runs the quick tests again, built with the address and
# undefined-behaviour sanitizers. The last line is the sum of both: "N passed, N failed".
#   run.sh                 three quarters of an hour on two cores, from nothing
#   run.sh --quick         only the tests labelled quick, without sanitizers
#   run.sh --no-install    leaves the packages alone
set -euo pipefail
cd "$(dirname "$0")/.."

quick=no install=yes
for argument in "$@"; do
  case $argument in
    --quick) quick=yes ;;
    --no-install) install=no ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "$0: unknown option $argument; valid: --quick, --no-install" >&2; exit 2 ;;
  esac
done

started=$SECONDS
step() { printf '\n== %s (after %d s)\n' "$*" $((SECONDS - started)); }
passed=0 failed=0 skipped=0

# A build folder that came with a moved or copied source folder is of no use.
drop_foreign_build() {
  if [[ -f $1/CMakeCache.txt ]] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)" "$1/CMakeCache.txt"; then
    echo "$1/ was made for another folder: making it anew"
    rm -rf "$1"
  fi
}

# run_ctest FOLDER ARGUMENTS...: runs the tests there and adds them up. A test that does not count itself counts as failed.
run_ctest() {
  local folder=$1 log=$1/ctest.log status=0 total bad left_out
  shift
  ctest --test-dir "$folder" --output-on-failure --no-tests=error -j2 "$@" 2>&1 | tee "$log" || status=$?
  read -r bad total < <(sed -n 's/^[0-9]*% tests passed, \([0-9]*\) tests failed out of \([0-9]*\).*/\1 \2/p' "$log") || true
  if [[ -z ${total:-} ]] || { ((status != 0)) && ((bad == 0)); }; then
    echo "run.sh: ctest in $folder ended with status $status without counting its tests" >&2
    failed=$((failed + 1))
    return
  fi
  left_out=$(grep -c '\*\*\*Skipped' "$log" || true)
  passed=$((passed + total - bad - left_out)) failed=$((failed + bad)) skipped=$((skipped + left_out))
}

step "packages and Python environment"
if [[ $install == yes ]]; then launcher/install_dependencies.sh --with-tests; else echo "packages: left alone"; fi
if [[ $quick == yes || $install == no ]]; then
  tests/support/python_environment.sh
# Without PyTorch and transformers everything else is tested: what needs them says that it is skipped.
elif ! tests/support/python_environment.sh --transformers; then
  echo "run.sh: no transformers here: the tests that need it are skipped" >&2
  tests/support/python_environment.sh
fi

step "release build"
drop_foreign_build build
cmake --preset release -DLONGSPAN_TESTS=ON -DLONGSPAN_WERROR=ON -DLONGSPAN_CUDA=ON
if cmake --build --preset release --target help | grep -q '^longspan_cuda:'; then
  plugin_started=$SECONDS
  cmake --build --preset release --target longspan_cuda
  echo "run.sh: the GPU plug-in was compiled in $((SECONDS - plugin_started)) s"
else
  echo "run.sh: no CUDA toolkit here: the GPU plug-in is not compiled"
fi
cmake --build --preset release

step "tests"
if [[ $quick == yes ]]; then run_ctest build -L quick; else run_ctest build; fi

if [[ $quick == no ]]; then
  # MPI and the programs it starts leave memory of their own behind, so the sanitizers get the tests that need neither.
  names=()
  for source in tests/*/*_test.cpp; do
    head -n 6 "$source" | grep -qE '^// (ranks|label: slow)' && continue
    grep -qE 'support/process.hpp|/layout_runs.hpp' "$source" && continue
    [[ $source == tests/cuda/* ]] && continue # the emulator switches stacks, which the sanitizers do not follow
    names+=("$(basename "$source" .cpp)")
  done
  step "sanitizer build of ${#names[@]} tests"
  drop_foreign_build build-sanitize
  # Under the sanitizers g++ warns of what it can no longer see through; the release build has checked the warnings.
  cmake --preset sanitize -DLONGSPAN_TESTS=ON -DLONGSPAN_WERROR=OFF -DLONGSPAN_CUDA=OFF
  cmake --build --preset sanitize --target "${names[@]}"
  step "tests under the sanitizers"
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
  export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  export LSAN_OPTIONS=suppressions=$PWD/tests/support/lsan.supp:print_suppressions=0
  run_ctest build-sanitize -L quick -R "^($(IFS='|'; echo "${names[*]}"))\$"
fi

step "all tests"
summary="$passed passed, $failed failed"
((skipped == 0)) || summary+=", $skipped skipped"
echo "$summary"
((failed == 0))
