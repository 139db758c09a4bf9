#!/bin/bash
# test.sh - lint, then every test, with real kernels and real VMs.
#
# VOLANT_TEST_ALL=1 makes a test fail where it would otherwise skip for want of
# root, QEMU or a kernel: what can run here must run.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "test: not root: VM tests make network namespaces; run as root, or go test ./... for the rest" >&2; exit 1; }

. testdata/kernels.sh
testdata/check-config.sh .cache/check-config
echo "== images"
VOLANT_TEST_IMAGES=$(testdata/images.sh .cache/images)
export VOLANT_TEST_IMAGES
echo "== lint"
testdata/lint.sh
echo "== tests"
export VOLANT_TEST_ALL=1
# -p 2: each package may boot VMs, and an emulated VM takes a whole core.
CGO_ENABLED=1 go test -race -p 2 -timeout 30m "$@" ./... ./testdata/budget ./testdata/need
