package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

func TestProbes(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
		case "/moved":
			http.Redirect(w, r, "/broken", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "no database%s", strings.Repeat(".", 1<<20))
		}
	}))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	accept := func(base string) probe {
		p, err := newAcceptProbe(base)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	tests := []struct {
		name string
		ask  probe
		ok   bool
	}{
		{"2xx", newProbe(wire.Health{HTTP: srv.URL + "/ok"}), true},
		{"3xx", newProbe(wire.Health{HTTP: srv.URL + "/moved"}), true},
		{"5xx", newProbe(wire.Health{HTTP: srv.URL + "/broken"}), false},
		{"slow", newProbe(wire.Health{HTTP: srv.URL + "/slow", Timeout: 20 * time.Millisecond}), false},
		{"tcp", newProbe(wire.Health{TCP: addr}), true},
		{"tcp closed", newProbe(wire.Health{TCP: closed.Addr().String()}), false},
		{"accept", accept(srv.URL), true},
		{"accept closed", accept("http://" + closed.Addr().String() + "/base"), false},
	}
	for _, tt := range tests {
		err := tt.ask(t.Context())
		if (err == nil) != tt.ok {
			t.Errorf("%s: probe = %v, want success %v", tt.name, err, tt.ok)
		}
		if tt.name == "5xx" && (!strings.HasPrefix(err.Error(), "status 503: no database") || len(err.Error()) > probeTail+20) {
			t.Errorf("probe = %.80q..., %d bytes; want the answer's beginning", err, len(err.Error()))
		}
	}
}

func TestAwaitReadyAsksOftenAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, asked := time.Now(), 0
		ready := healthCheck{pace: pace{probeMin, probeMax}}
		ready.ask = func(context.Context) error {
			asked++
			if time.Since(start) < 10*time.Second {
				return errors.New("not yet")
			}
			return nil
		}
		ok := ready.awaitReady(t.Context())
		if late := time.Since(start) - 10*time.Second; !ok || late > probeMax || asked < 40 || asked > 100 {
			t.Errorf("ready %v, seen %v late, asked %d times", ok, late, asked)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ready.ask = func(context.Context) error { return errors.New("never") }
		if ready.awaitReady(ctx) {
			t.Error("ready without success")
		}
	})
}

func TestWatchHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// One character is one probe.
		results := ".x.xx.xxx.xxxx..x"
		var told []string
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		check := (&workload{}).newHealthCheck(wire.Health{TCP: "x:1", Interval: time.Second}, func(f finding) {
			if (f.err == nil) != (f.streak == 0) || f.healthy == nil || *f.healthy != (f.streak < healthRetries) {
				t.Errorf("probe %d: found %+v", n, f)
			}
			told = append(told, fmt.Sprint(n, ":", f.streak))
		})
		check.ask = func(context.Context) error {
			if n == len(results) {
				cancel()
				return ctx.Err()
			}
			n++
			if results[n-1] == 'x' {
				return errors.New("failed")
			}
			return nil
		}
		check.watch(ctx)
		want := []string{"2:1", "3:0", "4:1", "5:2", "6:0", "7:1", "8:2", "9:3", "10:0", "11:1", "12:2", "13:3", "14:4", "15:0", "17:1"}
		if !slices.Equal(told, want) {
			t.Errorf("probe:streak told are %v, want %v", told, want)
		}
	})
}

// TestStartPeriod has a workload that comes up late or never.
func TestStartPeriod(t *testing.T) {
	tests := []struct {
		name  string
		up    time.Duration // when it comes up; 0 for never
		start time.Duration // start period
		sick  time.Duration // when it is said to be unhealthy; 0 for never
	}{
		{"in its start period", 50 * time.Second, time.Minute, 0},
		{"before three intervals", 25 * time.Second, 0, 0},
		{"after three intervals", 60 * time.Second, 0, 30 * time.Second},
		{"never", 0, time.Minute, 90 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				sick, told := time.Duration(0), 0
				check := (&workload{}).newHealthCheck(wire.Health{TCP: "x:1", StartPeriod: tt.start}, func(f finding) {
					told++
					if f.err == nil || f.healthy != nil && *f.healthy || f.streak > 0 && time.Since(begin) < tt.start {
						t.Errorf("found %+v after %v", f, time.Since(begin))
					}
					if f.healthy != nil && sick == 0 {
						sick = time.Since(begin)
					}
				})
				check.ask = func(context.Context) error {
					if tt.up == 0 || time.Since(begin) < tt.up {
						return errors.New("not yet")
					}
					return nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				if ready := check.awaitReady(ctx); ready != (tt.up > 0) {
					t.Errorf("ready = %v", ready)
				}
				if off := sick - tt.sick; off < 0 || off > time.Second {
					t.Errorf("unhealthy after %v, want %v", sick, tt.sick)
				}
				if most := int(time.Since(begin) / wire.DefaultHealthInterval); told < most/2 || told > most {
					t.Errorf("told %d times in %v, want once in %v at most", told, time.Since(begin), wire.DefaultHealthInterval)
				}
			})
		})
	}
}
