#!/bin/bash
# build-kernel.sh builds Volant's guest kernels from Debian's linux-source package.
#
#   build-kernel.sh [generic|volant|all]      (default: all)
#
# The repository holds neither kernel source nor kernel binaries, only the two
# configuration fragments beside this script. The source comes from the Debian
# mirror that this machine's apt already uses; apt checks its signature and its
# digest. Nothing is installed: packages that are missing are named and the
# script stops. Root is needed only if apt has no package lists yet.
#
# A target is built only when its inputs changed: the fragments, this script, the
# source package's version, the compiler, the linker. The version is settled once,
# at the first build, and kept until REFRESH=1 asks apt for the newest again, so a
# second run neither builds nor touches the network.
#
# Environment:
#   OUT=out/kernels      vmlinux-generic, vmlinux-volant, bzImage-volant, their
#                        .config files, SOURCE.txt, COPYRIGHT
#   WORK=.cache/kernels  download, source tree, object trees (about 3 GB)
#   JOBS=$(nproc)        compilers run at once
#   SUITE=trixie         Debian suite the source is taken from
#   PACKAGE=linux-source-6.12
#   VERSION=             exact version of that package; empty: see above
#   REFRESH=1            ask apt for the newest version, build if it changed
#   CONFIG_ONLY=1        configure, check that every line was taken, and stop

# Filters below read to the end of their input: with pipefail, a writer that is cut off
# would count as failed.
set -euo pipefail
# Debian's own tools only: a compiler or an interpreter from elsewhere in the caller's
# path would end up in the configuration.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC
umask 022

say() { echo "kernels: $*" >&2; }
die() { say "$*"; exit 1; }

case ${1:-all} in
  generic | volant) targets=$1 ;;
  all) targets="generic volant" ;;
  *) echo "usage: ${0##*/} [generic|volant|all]" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-out/kernels} WORK=${WORK:-.cache/kernels} JOBS=${JOBS:-$(nproc)}
SUITE=${SUITE:-trixie} PACKAGE=${PACKAGE:-linux-source-6.12} VERSION=${VERSION:-}
mkdir -p "$OUT" "$WORK/log"
OUT=$(cd "$OUT" && pwd) WORK=$(cd "$WORK" && pwd)

# --- stages: one line each, a heartbeat after 2 s, the log's end on failure ----

child=
stop_child() { if [ -n "$child" ]; then kill -- "-$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; child=; fi; }
trap stop_child EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

stage() { # name text command...
  local log=$WORK/log/$1.log text=$2 started=$SECONDS next=2 status=0 compiled
  shift 2
  say "$text"
  set -m # a process group of its own, so that an interrupt reaches make and its compilers
  "$@" </dev/null >"$log" 2>&1 &
  child=$!
  set +m
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    if [ $((SECONDS - started)) -ge $next ]; then
      compiled=$(grep -cE '^  (CC|AS|AR|LD) ' "$log" || true)
      [ "$compiled" = 0 ] && compiled= || compiled=", $compiled files so far"
      say "  ... $((SECONDS - started)) s$compiled"
      next=$((SECONDS - started + (next < 10 ? 5 : 15)))
    fi
  done
  wait "$child" || status=$?
  child=
  if [ $status -ne 0 ]; then
    tail -n 20 "$log" >&2
    die "$text: failed with status $status; the whole log is $log"
  fi
}

# --- what the build needs --------------------------------------------------------

check_packages() {
  local missing= tool
  for tool in gcc:gcc make:make ld:binutils flex:flex bison:bison bc:bc xz:xz-utils lz4:lz4 \
    perl:perl cpio:cpio awk:mawk apt-get:apt dpkg-deb:dpkg flock:util-linux; do
    command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool##*:}"
  done
  # objtool, built on the host, links against libelf
  if command -v gcc >/dev/null && ! echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1; then missing="$missing libelf-dev"; fi
  if command -v gcc >/dev/null && ! echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1; then missing="$missing libc6-dev"; fi
  [ -e "$keyring" ] || missing="$missing debian-archive-keyring"
  [ -z "$missing" ] || die "missing Debian packages; as root: apt-get install -y --no-install-recommends$missing"
  [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); the fragments are for x86_64"
}

check_space() { # MiB
  local free
  free=$(($(df -Pk "$WORK" | awk 'NR == 2 {print $4}') / 1024))
  [ "$free" -ge "$1" ] || die "$WORK has $free MiB free, the build needs $1; set WORK to a folder on a larger disk"
}

# --- source ----------------------------------------------------------------------

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Debian's own archives among this machine's apt sources, by the label of their
# signed release files: third-party repositories never match.
mirror() { # label
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
    awk -F'|' -v label="$1" '$1 == "Debian" && $2 == label && !uri {uri = $3} END {print uri}'
}

# A private apt state: the machine's own sources and lists stay as they are.
prepare_apt() {
  local main security index
  main=$(mirror Debian)
  if [ -z "$main" ]; then # a container image ships without lists
    [ "$(id -u)" -eq 0 ] || die "apt has no package lists; as root: apt-get update"
    stage lists "updating apt's package lists" apt-get -q update
    main=$(mirror Debian)
  fi
  [ -n "$main" ] || die "apt knows no Debian mirror; Debian's own must be among its sources"
  security=$(mirror Debian-Security)
  mkdir -p "$WORK/apt/lists/partial" "$WORK/apt/cache/archives/partial" "$WORK/deb"
  echo "deb [signed-by=$keyring] $main $SUITE main" >"$WORK/apt/sources.list"
  [ -z "$security" ] || echo "deb [signed-by=$keyring] $security $SUITE-security main" >>"$WORK/apt/sources.list"
  apt_options=(-q -oDir::Etc::sourcelist="$WORK/apt/sources.list" -oDir::Etc::sourceparts=-
    -oDir::State::Lists="$WORK/apt/lists" -oDir::Cache="$WORK/apt/cache"
    -oAPT::Sandbox::User="$(id -un)" -oAcquire::Languages=none -oAcquire::Retries=3)
  # Package indexes only: a machine with apt-file or appstream would fetch theirs too.
  for index in Contents-deb Contents-deb-legacy Contents-udeb DEP-11 DEP-11-icons DEP-11-icons-small \
    DEP-11-icons-large DEP-11-icons-hidpi DEP-11-icons-large-hidpi; do
    apt_options+=("-oAcquire::IndexTargets::deb::$index::DefaultEnabled=false")
  done
}

newest_version() {
  prepare_apt
  stage update "asking apt for $PACKAGE in $SUITE" apt-get "${apt_options[@]}" update
  VERSION=$(apt-cache "${apt_options[@]}" show "$PACKAGE" 2>/dev/null | awk '/^Version: / && !v {v = $2} END {print v}')
  [ -n "$VERSION" ] || die "$SUITE has no package $PACKAGE"
}

download() {
  cd "$WORK/deb"
  apt-get "${apt_options[@]}" update
  apt-get "${apt_options[@]}" download "$PACKAGE=$VERSION" ||
    { echo "if the mirror has dropped version $VERSION, REFRESH=1 takes the newest"; return 1; }
}

unpack() {
  rm -rf "$source" "$source.tmp"
  mkdir -p "$source.tmp"
  dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$PACKAGE.tar.xz" |
    tar -C "$source.tmp" --strip-components=1 -xJ
  dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/share/doc/$PACKAGE/copyright" >"$source.tmp/.copyright"
  # The last changelog entry dates the build: the same source gives the same kernel.
  dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/share/doc/$PACKAGE/changelog.Debian.gz" |
    gzip -dc | sed -n 's/^ -- .*>  //p' | sed -n 1p >"$source.tmp/.date"
  [ -s "$source.tmp/.date" ]
  mv "$source.tmp" "$source"
}

get_source() {
  source=$WORK/source-$VERSION
  deb=$WORK/deb/${PACKAGE}_${VERSION/:/%3a}_all.deb
  if [ ! -e "$deb" ]; then
    check_space 4000
    prepare_apt
    stage download "downloading $PACKAGE $VERSION (150 MB)" download
    [ -e "$deb" ] || die "apt left no $deb"
  fi
  if [ ! -e "$source/.date" ]; then
    check_space 3500
    stage unpack "unpacking it" unpack
  fi
}

# --- configure and compile ---------------------------------------------------------

fragments() { # target
  case $1 in
    generic) echo "$here/generic.config" ;;
    volant) echo "$here/generic.config" "$here/volant.config" ;;
  esac
}

outputs() { # target
  case $1 in
    generic) echo vmlinux-generic vmlinux-generic.config ;;
    volant) echo vmlinux-volant bzImage-volant bzImage-volant.config ;;
  esac
}

# kbuild runs make in the kernel tree with a clean environment: no flags, locale or
# version suffix of the caller reaches the image. Neither does the presence of pahole
# or rustc, which nothing here uses but .config records.
kbuild() { # object-folder goal...
  local objects=$1
  shift
  env -i PATH="$PATH" HOME="$WORK" LC_ALL=C TZ=UTC \
    KBUILD_BUILD_USER=volant KBUILD_BUILD_HOST=volant KBUILD_BUILD_VERSION=1 \
    KBUILD_BUILD_TIMESTAMP="$(date -u -d "$(cat "$source/.date")" '+%a %b %e %H:%M:%S UTC %Y')" \
    make -C "$source" O="$objects" PAHOLE=false RUSTC=false -j"$JOBS" "$@"
}

# Later fragments win; kconfig would take the first of two lines.
merge() { # fragment...
  awk '
    match($0, /^(# )?CONFIG_[A-Za-z0-9_]+/) {
      name = substr($0, RSTART, RLENGTH); sub(/^# /, "", name)
      if (!(name in line)) order[++n] = name
      line[name] = $0
    }
    END { for (i = 1; i <= n; i++) print line[order[i]] }' "$@"
}

# kconfig drops what it cannot satisfy without a word, so compare.
check_config() { # fragment .config
  awk '
    function name(s) { sub(/^# /, "", s); sub(/[= ].*/, "", s); return s }
    NR == FNR { if (/^CONFIG_/) have[name($0)] = $0; next }
    /^CONFIG_/ && have[name($0)] != $0 { print "not taken: " $0; bad = 1 }
    /^# CONFIG_/ && name($0) in have { print "still on: " have[name($0)]; bad = 1 }
    END { exit bad }' "$2" "$1"
}

configure() { # target object-folder
  mkdir -p "$2"
  # shellcheck disable=SC2046 # the paths of one target, split on purpose
  merge $(fragments "$1") >"$2/fragment"
  kbuild "$2" KCONFIG_ALLCONFIG="$2/fragment" allnoconfig
  check_config "$2/fragment" "$2/.config"
}

has_pvh_note() { # ELF; type 18 is XEN_ELFNOTE_PHYS32_ENTRY
  readelf -n "$1" 2>/dev/null | grep 0x00000012 >/dev/null
}

publish() { # file name: whole or not at all
  cp "$1" "$OUT/.$2.tmp"
  sync "$OUT/.$2.tmp"
  mv "$OUT/.$2.tmp" "$OUT/$2"
}

compiler() { gcc --version | sed -n 1p; }
linker() { ld --version | sed -n 1p; }

key() { # target
  { # shellcheck disable=SC2046
    cat $(fragments "$1") "$here/${0##*/}"
    echo "$1 $PACKAGE $VERSION"; compiler; linker
  } | sha256sum | cut -d' ' -f1
}

# The stamp names the key and the digests of what was built; a file that was
# changed or removed since counts as not built.
current() { # target
  local stamp=$OUT/.stamp-$1
  [ -e "$stamp" ] && grep -qx "key: $(key "$1")" "$stamp" &&
    (cd "$OUT" && sed -n 's/^sha256: //p' "$stamp" | sha256sum --check --status)
}

stamp() { # target
  local file
  {
    echo "target: $1"
    echo "key: $(key "$1")"
    echo "package: $PACKAGE"
    echo "version: $VERSION"
    echo "suite: $SUITE"
    echo "deb-sha256: $(sha256sum "$deb" | cut -d' ' -f1)"
    echo "compiler: $(compiler)"
    echo "linker: $(linker)"
    for file in $(outputs "$1"); do (cd "$OUT" && sha256sum "$file") | sed 's/^/sha256: /'; done
  } >"$OUT/.stamp-$1.tmp"
  mv "$OUT/.stamp-$1.tmp" "$OUT/.stamp-$1"
}

build() { # target
  local objects=$WORK/objects-$1 started=$SECONDS file
  rm -rf "$objects"
  stage "$1-config" "configuring $1" configure "$1" "$objects"
  if [ -n "${CONFIG_ONLY:-}" ]; then
    say "$1: every line of the fragments was taken; $(grep -c =y "$objects/.config") options on"
    return
  fi
  check_space 1500
  case $1 in
    generic) stage "$1" "compiling generic (about 9 CPU minutes)" kbuild "$objects" vmlinux ;;
    volant) stage "$1" "compiling volant (about 17 CPU minutes)" kbuild "$objects" bzImage ;;
  esac
  strip -s -o "$objects/vmlinux.stripped" "$objects/vmlinux"
  has_pvh_note "$objects/vmlinux.stripped" || die "vmlinux-$1 carries no PVH note; is CONFIG_PVH on?"
  rm -f "$OUT/.stamp-$1"
  publish "$objects/vmlinux.stripped" "vmlinux-$1"
  case $1 in
    generic) publish "$objects/.config" vmlinux-generic.config ;;
    volant)
      publish "$objects/arch/x86/boot/bzImage" bzImage-volant
      publish "$objects/.config" bzImage-volant.config
      ;;
  esac
  publish "$source/.copyright" COPYRIGHT
  stamp "$1"
  rm -rf "$objects"
  for file in $(outputs "$1"); do
    case $file in *.config) ;; *) say "$OUT/$file  $(stat -c %s "$OUT/$file") bytes" ;; esac
  done
  say "$1 built in $((SECONDS - started)) s"
}

write_source_txt() {
  local t
  {
    echo "Linux kernels built by Volant's build/kernel/build-kernel.sh. Linux is under the"
    echo "GNU General Public License, version 2; see COPYRIGHT. Whoever passes these files on"
    echo "owes the recipient the source: the Debian package named below, the .config files"
    echo "beside this text and the script."
    for t in generic volant; do
      if [ -e "$OUT/.stamp-$t" ]; then echo; cat "$OUT/.stamp-$t"; fi
    done
  } >"$OUT/.SOURCE.txt.tmp"
  mv "$OUT/.SOURCE.txt.tmp" "$OUT/SOURCE.txt"
}

check_packages
exec 9>"$WORK/lock"
flock -n 9 || { say "waiting for another build in $WORK"; flock 9; }

if [ -z "$VERSION" ] && [ -z "${REFRESH:-}" ]; then
  # keep to the version of the last build
  VERSION=$({ cat "$OUT"/.stamp-* 2>/dev/null || true; } | awk -v p="$PACKAGE" '/^package: / {q = $2} /^version: / && q == p {v = $2} END {print v}')
fi
[ -n "$VERSION" ] || newest_version

for target in $targets; do
  if [ -z "${CONFIG_ONLY:-}" ] && current "$target"; then
    say "$target is up to date ($PACKAGE $VERSION)"
    continue
  fi
  get_source
  build "$target"
done
[ -n "${CONFIG_ONLY:-}" ] || write_source_txt
