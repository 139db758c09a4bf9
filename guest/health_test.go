package guest

import (
	"context"
	"errors"
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
		if err := tt.ask(t.Context()); (err == nil) != tt.ok {
			t.Errorf("%s: probe = %v, want success %v", tt.name, err, tt.ok)
		}
	}
}

func TestAwaitReadyAsksOftenAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, asked := time.Now(), 0
		ok := awaitReady(t.Context(), func(context.Context) error {
			asked++
			if time.Since(start) < 10*time.Second {
				return errors.New("not yet")
			}
			return nil
		})
		if late := time.Since(start) - 10*time.Second; !ok || late > probeMax || asked < 40 || asked > 100 {
			t.Errorf("ready %v, seen %v late, asked %d times", ok, late, asked)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if awaitReady(ctx, func(context.Context) error { return errors.New("never") }) {
			t.Error("ready without success")
		}
	})
}

func TestWatchHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// One character is one probe.
		results := ".x.xx.xxx.xxxx..x"
		var verdicts []int
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		watchHealth(ctx, wire.Health{Interval: time.Second}, func(context.Context) error {
			if n == len(results) {
				cancel()
				return ctx.Err()
			}
			n++
			if results[n-1] == 'x' {
				return errors.New("failed")
			}
			return nil
		}, func(healthy bool, err error) {
			if healthy == (err != nil) {
				t.Errorf("verdict(%v, %v)", healthy, err)
			}
			v := -n
			if healthy {
				v = n
			}
			verdicts = append(verdicts, v)
		})
		if want := []int{-9, 10, -13, 15}; !slices.Equal(verdicts, want) {
			t.Errorf("verdicts at %v, want %v", verdicts, want)
		}
	})
}
