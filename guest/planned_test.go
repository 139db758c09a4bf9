package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// startPlanned does what the shim does: it starts a workload, and leaves the near
// ends of its output open.
func startPlanned(t *testing.T, script string) *planned {
	t.Helper()
	p := &planned{since: time.Second}
	var far []uintptr
	for _, near := range []*int{&p.out, &p.err} {
		var ends [2]int
		if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		*near = ends[0]
		far = append(far, uintptr(ends[1]))
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p.pid, _, err = syscall.StartProcess("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
		Files: append([]uintptr{null.Fd()}, far...), Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range far {
		syscall.Close(int(fd))
	}
	return p
}

// shimSays is what the shim tells of p.
func shimSays(p *planned) string { return fmt.Sprintf("1,4,2,3,%d,%d,%d", p.pid, p.out, p.err) }

// TestPlanned has kestrel go on with a workload that the shim has started.
func TestPlanned(t *testing.T) {
	// The first is over before kestrel looks, and is started again as any is.
	g := runGuest(t, wire.WorkloadConfig{
		Args: []string{"sh", "-c", "echo again; exit 4"}, Restart: wire.RestartOnFailure, RestartMax: 1,
	}, func(s *fakeSys) { s.shim = shimSays(startPlanned(t, "echo first; echo bad >&2; exit 3")) })
	told := make(chan string, 1)
	go func() { told <- g.read(t, wire.PathLogs+"?follow=true") }()
	st := g.await(t, wire.WorkloadExited)
	if st.Exit == nil || st.Exit.Code != 4 || st.Restarts != 1 {
		t.Errorf("status = %+v, want exit status 4 after one restart", st)
	}
	logs := <-told
	for _, want := range []string{`"stdout","data":"first"`, `"stderr","data":"bad"`, `"data":"again"`} {
		if !strings.Contains(logs, want) {
			t.Errorf("the log lacks %s:\n%s", want, logs)
		}
	}
	for _, step := range g.sys.called() {
		if step == "loopback" || strings.HasPrefix(step, "mount ") && strings.Contains(step, "/run") || strings.HasPrefix(step, "hostname") {
			t.Errorf("kestrel did %q again", step)
		}
	}
	var names []string
	for _, s := range st.Timeline {
		names = append(names, s.Name)
	}
	for _, name := range []string{"identity", "entropy", "network"} {
		if slices.Contains(names, name) {
			t.Errorf("the timeline is %q: %s was taken twice", names, name)
		}
	}
	if !slices.Contains(names, "plan") || !slices.Contains(names, "workload") {
		t.Errorf("the timeline is %q, want the plan and the workload in it", names)
	}
}

// TestPlannedStops stops one that runs, and wakes its guest before.
func TestPlannedStops(t *testing.T) {
	var p *planned
	g := runGuest(t, wire.WorkloadConfig{Args: []string{"sh"}}, func(s *fakeSys) {
		p = startPlanned(t, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
		s.shim = shimSays(p)
	})
	if st := g.await(t, wire.WorkloadRunning); st.PID != p.pid {
		t.Errorf("status = %+v, want process %d running", st, p.pid)
	}
	g.post(t, wire.PathWake, sampleWake(2))
	g.post(t, wire.PathShutdown, wire.Shutdown{})
	if st := g.await(t, wire.WorkloadExited); st.Exit == nil || st.Exit.Code != 5 {
		t.Errorf("status = %+v, want exit status 5", st)
	}
	g.over(t)
}

// read returns what GET of a path answers.
func (g *guestRun) read(t *testing.T, path string) string {
	t.Helper()
	resp, err := g.client.Get("http://agent" + path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// post wants a request to be accepted.
func (g *guestRun) post(t *testing.T, path string, body any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.client.Post("http://agent"+path, "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		t.Errorf("POST %s = %d %s", path, resp.StatusCode, text)
	}
}
