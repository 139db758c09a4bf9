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

// TestPlan has the shim start workloads, and holds what those find against what
// they find where kestrel starts them.
func TestPlan(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	h.volar("images", "load", saveImage(t, "busy:1"))
	t.Run("appliance", func(t *testing.T) { testPlan(t, h, api.VMCreate{Plugin: "tools"}) })
	t.Run("image", func(t *testing.T) { testPlan(t, h, api.VMCreate{Image: "busy:1"}) })
}

func testPlan(t *testing.T, h *host, from api.VMCreate) {
	c := h.client()
	create := func(name, script string, edit func(*api.VMCreate)) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		req := from
		req.Name, req.Entrypoint, req.Env = name, &[]string{"/bin/sh", "-c", script}, map[string]string{"GIVEN": "a b"}
		edit(&req)
		if _, err := c.CreateVM(ctx, req, client.Wait{For: api.WaitRunning}); err != nil {
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
		cd /; unset OLDPWD
		b() { echo "== $*"; busybox "$@"; }
		b id; b pwd; echo "mask $(umask)"; b hostname
		echo "== env"; busybox env | busybox sort
		b cat /proc/self/limits /proc/self/cgroup
		busybox grep -E '^(Uid|Gid|Groups|Sig[BICP]|ShdPnd|Cap|NoNewPrivs|Seccomp|Umask)' /proc/$$/status
		echo "nice $(busybox cut -d' ' -f19 /proc/$$/stat), session $(busybox cut -d' ' -f6 /proc/$$/stat | busybox sed s/$$/own/)"
		b cat /proc/self/mounts | busybox sed s/uuid=on,// # of an overlay that is mounted for the first time
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
	found := map[bool][]string{}
	for _, planned := range []bool{true, false} {
		create("web", script, func(req *api.VMCreate) {
			if req.Workdir = "/"; !planned {
				req.Workdir = "/made" // kestrel alone makes it, when the plan has gone as far as it can
			}
		})
		if got := h.planned("web"); got != planned {
			t.Errorf("the shim has started the workload: %t, want %t", got, planned)
		}
		found[planned] = lines("web")
		slices.Sort(found[planned]) // two streams
		h.volar("vms", "delete", "web", "--force")
	}
	only := func(a, b []string) string {
		for _, line := range b {
			if i := slices.Index(a, line); i >= 0 {
				a = slices.Delete(slices.Clone(a), i, i+1)
			}
		}
		return strings.Join(a, "\n")
	}
	if !slices.Equal(found[true], found[false]) || len(found[true]) < 60 {
		t.Errorf("of %d and %d lines it finds, when started by the shim,\n%s\nand by kestrel\n%s", len(found[true]), len(found[false]),
			only(found[true], found[false]), only(found[false], found[true]))
	}

	t.Run("another user", func(t *testing.T) {
		create("web", "busybox id; busybox env; echo done; exec busybox sleep 1000", func(req *api.VMCreate) { req.User, req.Workdir = "1000:100", "/" })
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
		req := from
		req.Name, req.Entrypoint = "brief", &[]string{"/bin/sh", "-c", "echo done; exit 7"}
		_, err := c.CreateVM(t.Context(), req, client.Wait{})
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
		create("busy", "while :; do :; done", func(*api.VMCreate) {})
		t.Logf("the agent of a busy guest answered after %v", time.Since(begin).Round(10*time.Millisecond))
		if !h.planned("busy") {
			t.Error("kestrel has started the workload")
		}
		h.eventually(time.Minute, "the agent no longer steps back", func() error {
			// Commands have the nice value of the agent, whose processes those of an
			// image do not see.
			if out := h.volar("exec", "busy", "--", "sh", "-c", "busybox cat /proc/self/stat /proc/1/task/*/stat | busybox cut -d' ' -f19 | busybox sort -u"); out != "0\n" {
				return fmt.Errorf("its nice values are %q", out)
			}
			return nil
		})
		h.volar("vms", "delete", "busy", "--force")
	})
}
