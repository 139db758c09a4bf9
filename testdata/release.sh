#!/bin/bash
# release.sh OUT - what is handed to others: the binary, the guest kernels, and with
# them the source that the GPL asks for.
#
#   volant-VERSION-linux-amd64          stripped, static; built twice, compared
#   vmlinux-generic, vmlinux-volant, bzImage-volant
#   kernel-source-VERSION.tar           the exact Debian source package, the fragments,
#                                       the final configurations, the script, SOURCE.txt,
#                                       COPYRIGHT and the licence: everything that the
#                                       kernels above were made from
#   SHA256SUMS                          of all of these
#   SHA256SUMS.minisig                  its signature, with MINISIGN_KEY=FILE
#
# It refuses a tree with changes. Nothing is uploaded.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022
cd "$(dirname "$0")/.."

die() { echo "release: $*" >&2; exit 1; }
[ $# -eq 1 ] || { echo "usage: ${0##*/} OUT" >&2; exit 2; }
[ -z "$(git status --porcelain)" ] || die "the working tree has changes; commit them first"
[ -z "${MINISIGN_KEY:-}" ] || command -v minisign >/dev/null || die "MINISIGN_KEY is set, but there is no minisign; apt-get install minisign"
version=$(git describe --tags --always)
mkdir -p "$1"
out=$(cd "$1" && pwd)
[ -z "$(ls -A "$out")" ] || die "$out is not empty"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== binary"
binary=volant-$version-linux-amd64
git archive --format=tar HEAD | { mkdir "$work/elsewhere" && tar -x -C "$work/elsewhere"; }
compile() { # folder output; the tags are the Makefile's
  (cd "$1" && env CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOFLAGS=-buildvcs=false go build -modfile "$(go run ./testdata/modfile)" -tags "$(sed -n 's/^TAGS *:= *//p' Makefile)" \
    -trimpath -ldflags "-s -w -X main.version=$version" -o "$2" .)
}
compile . "$out/$binary"
GOCACHE=$work/cache compile "$work/elsewhere" "$work/again"
cmp "$out/$binary" "$work/again" || die "two builds of the binary differ"

echo "== kernels"
OUT=out/kernels build/kernel/build-kernel.sh all
cp out/kernels/vmlinux-generic out/kernels/vmlinux-volant out/kernels/bzImage-volant "$out/"
kernels=$(sed -n 's/^version: //p' out/kernels/SOURCE.txt | sort -u)
[ "$(wc -l <<<"$kernels")" = 1 ] || die "the kernels are of different versions: $kernels; REFRESH=1 make kernels"
deb=.cache/kernels/deb/linux-source-6.12_${kernels/:/%3a}_all.deb
[ -e "$deb" ] || die "$deb, which the kernels were made from, is gone; remove out/kernels and run make kernels"
grep -qx "deb-sha256: $(sha256sum "$deb" | cut -d' ' -f1)" out/kernels/SOURCE.txt || die "$deb is not what the kernels were made from"
source=$work/kernel-source-$kernels
mkdir "$source"
cp "$deb" build/kernel/*.config build/kernel/build-kernel.sh out/kernels/*.config out/kernels/SOURCE.txt out/kernels/COPYRIGHT "$source/"
cp /usr/share/common-licenses/GPL-2 "$source/COPYING"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf "$out/kernel-source-$kernels.tar" "kernel-source-$kernels"

(cd "$out" && sha256sum -- * >"$work/sums" && mv "$work/sums" SHA256SUMS)
[ -z "${MINISIGN_KEY:-}" ] || minisign -S -s "$MINISIGN_KEY" -m "$out/SHA256SUMS" -t "Volant $version"
cat "$out/SHA256SUMS"
