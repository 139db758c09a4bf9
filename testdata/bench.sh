#!/bin/bash
# bench.sh - the budgets, each beside its baseline in the same run:
# lines of "name ratio limit verdict".
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "bench: not root: it boots VMs in a network namespace" >&2; exit 1; }

. testdata/kernels.sh
echo "== images"
VOLANT_TEST_IMAGES=$(testdata/images.sh .cache/images)
export VOLANT_TEST_IMAGES
echo "== benchmarks"
export VOLANT_TEST_ALL=1 VOLANT_BENCH=1
CGO_ENABLED=0 go test ./roles ./build -p 1 -run '^TestBudgets$' -count 1 -v -timeout 20m "$@" | grep -v '^=== '
