#!/usr/bin/env bash
# run_fuzz.sh REASON TARGET CORPUS: runs a fuzz target for a minute from its corpus, always with the same seed. REASON says
# why it cannot run here, empty if it can. LONGSPAN_FUZZ_SECONDS changes the minute. What breaks the program is left in
# $TARGET-artifacts: fix it, then put the file into the corpus.
set -euo pipefail
reason=$1 target=$2 corpus=$3
if [[ -n $reason ]]; then
  echo "skipped: $reason"
  exit 77
fi
found=$(mktemp -d)  # what is new goes there: the corpus in the sources stays as it is
trap 'rm -rf "$found"' EXIT
mkdir -p "$target-artifacts"
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LSAN_OPTIONS=suppressions=$(dirname "$0")/../support/lsan.supp:print_suppressions=0
# No input of a few kilobytes may make the program ask for 256 MiB at once, or work for ten seconds.
cd "$found"
"$target" "$found" "$corpus" -seed=20240521 -max_total_time="${LONGSPAN_FUZZ_SECONDS:-60}" -malloc_limit_mb=256 \
  -rss_limit_mb=1024 -timeout=10 -max_len=4096 -print_final_stats=1 -verbosity=1 \
  -artifact_prefix="$target-artifacts/" 2>&1 | grep -vE '^(#[0-9]+\s+(NEW|REDUCE|pulse)|INFO:)' || exit 1
