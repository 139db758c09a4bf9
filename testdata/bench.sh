#!/bin/bash
# bench.sh - the budgets, each beside its baseline in the same run: lines of
# "name ratio limit verdict". out/bench.json and out/bench.md have them once more,
# with the spread of the samples and the facts of the host.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "bench: not root: it boots VMs in a network namespace" >&2; exit 1; }

. testdata/kernels.sh
echo "== images"
VOLANT_TEST_IMAGES=$(testdata/images.sh .cache/images)
export VOLANT_TEST_IMAGES
echo "== benchmarks"
export VOLANT_TEST_ALL=1 VOLANT_BENCH=1
mkdir -p out
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
export VOLANT_BENCH_LINES=$lines
status=0
CGO_ENABLED=0 go test ./roles ./build ./daemon ./hv/qemu -p 1 -run '^TestBudgets$' -count 1 -v -timeout 20m "$@" | grep -v '^=== ' || status=$?
# A whole run must have measured what ARCHITECTURE.md says that it does.
[ $# -gt 0 ] || table=ARCHITECTURE.md
CGO_ENABLED=0 go run ./testdata/budget/report "$lines" out/bench.json out/bench.md ${table:+"$table"} || status=1
exit $status
