package roles_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/testdata/budget"
)

// benchShim is what Volant puts into an initramfs.
func benchShim(*testing.T) []budget.Line {
	return []budget.Line{{Name: "shim-size", Value: float64(len(shim.Binary())) / 1024, Limit: shim.MaxSize / 1024, Unit: "K", How: "KiB of program in every initramfs"}}
}

// benchReady compares an appliance, from the request to the answer through its
// address, with a bare guest of the same program as /init: same kernel, same VMM,
// same devices, no Volant. Runs are interleaved. It compares their memory too.
func benchReady(t *testing.T) []budget.Line {
	h := newHost(t)
	h.start()
	h.install()
	installBare(t, h)
	bare := newBareGuests(t, h, 1, "--plugin", "bare")[0]
	var c compared
	for i := range 10 {
		b, o := bare.boot(), readyAfterCreate(t, h, api.VMCreate{Name: "bench", Plugin: "bare"}, "8080")
		if i > 0 { // the first of each warms caches
			c.add(o, b)
		}
	}
	free := bare.during(func() float64 { return available(t, bare.addr) })
	h.volar("vms", "create", "bench", "--plugin", "bare", "--wait=healthy")
	time.Sleep(3 * time.Second) // it has to become idle
	left := available(t, h.vm("bench").IPAddress)
	h.volar("vms", "delete", "bench", "--force")
	ready := c.line("appliance-ready", 1.25, "vms create to the workload's answer ÷ the same program as /init")
	return []budget.Line{ready, {
		Name: "guest-memory", Value: (free - left) / 1024, Limit: 12, Unit: "M",
		How: fmt.Sprintf("MiB less available to an idle guest of 128 than without Volant: %.1f instead of %.1f", left/1024, free/1024),
	}}
}

// cost is what a machine took until it answered.
type cost struct {
	wall time.Duration
	cpu  time.Duration // of its VMM
}

// compared are the costs of two kinds of machines that were booted in turns.
type compared struct{ ours, base, oursCPU, baseCPU []time.Duration }

func (c *compared) add(ours, base cost) {
	c.ours, c.base = append(c.ours, ours.wall), append(c.base, base.wall)
	c.oursCPU, c.baseCPU = append(c.oursCPU, ours.cpu), append(c.baseCPU, base.cpu)
}

// line is the ratio of the times, which says in words how much processor time the
// VMMs took: on a busy machine that changes less, so what is over the limit by the
// clock alone is no breach.
func (c *compared) line(name string, limit float64, how string) budget.Line {
	ours, base := budget.Median(c.oursCPU), budget.Median(c.baseCPU)
	cpu := float64(ours) / float64(base)
	l := budget.Ratio(name, limit, c.ours, c.base, fmt.Sprintf("%s; processor time of the VMM %.2f: %.0f ÷ %.0f ms",
		how, cpu, budget.Millis(ours), budget.Millis(base)))
	if cpu <= limit {
		l.Open = "the machine has less other work: by the processor time it is met"
	}
	return l
}

// cpuTime is the processor time that a process has used, in all its threads.
func cpuTime(t *testing.T, pid int) (sum time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads of process %d: %v", pid, err)
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		ns, _, _ := strings.Cut(string(b), " ") // of running, waiting, and how often: proc(5) of the kernel's sched-stats.rst
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		sum += time.Duration(n)
	}
	return sum
}

// benchTen starts ten appliances at once, and ten bare guests.
func benchTen(t *testing.T) []budget.Line {
	h := newHost(t)
	h.start()
	h.install()
	installBare(t, h)
	const n = 10
	guests := newBareGuests(t, h, n, "--plugin", "bare")
	c := h.client()
	atOnce := func(boot func(i int) (pid int)) cost {
		start := time.Now()
		var cpu atomic.Int64 // of all VMMs, of each when its guest answered
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if pid := boot(i); pid > 0 {
					cpu.Add(int64(cpuTime(t, pid)))
				}
			})
		}
		wg.Wait()
		return cost{time.Since(start), time.Duration(cpu.Load())}
	}
	var all compared
	for range 7 {
		for _, g := range guests {
			g.pin()
		}
		ends := make([]func(), n)
		base := atOnce(func(i int) (pid int) {
			pid, ends[i] = guests[i].start()
			return pid
		})
		for _, end := range ends {
			if end != nil { // it failed
				end()
			}
		}
		ours := atOnce(func(i int) (pid int) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			vm, err := c.CreateVM(ctx, api.VMCreate{Name: fmt.Sprintf("bench-%d", i), Plugin: "bare"}, client.Wait{})
			if err == nil {
				waitHTTP(t, vm.IPAddress+":8080")
				vm, err = c.VM(ctx, vm.Name, client.Wait{})
			}
			if err != nil {
				t.Error(err)
				return 0
			}
			return vm.PID
		})
		all.add(ours, base)
		for i := range n {
			h.volar("vms", "delete", fmt.Sprintf("bench-%d", i), "--force")
		}
	}
	ten := all.line("ten-appliances", 1.4, "ten at once, vms create to the last answer ÷ ten bare guests at once")
	return []budget.Line{ten}
}

// available is the memory, in KiB, that a guest says it has left.
func available(t *testing.T, addr string) float64 {
	t.Helper()
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + addr + ":8080/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			if kib, err := strconv.ParseFloat(f[1], 64); err == nil {
				return kib
			}
		}
	}
	t.Fatalf("no MemAvailable in %q", body)
	return 0
}

// buildBare compiles testdata/bareinit to path.
func buildBare(t *testing.T, path string) {
	t.Helper()
	argv := []string{"gcc", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
		"-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s", "-o", path, "../testdata/bareinit/init.c"}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// installBare installs the plugin bare, whose workload is the very program that
// is /init of a bareGuest: what the two take differs by Volant's share alone.
func installBare(t *testing.T, h *host) {
	t.Helper()
	dir := t.TempDir()
	buildBare(t, filepath.Join(dir, "bare"))
	recipe := `version = "1"
strategy = "initramfs"
[mappings]
"./bare" = "/usr/bin/bare"
[manifest]
name = "bare"
version = "1"
[manifest.resources]
cpu_cores = 1
memory_mb = 128
[manifest.workload]
type = "http"
entrypoint = ["/usr/bin/bare", "serve"]
base_url = "http://127.0.0.1:8080"
[manifest.health_check]
endpoint = "/"
timeout_ms = 10000
`
	if err := os.WriteFile(filepath.Join(dir, "fledge.toml"), []byte(recipe), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(os.Getenv(envBinary), "fledge", "build", "-c", filepath.Join(dir, "fledge.toml"), "-o", filepath.Join(dir, "bare")).CombinedOutput()
	if err != nil {
		t.Fatalf("fledge build: %v\n%s", err, out)
	}
	h.volar("plugins", "install", "--manifest", filepath.Join(dir, "bare.manifest.json"))
}

// bareGuest boots testdata/bareinit with the command line of a real VM of
// Volant's, but for the initramfs.
type bareGuest struct {
	t    *testing.T
	addr string
	mac  string
	argv []string
}

// newBareGuest takes the machine of a VM of plugin hello that was created with
// flags.
func newBareGuest(t *testing.T, h *host, flags ...string) *bareGuest {
	t.Helper()
	return newBareGuests(t, h, 1, append([]string{"--plugin", "hello"}, flags...)...)[0]
}

// newBareGuests makes n of them, each with a TAP and an address of its own.
func newBareGuests(t *testing.T, h *host, n int, flags ...string) []*bareGuest {
	t.Helper()
	// The machine that Volant makes, as it runs it.
	h.volar(append([]string{"vms", "create", "model", "--wait=healthy"}, flags...)...)
	vm := h.vm("model")
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID))
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join(h.dir, "run/vms/*/*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("run directories = %v, %v; want one", dirs, err)
	}
	h.volar("vms", "delete", "model")
	args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
	var all []*bareGuest
	for i := range n {
		replace := func(dir, mac string) *strings.Replacer {
			return strings.NewReplacer(dirs[0], dir, vm.MACAddress, mac)
		}
		all = append(all, newBare(t, i, vm.MACAddress, args, replace))
	}
	return all
}

// newBare makes the i-th guest that runs args, but with a TAP of its own and a
// directory and MAC address that replace puts in.
func newBare(t *testing.T, i int, mac string, args []string, replace func(dir, mac string) *strings.Replacer) *bareGuest {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "vb") // short, for the sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	buildBare(t, filepath.Join(root, "init"))
	if out, err := exec.Command("sh", "-ec", "cd "+root+" && echo init | cpio -o -H newc --quiet > ../bare.cpio").CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	tap := fmt.Sprintf("vtbare%d", i)
	mac = mac[:len(mac)-2] + fmt.Sprintf("%02x", 0xa0+i)
	b := &bareGuest{t: t, addr: fmt.Sprintf("192.168.127.%d", 250-i), mac: mac}
	with := replace(dir, mac)
	for i, arg := range args {
		switch {
		case arg == "-S": // no daemon will let it go on
		case i > 0 && args[i-1] == "-initrd":
			b.argv = append(b.argv, filepath.Join(dir, "bare.cpio"))
		case i > 0 && args[i-1] == "-netdev" && strings.HasPrefix(arg, "tap,id=net0,fd="): // opened by the driver
			b.argv = append(b.argv, "tap,id=net0,ifname="+tap+",script=no,downscript=no,vhost=off")
		case i > 0 && args[i-1] == "-append":
			b.argv = append(b.argv, arg+" bare.ip="+b.addr+"/24")
		default:
			b.argv = append(b.argv, with.Replace(arg))
		}
	}
	// The boot configuration's disk is attached, though nobody reads it.
	disks, _ := filepath.Glob(filepath.Join(dir, "*.img"))
	if len(disks) == 0 {
		for _, arg := range b.argv {
			if _, file, ok := strings.Cut(arg, "file="+dir+"/"); ok {
				name, _, _ := strings.Cut(file, ",")
				if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 4096), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "del", tap).Run() })
	for _, argv := range [][]string{
		{"ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr"},
		{"ip", "link", "set", tap, "master", "vbr0", "up"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	return b
}

// pin makes the guest's ARP entry permanent, as Volant pins those of its own. It
// is made before each boot, since volantd removes what it does not know: without
// it the host asks once before the guest is up, and then a second later, which is
// when the guest seemed to answer.
func (b *bareGuest) pin() {
	b.t.Helper()
	argv := []string{"ip", "neigh", "replace", b.addr, "lladdr", b.mac, "dev", "vbr0", "nud", "permanent"}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// boot runs the guest once and returns what it took from the VMM's start to the
// answer.
func (b *bareGuest) boot() (took cost) {
	b.t.Helper()
	b.pin()
	start := time.Now()
	pid, end := b.start()
	took = cost{time.Since(start), cpuTime(b.t, pid)}
	end()
	return took
}

// during calls f while the guest runs.
func (b *bareGuest) during(f func() float64) float64 {
	b.t.Helper()
	b.pin()
	_, end := b.start()
	defer end()
	return f()
}

// start runs the guest, whose ARP entry is pinned, until it answers; end kills it.
func (b *bareGuest) start() (pid int, end func()) {
	b.t.Helper()
	cmd := exec.Command(b.argv[0], b.argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if b.t.Failed() {
			b.t.Logf("the VMM said: %s\n%v", out.String(), b.argv)
		}
	})
	b.t.Cleanup(end)
	waitHTTP(b.t, b.addr+":8080")
	return cmd.Process.Pid, end
}
