# kernels.sh - sourced: makes the kernels that tests and benchmarks boot, and
# exports where they are.
#
# VOLANT_TEST_KERNEL         vmlinux-generic, built from Debian's source package
# VOLANT_TEST_KERNEL_VOLANT  vmlinux-volant, likewise; VMs made from images boot it
# VOLANT_TEST_DEBIAN_KERNEL  Debian's cloud kernel, its package unpacked
echo "== guest kernels"
build/kernel/build-kernel.sh all
eval "$(testdata/debian-kernel.sh .cache/debian-kernel)"
# shellcheck disable=SC2154 # the script names vmlinuz
export VOLANT_TEST_KERNEL=$PWD/out/kernels/vmlinux-generic VOLANT_TEST_KERNEL_VOLANT=$PWD/out/kernels/vmlinux-volant \
  VOLANT_TEST_DEBIAN_KERNEL=${vmlinuz%/boot/*}
