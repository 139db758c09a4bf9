package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

// wakeTest is a waker without a guest around it.
type wakeTest struct {
	*waker
	sys     *fakeSys
	renamed []string
	eras    []uint64
}

func newWakeTest(t *testing.T) *wakeTest {
	w := &wakeTest{sys: newFakeSys(t)}
	w.waker = &waker{
		sys: w.sys, now: w.sys.Uptime, conns: new(conns), who: new(identity), turn: make(chan struct{}, 1),
		rename: func(id wire.Identity) error { w.renamed = append(w.renamed, id.Hostname); return nil },
		begun:  func(epoch uint64) { w.eras = append(w.eras, epoch) },
	}
	w.who.set(wire.Identity{VM: "vm-1", Hostname: "web", Network: &wire.NetworkConfig{MAC: "02:56:00:00:00:01"}})
	w.enable()
	return w
}

func sampleWake(epoch uint64) wire.Wake {
	return wire.Wake{
		Epoch: epoch, Time: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Seed: make([]byte, 32),
		Identity: &wire.Identity{
			VM: "vm-2", Name: "fork", Incarnation: 1, Hostname: "fork", MachineID: strings.Repeat("cd", 16),
			Network: &wire.NetworkConfig{MAC: "02:56:00:00:00:02", Address: netip.MustParsePrefix("192.0.2.8/24")},
		},
	}
}

func TestWake(t *testing.T) {
	all := []string{"clock 2030-01-02", "entropy 32", "hostname fork", "rewire 02:56:00:00:00:01 02:56:00:00:00:02"}
	tests := []struct {
		name  string
		begin uint64
		edit  func(*wire.Wake)
		fail  string // a call
		err   string
		did   []string
		host  string // afterwards
	}{
		{"a new epoch", 0, func(*wire.Wake) {}, "", "", all, "fork"},
		{"the same epoch", 7, func(*wire.Wake) {}, "", "", all[:1], "web"},
		{"an older one", 8, func(*wire.Wake) {}, "", "epoch 7 is over: this guest is in epoch 8", nil, "web"},
		{"without a seed", 0, func(w *wire.Wake) { w.Seed = nil }, "", "seed", nil, "web"},
		{"the same without one", 7, func(w *wire.Wake) { w.Seed = nil }, "", "", all[:1], "web"},
		{"who it was", 0, func(w *wire.Wake) { w.Identity = nil }, "", "", all[:2], "web"},
		{"without a network", 0, func(w *wire.Wake) { w.Identity.Network = nil }, "", "", append(slices.Clone(all[:3]), "rewire 02:56:00:00:00:01"), "fork"},
		{"no clock", 0, func(*wire.Wake) {}, all[0], "clock: operation not permitted", all[:1], "web"},
		{"no entropy", 0, func(*wire.Wake) {}, all[1], "entropy: operation not permitted", all[:2], "web"},
		{"no name", 0, func(*wire.Wake) {}, all[2], "identity: operation not permitted", all[:3], "web"},
		{"no network", 0, func(*wire.Wake) {}, all[3], "network: operation not permitted", all, "web"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWakeTest(t)
			w.epoch = tt.begin
			req := sampleWake(7)
			tt.edit(&req)
			w.sys.fail[tt.fail] = unix.EPERM
			woken, err := w.wake(t.Context(), req)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("wake() = %v, want %q", err, tt.err)
			}
			if got := w.sys.called(); !slices.Equal(got, tt.did) {
				t.Errorf("did %q, want %q", got, tt.did)
			}
			if got := w.who.hostname(); got != tt.host {
				t.Errorf("the guest is %s, want %s", got, tt.host)
			}
			if err == nil && (woken.Epoch != 7 || len(woken.Steps) != len(tt.did) || w.epoch != 7) {
				t.Errorf("woken = %+v in epoch %d", woken, w.epoch)
			}
			if began := err == nil && tt.begin < 7; began != slices.Equal(w.eras, []uint64{7}) {
				t.Errorf("began %v", w.eras)
			}
			if err != nil && tt.fail != "" { // it can be repeated
				delete(w.sys.fail, tt.fail)
				if _, err := w.wake(t.Context(), req); err != nil || w.who.hostname() != "fork" {
					t.Errorf("again: %v, the guest is %s", err, w.who.hostname())
				}
			}
		})
	}
}

// TestWakeTakesTurns has two that come at once, one before the boot is far enough,
// and one whose host does not wait.
func TestWakeTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWakeTest(t)
		w.ready = false
		var conflict *conflictError
		if _, err := w.wake(t.Context(), sampleWake(1)); !errors.As(err, &conflict) || len(w.sys.called()) != 0 {
			t.Errorf("before the boot wake() = %v, did %q", err, w.sys.called())
		}
		w.enable()
		var inside atomic.Int32
		w.rename = func(wire.Identity) error {
			if inside.Add(1) != 1 {
				t.Error("two at once")
			}
			time.Sleep(time.Second)
			inside.Add(-1)
			return nil
		}
		var wg sync.WaitGroup
		for _, epoch := range []uint64{1, 2, 2} {
			wg.Go(func() {
				_, err := w.wake(t.Context(), sampleWake(epoch))
				if err != nil && !(epoch == 1 && errors.As(err, &conflict)) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := w.wake(ctx, sampleWake(3)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a host that does not wait: %v", err)
		}
		wg.Wait()
		if w.epoch != 2 || w.eras[len(w.eras)-1] != 2 || len(w.eras) > 2 {
			t.Errorf("epoch %d after %v", w.epoch, w.eras)
		}
	})
}

// TestWakeEndsConnections runs a whole guest on a fake kernel, whose host is
// attached, has a command and follows the log.
func TestWakeEndsConnections(t *testing.T) {
	g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh", "-c", "echo up; while :; do sleep 0.05; done"},
		Health: &wire.Health{Exec: []string{"true"}, Interval: time.Hour}}, func(s *fakeSys) {
		for _, p := range []string{"/bin/true", "/bin/sleep"} {
			s.linkProgram(t, p)
		}
	})
	await := func(what string, want func(wire.Status) bool) {
		t.Helper()
		var st wire.Status
		for deadline := time.Now().Add(time.Minute); !want(st); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the status never was %s: %+v", what, st)
			}
			g.get(t, wire.PathStatus, &st)
		}
	}
	await("healthy", func(st wire.Status) bool { return st.Healthy != nil && *st.Healthy })

	var ended []<-chan error
	for _, s := range []struct{ path, body string }{
		{wire.PathAttach, ""}, {wire.PathExec, `{"args":["sh","-c","trap 'exit 3' HUP; echo in; while :; do sleep 0.05; done"]}`},
	} {
		ended = append(ended, g.upgrade(t, s.path, s.body))
	}
	logs, err := g.client.Get("http://agent" + wire.PathLogs + "?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Body.Close()
	if _, err := logs.Body.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}

	body, _ := json.Marshal(sampleWake(4))
	resp, err := g.client.Post("http://agent"+wire.PathWake, "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	var woken wire.Woken
	if json.Unmarshal(b, &woken) != nil || resp.StatusCode != http.StatusOK || woken.Epoch != 4 {
		t.Fatalf("POST wake = %d %s", resp.StatusCode, b)
	}
	for _, e := range ended {
		if err := <-e; errors.Is(err, errExited) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a session of the old epoch got %v, want it cut off without an answer", err)
		}
	}
	if _, err := io.Copy(io.Discard, logs.Body); err == nil {
		t.Error("the log stream of the old epoch ended as if it were over")
	}
	await("healthy anew", func(st wire.Status) bool { return st.Epoch == 4 && st.Healthy != nil && *st.Healthy })
	if got := g.sys.content(t, "/etc/hostname"); got != "fork\n" {
		t.Errorf("/etc/hostname = %q", got)
	}
	var hello wire.Hello
	g.get(t, wire.PathHello, &hello)
	if hello.VM != "vm-2" || hello.Epoch != 4 {
		t.Errorf("hello = %+v", hello)
	}
}

// errExited says that a session got an exit status.
var errExited = errors.New("exited")

// upgrade begins a session, waits for its first output, and returns how it ends.
func (g *guestRun) upgrade(t *testing.T, path, body string) <-chan error {
	t.Helper()
	var conn net.Conn
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		conn, err = g.client.Transport.(*http.Transport).DialContext(ctx, network, addr)
		return conn, err
	}}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://agent"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", stdio.Protocol)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s = %d %s", path, resp.StatusCode, b)
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	r := stdio.NewReader(resp.Body)
	if f, err := r.Next(); err != nil || f.Type != stdio.Stdout {
		t.Fatalf("%s: %+v, %v", path, f, err)
	}
	end := make(chan error, 1)
	go func() {
		defer resp.Body.Close()
		for {
			f, err := r.Next()
			if err == nil && f.Type == stdio.Exit {
				err = errExited
			}
			if err != nil {
				end <- err
				return
			}
		}
	}()
	return end
}

// TestRenameInRoot rewrites the files of a machine whose root is an image.
func TestRenameInRoot(t *testing.T) {
	sys := newFakeSys(t)
	sys.withRoot(t)
	r := &root{sys: sys, disks: newDisks(sys)}
	defer r.close()
	cfg := rootConfig(wire.UpperMemory)
	if err := r.enter(t.Context(), cfg, false); err != nil && !errors.Is(err, errSurvived) {
		t.Fatal(err)
	}
	id := *sampleWake(1).Identity
	id.Network.Nameservers = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for range 2 {
		if err := r.rename(id); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"fork\n", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n192.0.2.8\tfork\n", id.MachineID + "\n"} {
		b, err := os.ReadFile(procFD(r.own[i].f))
		if err != nil || string(b) != want {
			t.Errorf("%s = %q, %v, want %q", r.own[i].Path, b, err, want)
		}
	}
	if got := sys.content(t, "/etc/resolv.conf"); got != "nameserver 192.0.2.1\n" {
		t.Errorf("resolv.conf, which the machine had none of, is %q", got)
	}
}
