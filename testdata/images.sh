#!/bin/bash
# images.sh CACHE - make the OCI images that the end-to-end tests run, from
# Debian's packages: a layout folder CACHE/oci with the tags
#
#   base      libc and busybox, nothing else
#   nginx     base and nginx; exposes 80
#   redis     base and redis; exposes 6379, stops on SIGTERM
#   postgres  base and PostgreSQL; runs as postgres, with a volume for its data
#
# Packages are downloaded over apt, which checks their signatures, and unpacked;
# nothing is installed and no maintainer script runs. A second run finds the layout
# there and does nothing. One line on standard output names the layout. Root is
# needed for the owners of files.
set -euo pipefail
export LC_ALL=C
umask 022

say() { echo "images: $*" >&2; }
[ $# -eq 1 ] || { echo "usage: ${0##*/} CACHE" >&2; exit 2; }
self=$(cd "$(dirname "$0")" && pwd)/${0##*/}
mkdir -p "$1"
cache=$(cd "$1" && pwd)
exec 9>"$cache/lock"
flock 9
stamp=$(sha256sum "$self" | cut -c1-16)
if [ "$(cat "$cache/oci/stamp" 2>/dev/null)" = "$stamp" ]; then
	echo "$cache/oci"
	exit 0
fi
work=$cache/new
rm -rf "$work" "$cache/oci"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

# fetch ROOT PACKAGE... unpacks the packages, and all that they need beyond what
# the base has, into ROOT.
mkdir -p "$work/state/lists/partial" "$work/archives/partial"
: >"$work/status"
fetch() {
	local root=$1
	shift
	local debs=$work/archives
	find "$debs" -name '*.deb' -delete
	[ ! -e "$work/base-status" ] || cp "$work/base-status" "$work/status"
	apt-get -q -y --no-install-recommends --download-only -o Dir::State::status="$work/status" -o Dir::Cache::archives="$debs" \
		-o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 install "$@" >"$work/log" 2>&1 || return 1
	mkdir -p "$root"
	local deb
	for deb in "$debs"/*.deb; do
		dpkg-deb -x "$deb" "$root"
		# What is unpacked counts as installed for the next call.
		{ dpkg-deb -f "$deb"; echo "Status: install ok installed"; echo; } >>"$work/status"
	done
	rm -rf "$root"/usr/share/{doc,man,locale,info,lintian}
}
get() {
	fetch "$@" && return
	say "updating apt's package lists"
	apt-get -q update >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
	fetch "$@" || { tail -n 20 "$work/log" >&2; exit 1; }
}

say "making base"
base=$work/base
get "$base" base-files base-passwd libc6 busybox
cp "$work/status" "$work/base-status"
mkdir -p "$base"/{bin,dev,etc,proc,root,run,sys,tmp}
chmod 1777 "$base/tmp"
chmod 0700 "$base/root"
for applet in sh ls cat echo id ps mount umount env grep sed sleep stat df mkdir chmod touch ip hostname nc wget vi find head tail sync true false date kill test sort wc tty stty; do
	ln -sf busybox "$base/bin/$applet"
done
cp "$base/usr/share/base-passwd/passwd.master" "$base/etc/passwd"
cp "$base/usr/share/base-passwd/group.master" "$base/etc/group"

umoci init --layout "$work/oci"
layer() { # layer FROM TAG ROOT CONFIG... adds ROOT as a layer
	local from=$1 tag=$2 root=$3
	shift 3
	umoci insert --image "$work/oci:$from" --tag "$tag" "$root" / >&2
	umoci config --image "$work/oci:$tag" "$@" >&2
}
umoci new --image "$work/oci:empty"
layer empty base "$base" --config.cmd sh --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The users of the services stand in the base's files, as their packages' scripts
# would have written them.
users=$work/users
mkdir -p "$users/etc"
{ cat "$base/etc/passwd"; echo "redis:x:101:101::/var/lib/redis:/bin/sh"; echo "postgres:x:102:102::/var/lib/postgresql:/bin/sh"; } >"$users/etc/passwd"
{ cat "$base/etc/group"; echo "redis:x:101:"; echo "postgres:x:102:"; echo "ssl-cert:x:103:postgres"; } >"$users/etc/group"
layer base users "$users" --config.cmd sh

say "making nginx"
root=$work/nginx
get "$root" nginx-light
mkdir -p "$root"/var/{log/nginx,lib/nginx,www/html}
echo "nginx in a microVM" >"$root/var/www/html/index.html"
ln -sf /dev/stdout "$root/var/log/nginx/access.log"
ln -sf /dev/stderr "$root/var/log/nginx/error.log"
cat >"$root/etc/nginx/nginx.conf" <<-'EOF'
	user www-data;
	worker_processes 1;
	error_log /var/log/nginx/error.log;
	pid /run/nginx.pid;
	events { worker_connections 256; }
	http {
		include /etc/nginx/mime.types;
		access_log /var/log/nginx/access.log;
		server { listen 80 default_server; root /var/www/html; }
	}
EOF
layer users nginx "$root" --config.entrypoint nginx --config.cmd -g --config.cmd 'daemon off;' --config.exposedports 80/tcp --config.stopsignal SIGQUIT

say "making redis"
root=$work/redis
get "$root" redis-server
mkdir -p "$root/data"
chown 101:101 "$root/data"
layer users redis "$root" --config.entrypoint redis-server --config.cmd --protected-mode --config.cmd no --config.cmd --save --config.cmd 60 --config.cmd 1 \
	--config.user redis --config.workingdir /data --config.volume /data --config.exposedports 6379/tcp

say "making postgres"
root=$work/postgres
get "$root" postgresql-15
data=var/lib/postgresql/data
mkdir -p "$root/$data" "$root/run/postgresql" "$root/usr/local/bin"
cat >"$root/usr/local/bin/entrypoint" <<-'EOF'
	#!/bin/sh
	# As the well-known image does it: initialise the data folder once, then serve.
	set -e
	bin=/usr/lib/postgresql/15/bin
	if [ ! -e "$PGDATA/PG_VERSION" ]; then
		echo "initialising $PGDATA as $(id -un)"
		$bin/initdb -D "$PGDATA" --auth=trust --no-locale --encoding=UTF8 --no-sync
		echo "host all all 0.0.0.0/0 trust" >>"$PGDATA/pg_hba.conf"
	fi
	exec $bin/postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/run/postgresql
EOF
chmod 0755 "$root/usr/local/bin/entrypoint"
chown -R 102:102 "$root/var/lib/postgresql" "$root/run/postgresql"
chmod 0700 "$root/$data"
layer users postgres "$root" --config.entrypoint entrypoint --config.user postgres --config.env PGDATA=/$data \
	--config.volume /$data --config.exposedports 5432/tcp --config.stopsignal SIGINT

umoci gc --layout "$work/oci"
echo "$stamp" >"$work/oci/stamp"
mv "$work/oci" "$cache/oci"
say "done: $(du -sh "$cache/oci" | cut -f1)"
echo "$cache/oci"
