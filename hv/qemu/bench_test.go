package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/hvtest"
	"github.com/volantvm/volant/hv/qemu"
	"github.com/volantvm/volant/testdata/budget"
	"github.com/volantvm/volant/testdata/need"
)

// agentClient speaks to a machine's agent, one stream a request unless kept.
func agentClient(vm hv.VM, keep bool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: !keep,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.Agent().Dial(ctx) },
	}}
}

func roundTrip(c *http.Client, body []byte) error {
	resp, err := c.Post("http://agent/echo", "", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// TestBudgets measures what the driver adds to QEMU, and what a template saves;
// make bench runs it.
func TestBudgets(t *testing.T) {
	need.Bench(t)
	var all []budget.Line
	t.Run("launch", func(t *testing.T) { all = append(all, measureLaunch(t)) })
	t.Run("fork", func(t *testing.T) { all = append(all, measureFork(t)...) })
	budget.Print(t, all...)
}

// measureLaunch compares the driver's way to a guest's first byte on the serial
// port with that of the barest QEMU.
func measureLaunch(t *testing.T) budget.Line {
	harness(t) // looks for QEMU
	d := qemu.New(qemu.Config{})
	caps, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cpu := "max"
	if caps.Accel == hv.AccelKVM {
		cpu = "host"
	}
	kernel := hvtest.Tiny{}.Kernel(t)
	var ours, bare []time.Duration
	for range 20 {
		spec := tiny(t, hvtest.Tiny{})
		start := time.Now()
		vm, err := d.Launch(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		for fi, err := os.Stat(spec.ConsoleLog); err != nil || fi.Size() == 0; fi, err = os.Stat(spec.ConsoleLog) {
			if time.Since(start) > bootTimeout {
				t.Fatal("the guest says nothing")
			}
			time.Sleep(100 * time.Microsecond)
		}
		ours = append(ours, time.Since(start))
		if err := vm.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}

		start = time.Now()
		cmd := exec.CommandContext(t.Context(), caps.Binary, "-M", "microvm", "-accel", string(caps.Accel), "-cpu", cpu, "-m", "16M",
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-kernel", kernel)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		bare = append(bare, time.Since(start))
		cmd.Process.Kill()
		cmd.Wait() // reports the signal that was just sent
	}
	return budget.Ratio("launch-serial", 2, ours, bare, "Launch to the first byte of a guest of half a kilobyte ÷ the barest QEMU to the same")
}

// measureFork compares the way to an agent's answer, forked and booted, and
// looks what memory a fork has of its own.
func measureFork(t *testing.T) []budget.Line {
	b := newBench(t)
	d := qemu.New(qemu.Config{})
	template := b.template(t, d)
	var forked, booted []time.Duration
	var private []float64
	run := func(spec hv.Spec, start func(hv.Spec) (hv.VM, error)) (time.Duration, float64) {
		began := time.Now()
		vm, err := start(spec)
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Kill(context.Background())
		if err := roundTrip(agentClient(vm, false), nil); err != nil {
			t.Fatal(err)
		}
		return time.Since(began), privateMiB(t, vm.Record().PID)
	}
	for range 8 {
		took, memory := run(b.spec(t), func(spec hv.Spec) (hv.VM, error) {
			vm, err := d.Restore(t.Context(), spec, template, hv.RestoreOptions{})
			if err != nil {
				return nil, err
			}
			return vm, vm.Resume(t.Context())
		})
		forked, private = append(forked, took), append(private, memory)
		took, memory = run(b.spec(t), func(spec hv.Spec) (hv.VM, error) { return d.Launch(t.Context(), spec) })
		booted = append(booted, took)
		t.Logf("private memory: fork %.1f MiB, booted %.1f MiB", private[len(private)-1], memory)
	}
	return []budget.Line{
		budget.Ratio("fork-answer", 0.3, forked, booted, "a fork of a template to its agent's answer ÷ a boot to it"),
		{Name: "fork-memory", Value: budget.Percentile(private, 50), Limit: 40, Unit: "M", How: "MiB private to a fork of 64 MiB that has answered, its VMM's own among them"},
	}
}

// template boots a machine, and makes a template of it once its agent answers.
func (b *bench) template(t *testing.T, d *qemu.Driver) hv.Snapshot {
	t.Helper()
	spec := b.spec(t)
	spec.MemoryFile = filepath.Join(t.TempDir(), "memory")
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(context.Background())
	if err := roundTrip(agentClient(vm, false), nil); err != nil {
		t.Fatal(err)
	}
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := vm.(hv.Snapshotter).Snapshot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// privateMiB returns what a process has written to and shares with nobody:
// Private_Dirty of proc_pid_smaps(5).
func privateMiB(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "Private_Dirty: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	t.Fatalf("no Private_Dirty in %q", b)
	return 0
}

// BenchmarkLaunch measures a machine's way to its agent: until Launch returns
// with the guest going, and until the agent has answered.
func BenchmarkLaunch(b *testing.B) {
	bench := newBench(b)
	d := qemu.New(qemu.Config{})
	if _, err := d.Probe(b.Context()); err != nil {
		b.Fatal(err)
	}
	var launched, answered []time.Duration
	for b.Loop() {
		start := time.Now()
		vm, err := d.Launch(b.Context(), bench.spec(b))
		if err != nil {
			b.Fatal(err)
		}
		launched = append(launched, time.Since(start))
		if err := roundTrip(agentClient(vm, false), nil); err != nil {
			b.Fatal(err)
		}
		answered = append(answered, time.Since(start))
		if err := vm.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(median(launched), "launch-ms")
	b.ReportMetric(median(answered), "answer-ms")
}

// BenchmarkAgent measures the agent channel of one machine.
func BenchmarkAgent(b *testing.B) {
	bench := newBench(b)
	vm, err := qemu.New(qemu.Config{}).Launch(b.Context(), bench.spec(b))
	if err != nil {
		b.Fatal(err)
	}
	defer vm.Kill(context.Background())
	if err := roundTrip(agentClient(vm, false), nil); err != nil {
		b.Fatal(err)
	}
	b.Run("dial", func(b *testing.B) {
		for b.Loop() {
			c, err := vm.Agent().Dial(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
	})
	for _, test := range []struct {
		name string
		keep bool
		size int
	}{{"request kept", true, 0}, {"request new stream", false, 0}, {"echo 64 KiB", true, 64 << 10}, {"echo 1 MiB", true, 1 << 20}} {
		b.Run(test.name, func(b *testing.B) {
			c := agentClient(vm, test.keep)
			body := make([]byte, test.size)
			b.SetBytes(2 * int64(test.size))
			for b.Loop() {
				if err := roundTrip(c, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("parallel new streams", func(b *testing.B) {
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			c := agentClient(vm, false)
			for pb.Next() {
				if err := roundTrip(c, nil); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}
