package daemon

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// stored fills the world's database with n VMs that have ended, before any
// daemon opens it.
func (w *world) stored(n int, status api.VMState, desired api.VMDesired) {
	w.t.Helper()
	d := w.start(options{notRunning: true})
	d.equip()
	p, err := d.db.Plugin(context.Background(), "serve")
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range n {
		_, _, err := d.db.CreateVM(context.Background(), row.NewVM{VM: row.VM{
			VM: api.VM{
				ID: fmt.Sprintf("aaaaaaa%s", base5(i)), Name: fmt.Sprintf("stored-%d", i), Plugin: "serve", Runtime: "serve", Status: status, Desired: desired,
				MACAddress: fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255), VsockCID: uint32(3 + i), CPUCores: 1, MemoryMB: 64,
				Labels: map[string]string{"tier": "web", "owner": "somebody"},
			},
			PluginVersion: p.Version,
		}, Manifest: p.Manifest, Blobs: manifestBlobs(&p.Manifest), Lease: d.cfg.Pool.Lowest}, api.Event{Type: api.EventVMCreated})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	d.stop()
}

// base5 is n as five characters of an id.
func base5(n int) string {
	b := []byte("aaaaa")
	for i := 4; i >= 0; i-- {
		b[i] += byte(n % 26)
		n /= 26
	}
	return string(b)
}

func percentile(took []time.Duration, p float64) float64 {
	slices.Sort(took)
	return float64(took[int(p*float64(len(took)-1))].Microseconds()) / 1000
}

// BenchmarkCreateVM is what POST /vms costs below HTTP, with 1,000 VMs stored:
// durable, address assigned. Budget: 10 ms p50, 30 ms p99.
func BenchmarkCreateVM(b *testing.B) {
	ctx := context.Background()
	w := newWorld(b)
	w.stored(1000, api.VMStopped, api.DesiredStopped)
	d := w.start(options{})
	<-d.Ready()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("new-%d", i)
		begin := time.Now()
		vm, err := d.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "serve", Stopped: true})
		took = append(took, time.Since(begin))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := d.db.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(percentile(took, 0.5), "p50-ms")
	b.ReportMetric(percentile(took, 0.99), "p99-ms")
}

// BenchmarkStartVM is all that the daemon does from the request to a healthy
// workload, with a hypervisor and a guest that take no time.
func BenchmarkStartVM(b *testing.B) {
	w := newWorld(b)
	d := w.start(options{})
	d.equip()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("vm-%d", i)
		begin := time.Now()
		d.create(name, "serve")
		d.must(name, api.WaitHealthy)
		took = append(took, time.Since(begin))
		b.StopTimer()
		if err := d.DeleteVM(context.Background(), name, api.VMStop{Force: true}); err != nil {
			b.Fatal(err)
		}
		d.must(name, api.WaitDeleted)
		b.StartTimer()
	}
	b.ReportMetric(percentile(took, 0.5), "p50-ms")
}

// BenchmarkReconcile is how long a daemon takes until it is ready: with 1,000
// VMs that have ended, and with 200 that run and are adopted.
func BenchmarkReconcile(b *testing.B) {
	b.Run("stored=1000", func(b *testing.B) {
		w := newWorld(b)
		w.stored(1000, api.VMStopped, api.DesiredStopped)
		for b.Loop() {
			d := w.start(options{})
			<-d.Ready()
			b.StopTimer()
			d.stop()
			b.StartTimer()
		}
	})
	b.Run("running=200", func(b *testing.B) {
		w := newWorld(b)
		w.stored(200, api.VMPending, api.DesiredRunning)
		d := w.start(options{})
		d.settle()
		d.stop()
		for b.Loop() {
			d := w.start(options{})
			d.settle()
			b.StopTimer()
			d.stop()
			b.StartTimer()
		}
	})
}

// BenchmarkLogs is how fast the lines of a guest that never ends get from its
// stream to the disk.
func BenchmarkLogs(b *testing.B) {
	line := []byte(`{"seq":1,"time":"2026-01-01T00:00:00.123456789Z","stream":"stdout","data":"` + strings.Repeat("x", 80) + `"}` + "\n")
	head, rest := line[:len(`{"seq":`)], line[len(`{"seq":1`):]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := bufio.NewWriterSize(w, 64<<10)
		for seq := 1; seq <= b.N; seq++ {
			_, _ = out.Write(head)
			_, _ = out.WriteString(strconv.Itoa(seq))
			_, _ = out.Write(rest)
		}
		_ = out.Flush()
	}))
	defer srv.Close()
	a := newAgent(dialer{srv.Listener.Addr().String()})
	defer a.close()
	l := testLogFile(b.TempDir(), 1)
	l.limit = logLimit
	defer l.close()
	b.SetBytes(80)
	b.ReportAllocs()
	b.ResetTimer()
	if err := a.logs(b.Context(), 0, l.keep); err != nil {
		b.Fatal(err)
	}
}
