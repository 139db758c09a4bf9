package roles_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/budget"
	"github.com/volantvm/volant/testdata/need"
)

// TestBudgets measures what DESIGN promises, as far as it is built.
func TestBudgets(t *testing.T) {
	need.Bench(t)
	needVMs(t)
	var all []budget.Line
	for _, m := range []struct {
		name    string
		measure func(*testing.T) []budget.Line
	}{{"binary", benchBinary}, {"version", benchVersion}, {"initramfs", benchInitramfs}, {"api", benchAPI}, {"shim", benchShim}, {"ready", benchReady}, {"ten", benchTen}, {"exec", benchExec}, {"logs", benchLogs}, {"images", benchImages}} {
		t.Run(m.name, func(t *testing.T) { all = append(all, m.measure(t)...) })
	}
	budget.Print(t, all...)
}

func benchBinary(t *testing.T) []budget.Line {
	st, err := os.Stat(os.Getenv(envBinary))
	if err != nil {
		t.Fatal(err)
	}
	return []budget.Line{{Name: "binary-size", Value: float64(st.Size()) / (1 << 20), Limit: 22, Unit: "M", How: "MiB, stripped, amd64"}}
}

// benchVersion compares `volant --version` with an empty Go program.
func benchVersion(t *testing.T) []budget.Line {
	dir := t.TempDir()
	src, empty := filepath.Join(dir, "main.go"), filepath.Join(dir, "empty")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", empty, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var base, ours []time.Duration
	for range 40 {
		base = append(base, timed(t, exec.Command(empty)))
		ours = append(ours, timed(t, exec.Command(os.Getenv(envBinary), "--version")))
	}
	return []budget.Line{budget.Ratio("version-start", 3, ours, base, "volant --version ÷ an empty Go program")}
}

// timed runs cmd, which must succeed, and returns how long it took.
func timed(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return time.Since(start)
}

// benchInitramfs compares fledge with cpio and zstd on the same tree.
func benchInitramfs(t *testing.T) []budget.Line {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	content, err := os.ReadFile(os.Getenv(envBinary))
	if err != nil {
		t.Fatal(err)
	}
	const files, size = 400, 100 << 10 // 40 MB of program text
	for i := range files {
		sub := filepath.Join(tree, fmt.Sprintf("d%02d", i%20))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		at := 1 + (i*37<<10)%(len(content)-size-1) // not at an ELF header
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d", i)), content[at:at+size], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	recipe := "version = \"1\"\nstrategy = \"initramfs\"\n[output]\ncompression = \"zstd\"\n[mappings]\n\"./tree\" = \"/tree\"\n" +
		"[manifest]\nname = \"tree\"\nversion = \"1\"\n[manifest.resources]\ncpu_cores = 1\nmemory_mb = 128\n" +
		"[manifest.workload]\ntype = \"exec\"\nentrypoint = [\"/tree/d00/f0\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "fledge.toml"), []byte(recipe), 0o644); err != nil {
		t.Fatal(err)
	}
	var base, ours []time.Duration
	for range 5 {
		pipe := exec.Command("bash", "-ec", "set -o pipefail; cd tree; find . | LC_ALL=C sort | cpio -o -H newc --quiet | zstd -q -f -o ../base.cpio.zst")
		pipe.Dir = dir
		base = append(base, timed(t, pipe))
		fledge := exec.Command(os.Getenv(envBinary), "fledge", "build", "-c", filepath.Join(dir, "fledge.toml"), "-o", filepath.Join(dir, "ours"))
		fledge.Dir = dir
		ours = append(ours, timed(t, fledge))
	}
	return []budget.Line{budget.Ratio("initramfs-assembly", 1, ours, base, fmt.Sprintf("fledge build, zstd ÷ cpio | zstd, 40 MB in %d files", files))}
}

// rss returns a process's resident memory in KiB.
func rss(t *testing.T, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatalf("no VmRSS of %d", pid)
	return 0
}

// benchAPI measures POST /vms at 1,000 stored VMs, and volantd's memory.
func benchAPI(t *testing.T) []budget.Line {
	t.Setenv("VOLANT_SUBNET", "10.99.0.0/16")
	t.Setenv("VOLANT_BRIDGE", "vbench0")
	h := newHost(t)
	h.start()
	h.install()
	pid := h.daemon.Process.Pid
	c := h.client()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	create := func(i int) time.Duration {
		start := time.Now()
		if _, err := c.CreateVM(ctx, api.VMCreate{Name: fmt.Sprintf("vm-%d", i), Plugin: "hello", Stopped: true}, client.Wait{}); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	time.Sleep(2 * time.Second)
	idle := rss(t, pid)
	const stored, more = 1000, 200
	for i := range stored {
		create(i)
	}
	full := rss(t, pid)
	var took []time.Duration
	for i := range more {
		took = append(took, create(stored+i))
	}
	// The baseline of a durable write on this disk, right now.
	var fsync []time.Duration
	f, err := os.Create(filepath.Join(h.dir, "fsync"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 50 {
		start := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		fsync = append(fsync, time.Since(start))
	}
	h.kill()
	os.RemoveAll(filepath.Join(h.dir, "data")) // 1,200 deletions are not what is measured here
	h.start()
	detail := fmt.Sprintf("POST /vms, durable, %d VMs stored; a 4 KiB fsync takes %.2f ms", stored, budget.Millis(budget.Median(fsync)))
	return []budget.Line{
		{Name: "create-p50", Value: budget.Millis(budget.Percentile(took, 50)), Limit: 10, Unit: "ms", How: detail},
		{Name: "create-p99", Value: budget.Millis(budget.Percentile(took, 99)), Limit: 30, Unit: "ms", How: detail},
		{Name: "volantd-rss-idle", Value: idle / 1024, Limit: 25, Unit: "M", How: "MiB resident, no VMs"},
		{Name: "volantd-rss-per-vm", Value: max(0, full-idle) / stored, Limit: 50, Unit: "K", How: fmt.Sprintf("KiB per stored VM, from %d", stored)},
	}
}

// client returns a client of h's daemon.
func (h *host) client() *client.Client {
	h.t.Helper()
	c, err := client.New(client.Config{Addr: "unix://" + h.socket()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// readyAfterCreate creates a VM over the API and returns what it took until its
// workload answered.
func readyAfterCreate(t *testing.T, h *host, req api.VMCreate, port string) cost {
	t.Helper()
	c := h.client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	start := time.Now()
	vm, err := c.CreateVM(ctx, req, client.Wait{})
	if err != nil {
		t.Fatal(err)
	}
	waitHTTP(t, net.JoinHostPort(vm.IPAddress, port))
	wall := time.Since(start)
	if vm, err = c.VM(ctx, req.Name, client.Wait{}); err != nil {
		t.Fatal(err)
	}
	took := cost{wall, cpuTime(t, vm.PID)}
	h.volar("vms", "delete", req.Name, "--force")
	return took
}

// benchImages compares nginx in its image, from the request to the answer through
// its address, with the bare boot of the same kernel; and a run of an image that
// is there with one that is pulled and converted first.
func benchImages(t *testing.T) []budget.Line {
	addr := registry(t, "nginx")
	h := newImageHost(t, addr)
	h.volar("plugins", "install", "--manifest", filepath.Join(os.Getenv(envHello), "hello.manifest.json"))
	image := addr + "/volant/nginx:1"
	run := func() time.Duration {
		start := time.Now()
		h.volar("run", "-d", "--name", "bench", image)
		waitHTTP(t, h.vm("bench").IPAddress+":80")
		took := time.Since(start)
		h.volar("vms", "delete", "bench", "--force")
		return took
	}
	bare := newBareGuest(t, h, "--kernel", "volant")
	var first, second []time.Duration
	var boots compared
	for i := range 10 {
		if i < 3 {
			h.try("images", "rm", image)
			first = append(first, run())
			second = append(second, run())
		}
		b, o := bare.boot(), readyAfterCreate(t, h, api.VMCreate{Name: "bench", Image: image}, "80")
		if i > 0 { // the first of each warms caches
			boots.add(o, b)
		}
	}
	return []budget.Line{
		boots.line("oci-ready", 2, "nginx, create to answer ÷ bare C init, kernel volant"),
		// The boot is most of both, and as noisy as it is.
		budget.Ratio("oci-second-run", 1.2, second, first, "volar run of an image that is there ÷ the first run, pull and conversion included"),
	}
}

// waitHTTP asks addr, "host:port", until it answers. Each try is a new connection with a
// short limit, so that no retransmission timer of the host is measured.
func waitHTTP(t *testing.T, addr string) {
	t.Helper()
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{Timeout: 25 * time.Millisecond}).DialContext,
	}}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		resp, err := c.Get("http://" + addr + "/")
		if err == nil {
			resp.Body.Close()
			return
		}
	}
	t.Fatalf("%s did not answer within a minute", addr)
}
