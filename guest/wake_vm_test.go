package guest_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// wake sends a Wake, which must succeed.
func (m *machine) wake(w wire.Wake) wire.Woken {
	m.t.Helper()
	body, err := json.Marshal(w)
	if err != nil {
		m.t.Fatal(err)
	}
	code, answer := m.request("POST", wire.PathWake, string(body))
	if code != http.StatusOK {
		m.t.Fatalf("POST wake = %d %s", code, answer)
	}
	woken := decode[wire.Woken](m.t, answer)
	for _, s := range woken.Steps {
		m.t.Logf("wake: %-9s took %7.1f ms %s", s.Name, float64(s.Took)/1e6, s.Error)
		if s.Error != "" {
			m.t.Errorf("wake: %s: %s", s.Name, s.Error)
		}
	}
	return woken
}

// another is the identity that the machine of TestVMServes is given.
func another() *wire.Identity {
	return &wire.Identity{
		VM: "vm-2", Name: "fork", Incarnation: 9, Hostname: "fork", MachineID: strings.Repeat("fedcba9876543210", 2),
		Network: &wire.NetworkConfig{
			MAC: "02:56:00:00:00:22", Address: netip.MustParsePrefix("10.9.8.7/16"), Gateway: netip.MustParseAddr("10.9.0.1"),
			MTU: 1300, Nameservers: []netip.Addr{netip.MustParseAddr("10.9.0.1")},
		},
	}
}

// testWake makes the machine of TestVMServes another one.
func (m *machine) testWake() {
	t := m.t
	follow, err := m.client.Get("http://agent" + wire.PathLogs + "?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Body.Close()
	entries := bufio.NewReader(follow.Body)
	if _, err := entries.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	before := decode[wire.Status](t, m.get(wire.PathStatus))
	lines := len(m.logs())
	random := m.get(wire.PathWorkload + "/random")

	at := time.Date(2032, 1, 2, 3, 4, 5, 0, time.UTC)
	w := wire.Wake{Epoch: 1, Time: at, Seed: bytes.Repeat([]byte{3}, 64), Identity: another()}
	start := time.Now()
	woken := m.wake(w)
	t.Logf("a new epoch took %v", time.Since(start))
	var names []string
	for _, s := range woken.Steps {
		names = append(names, s.Name)
	}
	if want := []string{"clock", "entropy", "identity", "network"}; woken.Epoch != 1 || !slices.Equal(names, want) {
		t.Errorf("woken = %+v, want the steps %q", woken, want)
	}
	for err = nil; err == nil; {
		_, err = entries.ReadString('\n') // without an end the test's time is up
	}
	hello := decode[wire.Hello](t, m.get(wire.PathHello))
	if hello.VM != "vm-2" || hello.Incarnation != 9 || hello.Epoch != 1 {
		t.Errorf("hello = %+v", hello)
	}
	st := m.await("healthy in the new epoch", func(st wire.Status) bool {
		if st.Epoch != 1 {
			t.Errorf("status = %+v, want the new epoch", st)
		}
		return st.Healthy != nil && *st.Healthy
	})
	if st.Seq < before.Seq+2 || st.PID != before.PID || st.Restarts != before.Restarts {
		t.Errorf("status = %+v after %+v, want a new verdict on the same process", st, before)
	}
	logs := m.logs()
	if len(logs) <= lines || logs[len(logs)-1].Seq != logs[0].Seq+uint64(len(logs))-1 {
		t.Errorf("the log of %d lines does not go on: %d", lines, len(logs))
	}
	for path, want := range map[string]string{
		"/etc/hostname":    "fork\n",
		"/etc/machine-id":  w.Identity.MachineID + "\n",
		"/etc/resolv.conf": "nameserver 10.9.0.1\n",
		"/etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.9.8.7\tfork\n",
	} {
		if got := m.get(wire.PathWorkload + "/file?path=" + path); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
	var sec int64
	clock := m.get(wire.PathWorkload + "/clock")
	fmt.Sscan(clock, &sec)
	if off := time.Unix(sec, 0).Sub(at); off < 0 || off > time.Minute || !strings.HasSuffix(clock, " fork\n") {
		t.Errorf("clock and name are %q, want %v", clock, at)
	}
	got := m.get(wire.PathWorkload + "/net")
	for _, want := range []string{"02:56:00:00:00:22 mtu=1300 up", "[10.9.8.7/16 fe80::56:ff:fe00:22/64]", "\t00000000\t0100090A\t"} {
		if !strings.Contains(got, want) {
			t.Errorf("the network lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "192.168.127.") || strings.Contains(got, "007FA8C0") || strings.Contains(got, "00:00:02") {
		t.Errorf("something of the former network is left:\n%s", got)
	}
	if again := m.get(wire.PathWorkload + "/random"); again == random || len(again) != len(random) {
		t.Errorf("random bytes are %q after %q", again, random)
	}

	// A second time it is the clock alone, and an older epoch is over.
	if woken := m.wake(wire.Wake{Epoch: 1, Time: time.Now(), Identity: &wire.Identity{VM: "x", Incarnation: 1, Hostname: "x", MachineID: w.Identity.MachineID}}); len(woken.Steps) != 1 {
		t.Errorf("again = %+v, want the clock alone", woken)
	}
	if code, body := m.request("POST", wire.PathWake, `{"time":"2031-01-01T00:00:00Z"}`); code != http.StatusConflict || !strings.Contains(body, "epoch 0 is over") {
		t.Errorf("an older epoch = %d %s, want a conflict", code, body)
	}
	m.testStops()
}

// testStops stops the machine for a while, as for a snapshot, and sets its clock
// right.
func (m *machine) testStops() {
	t := m.t
	qmp, err := net.Dial("unix", m.path("qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer qmp.Close()
	answers := bufio.NewReader(qmp)
	say := func(command, event string) {
		t.Helper()
		fmt.Fprintf(qmp, `{"execute":%q}`, command)
		_ = qmp.SetDeadline(time.Now().Add(vmTimeout))
		for {
			line, err := answers.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(line, event) {
				return
			}
		}
	}
	say("qmp_capabilities", "return")
	say("stop", "STOP")
	time.Sleep(time.Second)
	say("cont", "RESUME")
	woken := m.wake(wire.Wake{Epoch: 1, Time: time.Now()})
	if off := time.Since(woken.Time); off < 0 || off > 30*time.Second {
		t.Errorf("the clock is off by %v", off)
	}
	m.get(wire.PathWorkload + "/clock")
}
