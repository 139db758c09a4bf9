#!/bin/bash
# deps.sh demo|test - install the Debian packages that a target needs and that
# are missing. Says what it installs; installs nothing else.
set -euo pipefail

want=(ca-certificates:/etc/ssl/certs/ca-certificates.crt qemu-system-x86:qemu-system-x86_64 iproute2:ip curl:curl xz-utils:xz)
if [ "${1:-test}" = test ]; then
	want+=(gcc:gcc make:make libc6-dev:/usr/include/stdio.h flex:flex bison:bison bc:bc
		libelf-dev:/usr/include/libelf.h perl:perl cpio:cpio zstd:zstd lz4:lz4 musl-tools:musl-gcc nftables:nft util-linux:unshare zsh:zsh fish:fish
		buildah:buildah umoci:umoci podman:podman skopeo:skopeo docker-registry:docker-registry
		erofs-utils:mkfs.erofs squashfs-tools:mksquashfs e2fsprogs:mke2fs busybox-static:/bin/busybox)
	# Until Debian 12 QEMU brought its own.
	case $(. /etc/os-release && echo "${VERSION_ID:-}") in
	11 | 12) ;;
	*) want+=(virtiofsd:/usr/libexec/virtiofsd) ;;
	esac
fi

command -v go >/dev/null || { echo "volant: go is missing: install Go 1.26 or newer first" >&2; exit 1; }

missing=()
for w in "${want[@]}"; do
	package=${w%%:*} proof=${w#*:}
	case $proof in
	/*) [ -e "$proof" ] || missing+=("$package") ;;
	*) command -v "$proof" >/dev/null || missing+=("$package") ;;
	esac
done
[ ${#missing[@]} -eq 0 ] && exit 0

[ "$(id -u)" = 0 ] || { echo "volant: not root: run as root, or install first: ${missing[*]}" >&2; exit 1; }
echo "installing ${missing[*]} with apt ..."
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# On a fresh machine the lists may be missing or old: try, update, try again.
# A machine that has just booted may be installing its own updates: wait.
if ! apt-get install -y -q -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
	echo "updating apt's lists ..."
	apt-get update -q >"$log" 2>&1 || { tail -5 "$log" >&2; exit 1; }
	apt-get install -y -q -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}" >"$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }
fi
echo "installed."
