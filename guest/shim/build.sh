#!/bin/sh
# build.sh OUT - compile the shim. Equal compilers give equal bytes: no build id, no paths, no time. What compiled it is
# said in the section .comment of the result.
set -eu
out=$1
cd "$(dirname "$0")"
exec "${CC:-gcc}" -std=gnu11 -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables \
	-fcf-protection=none -fno-pie -no-pie -Wall -Wextra -Werror \
	-Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,norelro -s -o "$out" shim.c
