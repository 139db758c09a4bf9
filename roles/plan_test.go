package roles_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// planned reports whether the shim has started the VM's workload.
func (h *host) planned(name string) bool {
	h.t.Helper()
	tl, err := h.client().VMTimeline(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	return slices.ContainsFunc(tl.Steps, func(s api.TimelineStep) bool { return s.Where == "guest" && s.Name == "plan" })
}

// TestPlan has the shim start a workload, and holds what that finds against what
// it finds where kestrel starts it.
func TestPlan(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	c := h.client()
	create := func(name, user, script string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		_, err := c.CreateVM(ctx, api.VMCreate{
			Name: name, Plugin: "tools", User: user, Entrypoint: &[]string{"/bin/sh", "-c", script}, Env: map[string]string{"GIVEN": "a b"},
		}, client.Wait{For: api.WaitRunning})
		if err != nil {
			t.Fatal(err)
		}
	}
	lines := func(name string) (out []string) {
		t.Helper()
		h.eventually(time.Minute, "all is printed", func() error {
			out = nil
			err := c.VMLogs(t.Context(), name, api.LogQuery{}, func(e api.LogEntry) error {
				if e.Stream != api.StreamAgent {
					out = append(out, e.Stream+" "+e.Line)
				}
				return nil
			})
			if err == nil && !slices.Contains(out, "stdout done") {
				err = fmt.Errorf("%d lines", len(out))
			}
			return err
		})
		return out
	}
	// What differs from boot to boot is left out: the MAC address, the machine's
	// identifier, processes' numbers, times.
	const script = `
		b() { echo "== $*"; busybox "$@"; }
		b id; b pwd; echo "mask $(umask)"; b hostname
		echo "== env"; busybox env | busybox sort
		b cat /proc/self/limits /proc/self/cgroup
		busybox grep -E '^(Uid|Gid|Groups|Sig[BICP]|ShdPnd|Cap|NoNewPrivs|Seccomp|Umask)' /proc/$$/status
		echo "nice $(busybox cut -d' ' -f19 /proc/$$/stat), session $(busybox cut -d' ' -f6 /proc/$$/stat | busybox sed s/$$/own/)"
		b cat /proc/self/mounts
		echo "== files"; busybox ls /proc/$$/fd
		busybox stat -L -c '%A %u %g' /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2
		for f in hostname hosts machine-id resolv.conf; do busybox stat -c '%A %u %g %s' /etc/$f; done
		b cat /etc/hosts /etc/hostname /sys/fs/cgroup/cgroup.subtree_control
		busybox ip addr | busybox grep -E '(inet |mtu)'; b ip route
		b ls -l /dev/fd /dev/stdin /dev/stdout /dev/stderr | busybox sed 's/root.*\/dev/\/dev/'
		busybox cat /proc/1/task/*/stat | busybox cut -d' ' -f19 | busybox sort -u | busybox sed 's/^5$/0/;s/^19$/0/' | busybox sort -u
		[ "$(busybox date +%Y)" -gt 2025 ] && echo "the clock is set"
		echo to stderr >&2
		echo done
		exec busybox sleep 1000`
	found := map[string][]string{}
	for _, user := range []string{"", "root"} { // kestrel alone knows names
		create("web", user, script)
		if got := h.planned("web"); got != (user == "") {
			t.Errorf("user %q: the shim has started the workload: %t", user, got)
		}
		found[user] = lines("web")
		h.volar("vms", "delete", "web", "--force")
	}
	slices.Sort(found[""]) // two streams
	slices.Sort(found["root"])
	only := func(a, b []string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(a), func(line string) bool { return slices.Contains(b, line) }), "\n")
	}
	if !slices.Equal(found[""], found["root"]) || len(found[""]) < 60 {
		t.Errorf("of %d and %d lines it finds, when started by the shim,\n%s\nand by kestrel\n%s", len(found[""]), len(found["root"]),
			only(found[""], found["root"]), only(found["root"], found[""]))
	}

	t.Run("another user", func(t *testing.T) {
		create("web", "1000:100", "busybox id; busybox env; echo done; exec busybox sleep 1000")
		if !h.planned("web") {
			t.Error("kestrel has started the workload")
		}
		out := lines("web")
		for _, want := range []string{"stdout uid=1000 gid=100", "stdout HOME=/", "stdout GIVEN=a b"} {
			if !slices.Contains(out, want) {
				t.Errorf("it prints %q, want %q", out, want)
			}
		}
		h.volar("vms", "delete", "web", "--force")
	})
	t.Run("it ends at once", func(t *testing.T) {
		_, err := c.CreateVM(t.Context(), api.VMCreate{Name: "brief", Plugin: "tools", Entrypoint: &[]string{"/bin/sh", "-c", "echo done; exit 7"}}, client.Wait{})
		if err != nil {
			t.Fatal(err)
		}
		h.eventually(time.Minute, "its exit status", func() error {
			if vm := h.vm("brief"); vm.Exit == nil || vm.Exit.Code != 7 {
				return fmt.Errorf("%s, exit %+v", vm.Status, vm.Exit)
			}
			return nil
		})
		lines("brief")
		h.volar("vms", "delete", "brief", "--force")
	})
	t.Run("it never rests", func(t *testing.T) {
		begin := time.Now()
		create("busy", "", "while :; do :; done")
		t.Logf("the agent of a busy guest answered after %v", time.Since(begin).Round(10*time.Millisecond))
		if !h.planned("busy") {
			t.Error("kestrel has started the workload")
		}
		h.eventually(time.Minute, "the agent no longer steps back", func() error {
			if out := h.volar("exec", "busy", "--", "sh", "-c", "busybox cat /proc/1/task/*/stat | busybox cut -d' ' -f19 | busybox sort -u"); out != "0\n" {
				return fmt.Errorf("its nice values are %q", out)
			}
			return nil
		})
		h.volar("vms", "delete", "busy", "--force")
	})
}
