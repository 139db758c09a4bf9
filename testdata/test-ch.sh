#!/bin/bash
# test-ch.sh - the drivers' suite and the end-to-end tests, on the Cloud
# Hypervisor of this host: for machines that have one, and a KVM that works.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "test-ch: not root: VM tests make network namespaces; run as root" >&2; exit 1; }
binary=$(command -v cloud-hypervisor) || {
	echo "test-ch: cloud-hypervisor is not in PATH: put the static binary of its releases there (53 or newer)" >&2
	exit 1
}
[ -w /dev/kvm ] || { echo "test-ch: /dev/kvm is not there, or not for us: Cloud Hypervisor needs KVM" >&2; exit 1; }
echo "== $("$binary" --version)"

testdata/deps.sh test
. testdata/kernels.sh
echo "== images"
VOLANT_TEST_IMAGES=$(testdata/images.sh .cache/images)
export VOLANT_TEST_IMAGES
export VOLANT_TEST_ALL=1 VOLANT_TEST_HYPERVISOR=cloud-hypervisor VOLANT_HYPERVISOR=cloud-hypervisor
echo "== suite"
# In a network namespace of its own, which ends with it: NICs need TAPs.
VOLANT_TEST_OWN_NETNS=1 go test -count=1 -timeout 30m -exec 'unshare --net' "$@" ./hv/cloudhypervisor
echo "== end to end"
go test -count=1 -timeout 60m "$@" ./roles
