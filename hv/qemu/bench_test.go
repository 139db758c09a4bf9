package qemu_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/qemu"
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
