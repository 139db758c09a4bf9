#!/bin/bash
# demo.sh - boot a real microVM and show it answering.
#
# Everything happens in folders of its own and in a network namespace of its
# own; both are gone when the script ends, however it ends. It needs root for
# the namespace, the bridge in it and the guest's TAP.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "demo: not root: the demo makes a network namespace, run it as root" >&2; exit 1; }

work=$(mktemp -d /tmp/volant-demo.XXXXXX)
ns=volant-demo-$$
netns_was=; [ ! -d /run/netns ] || netns_was=1
daemon=
export VOLANT_HOST=unix://$work/run/volantd.sock
PATH=$PWD/bin:$PATH

cleanup() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$daemon" ]; then
		volar vms stop --all --force >/dev/null 2>&1 || true
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	ip netns del "$ns" 2>/dev/null || true
	# The first "ip netns add" since boot mounts a folder; both go again, unless somebody uses them by now.
	[ -n "$netns_was" ] || { umount -n /run/netns && rmdir /run/netns; } 2>/dev/null || true
	[ $status = 0 ] || { echo "demo: failed; the daemon's last words:" >&2; tail -n 20 "$work/volantd.log" >&2 2>/dev/null || true; }
	rm -rf "$work"
	exit $status
}
trap cleanup EXIT INT TERM

step() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }

step "the guest kernel"
if [ -e out/kernels/vmlinux-generic ]; then
	kernel=(out/kernels/vmlinux-generic --name generic)
else
	echo "out/kernels/vmlinux-generic is not built (make kernels): using Debian's cloud kernel"
	eval "$(testdata/debian-kernel.sh .cache/debian-kernel)"
	# shellcheck disable=SC2154 # the script names both
	kernel=("$vmlinuz" --modules "$modules" --name debian)
fi

step "pack an appliance: a static Go HTTP server, nothing else"
mkdir "$work/hello"
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$work/hello/hello" ./testdata/hello
cp testdata/hello/fledge.toml "$work/hello/"
(cd "$work/hello" && run fledge build)

step "start volantd in a network namespace of its own"
ip netns add "$ns"
ip -n "$ns" link set lo up
ip netns exec "$ns" bin/volantd --data-dir "$work/data" --runtime-dir "$work/run" \
	>"$work/volantd.log" 2>&1 &
daemon=$!
for _ in $(seq 200); do
	volar system info -o name >/dev/null 2>&1 && break
	kill -0 "$daemon" || exit 1
	sleep 0.05
done
run volar system info
run volar kernels import "${kernel[@]}"
run volar plugins install --manifest "$work/hello/hello.manifest.json"

step "create a microVM and ask it through its static address"
start=$(now_ms)
run volar vms create web --plugin hello --cpu 1 --memory 128 --no-wait
ip=$(volar vms get web -o json | sed -n 's/.*"ip_address": *"\([0-9.]*\)".*/\1/p')
[ -n "$ip" ] || { echo "demo: the VM has no address" >&2; exit 1; }
answer=
for _ in $(seq 1200); do
	if answer=$(ip netns exec "$ns" curl -fsS --connect-timeout 0.1 --max-time 2 "http://$ip:8080/" 2>/dev/null); then break; fi
	sleep 0.02
done
end=$(now_ms)
[ -n "$answer" ] || { volar vms get web; volar vms logs web --console --tail 20; echo "demo: no answer from $ip" >&2; exit 1; }
printf '$ curl http://%s:8080/\n%s\n' "$ip" "$answer"
volar vms start web --wait=healthy --timeout 60s >/dev/null
run volar vms list
run volar vms timeline web

step "stop and clean up"
run volar vms stop web
run volar vms delete web

printf '\ndemo: answered in %d ms from %s\n' $((end - start)) "$ip"
