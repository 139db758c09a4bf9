#!/bin/sh
# debian-kernel.sh CACHE fetches Debian's cloud kernel for the running suite: the
# kernel that tests and the demonstration boot where Volant's own is not built.
#
# The package is downloaded over apt, which checks its signature and digest, and
# unpacked under CACHE; nothing is installed. A second run finds it there and does
# nothing. Two lines on standard output name what there is:
#
#   vmlinuz=CACHE/<version>/boot/vmlinuz-<release>
#   modules=CACHE/<version>/lib/modules/<release>
#
# All else goes to standard error. REFRESH=1 looks for a newer version. Root is needed
# only if apt has no package lists yet.
set -eu
export LC_ALL=C
umask 022

say() { echo "debian-kernel: $*" >&2; }
die() { say "$*"; exit 1; }

# run runs a command that may take long, with a line every five seconds, and shows
# what it printed if it fails.
run() {
  log=$cache/log
  "$@" </dev/null >"$log" 2>&1 &
  pid=$! waited=0
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    waited=$((waited + 1))
    if [ $((waited % 25)) -eq 10 ]; then say "  ... $((waited / 5)) s"; fi
  done
  status=0
  wait "$pid" || status=$?
  pid=
  [ "$status" -eq 0 ] || tail -n 20 "$log" >&2
  return "$status"
}

result() { # folder of a version
  set -- "$1" "$1"/boot/vmlinuz-*
  echo "vmlinuz=$2"
  echo "modules=$1/lib/modules/${2##*/vmlinuz-}"
}

[ $# -eq 1 ] || { echo "usage: ${0##*/} CACHE" >&2; exit 2; }
mkdir -p "$1"
cache=$(cd "$1" && pwd)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

exec 9>"$cache/lock"
flock -n 9 || { say "waiting for another download"; flock 9; }

if [ -z "${REFRESH:-}" ] && [ -e "$cache/current/complete" ]; then
  result "$(cd "$cache/current" && pwd -P)"
  exit 0
fi

for tool in apt-get apt-cache dpkg dpkg-deb; do
  command -v "$tool" >/dev/null || die "$tool not found: this is not a Debian system; import a kernel with 'volar kernels import'"
done
case $(dpkg --print-architecture) in
  amd64) meta=linux-image-cloud-amd64 ;;
  *) die "$(dpkg --print-architecture): guests are x86_64" ;;
esac

# The meta package depends on the real one, whose name holds the kernel's release.
resolve() { apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ {print $2; exit}'; }
package=$(resolve)
if [ -z "$package" ] || [ -n "${REFRESH:-}" ]; then
  [ "$(id -u)" -eq 0 ] || die "apt has no package lists; as root: apt-get update"
  say "updating apt's package lists"
  run apt-get -q update || die "apt-get update failed"
  package=$(resolve)
fi
[ -n "$package" ] || die "no package $meta in apt's sources; Debian's own must be among them"

# apt may be confined to its own user, who cannot write to the cache.
fetch() { cd "$1" && apt-get -q -o APT::Sandbox::User="$(id -un)" download "$package"; }

work=$cache/new
rm -rf "$work"
mkdir "$work"
say "downloading $package (about 30 MB)"
if ! run fetch "$work"; then
  # Old lists name a version that the mirror has replaced.
  [ "$(id -u)" -eq 0 ] || die "download failed; as root: apt-get update"
  say "updating apt's package lists"
  run apt-get -q update || die "apt-get update failed"
  package=$(resolve)
  say "downloading $package (about 30 MB)"
  run fetch "$work" || die "download failed"
fi
deb=$(echo "$work"/*.deb)
version=$(dpkg-deb -f "$deb" Version)

say "unpacking $package $version"
mkdir "$work/root"
run dpkg-deb -x "$deb" "$work/root" || die "unpacking failed"
rm "$deb"
# Since Debian's files moved to /usr, some suites ship lib/modules there.
if [ ! -e "$work/root/lib/modules" ] && [ -e "$work/root/usr/lib/modules" ]; then
  mkdir -p "$work/root/lib"
  mv "$work/root/usr/lib/modules" "$work/root/lib/modules"
fi
release=${package#linux-image-}
for path in "boot/vmlinuz-$release" "lib/modules/$release/kernel"; do
  [ -e "$work/root/$path" ] || die "$package has no $path"
done
touch "$work/root/complete"
if [ ! -e "$cache/$version/complete" ]; then # else keep it: somebody may be using it
  rm -rf "${cache:?}/$version"
  mv "$work/root" "$cache/$version"
fi
rm -rf "$work" "$cache/log"
ln -sfn "$version" "$cache/current"
result "$cache/$version"
