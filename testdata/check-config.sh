#!/bin/bash
# check-config.sh CACHE [CONFIG] - what container engines ask of a kernel, asked of
# ours: moby's check-config.sh, out of Debian's package docker.io, reads the
# configuration of the kernel "volant". It fails when an option is missing that the
# script calls generally necessary. The package is downloaded over apt, which checks
# its signature; nothing is installed.
set -euo pipefail
export LC_ALL=C

[ $# -ge 1 ] || { echo "usage: ${0##*/} CACHE [CONFIG]" >&2; exit 2; }
mkdir -p "$1"
cache=$(cd "$1" && pwd)
config=$(realpath "${2:-out/kernels/bzImage-volant.config}")
script=$cache/check-config.sh
if [ ! -s "$script" ]; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	get() { (cd "$work" && apt-get -q -o APT::Sandbox::User="$(id -un)" download docker.io >log 2>&1); }
	get || { apt-get -q update >"$work/update" 2>&1 && get; } || { cat "$work/log" "$work/update" >&2; exit 1; }
	dpkg-deb --fsys-tarfile "$work"/docker.io_*.deb | tar -xO ./usr/share/docker.io/contrib/check-config.sh >"$work/script"
	[ -s "$work/script" ] || { echo "check-config: docker.io has no check-config.sh" >&2; exit 1; }
	mv "$work/script" "$script"
fi

# Its status also tells of this machine's own cgroups: what it prints is what counts.
found=$(bash "$script" "$config" 2>&1 || true)
necessary=$(sed 's/\x1b\[[0-9;]*m//g' <<<"$found" | sed -n '/^Generally Necessary:/,/^Optional Features:/p' | grep '^- CONFIG_' || true)
missing=$(grep -v ': enabled' <<<"$necessary" || true)
[ "$(wc -l <<<"$necessary")" -ge 20 ] || { echo "check-config: the script said: $found" >&2; exit 1; }
[ -z "$missing" ] || { echo "check-config: ${config##*/} lacks what containers need:" >&2; echo "$missing" >&2; exit 1; }
echo "check-config: ${config##*/} has all $(wc -l <<<"$necessary") options that containers need"
