package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/hv/vmm"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// scriptedMonitor is a QMP monitor in this process. serve is called with each
// command; what it returns is sent, %d standing for the command's id.
func scriptedMonitor(t *testing.T, hello string, serve func(command string) string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, hello)
				sc := bufio.NewScanner(c)
				for sc.Scan() {
					var cmd struct {
						Execute string
						ID      uint64
					}
					if err := json.Unmarshal(sc.Bytes(), &cmd); err != nil {
						t.Errorf("command %q: %v", sc.Bytes(), err)
						return
					}
					answer := `{"return": {}, "id": %d}`
					if cmd.Execute != "qmp_capabilities" {
						answer = serve(cmd.Execute)
					}
					if answer == "hang up" {
						return
					}
					io.WriteString(c, strings.ReplaceAll(answer, "%d", fmt.Sprint(cmd.ID))+"\r\n")
				}
			}()
		}
	}()
	return path
}

func TestMonitor(t *testing.T) {
	var mu sync.Mutex
	var events []string
	path := scriptedMonitor(t, greeting, func(command string) string {
		switch command {
		case "query-status":
			return `{"event": "STOP", "timestamp": {}}` + "\r\nnot json\r\n" + `{"return": {"status": "later"}, "id": 999}` + "\r\n" +
				`{"return": {"status": "running", "unknown": [1, {}]}, "id": %d}`
		case "fail":
			return `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`
		case "silent":
			return ""
		case "wrong":
			return `{"return": [], "id": %d}`
		case "huge":
			return strings.Repeat("x", maxMessage+10)
		}
		return "hang up"
	})
	open := func() *monitor {
		t.Helper()
		m, err := openMonitor(t.Context(), path, os.Getpid(), func(event string, _ json.RawMessage) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, event)
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.close)
		return m
	}
	m := open()
	var out struct{ Status string }
	if err := m.run(t.Context(), "query-status", nil, &out); err != nil || out.Status != "running" {
		t.Errorf("query-status = %+v, %v, want running", out, err)
	}
	mu.Lock()
	if len(events) != 1 || events[0] != "STOP" {
		t.Errorf("events = %q, want STOP", events)
	}
	mu.Unlock()
	var refused *monitorError
	if err := m.run(t.Context(), "fail", nil, nil); !errors.As(err, &refused) || refused.Class != "GenericError" {
		t.Errorf("fail: %v, want a GenericError", err)
	}
	if err := m.run(t.Context(), "wrong", nil, &out); err == nil {
		t.Error("an answer of another shape was taken")
	}
	brief, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.run(brief, "silent", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v, want DeadlineExceeded", err)
	}
	// A late answer is nobody's; the monitor is usable.
	if err := m.run(t.Context(), "query-status", nil, &out); err != nil {
		t.Errorf("query-status after a timeout: %v", err)
	}
	// A context that is over before the command is written.
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if err := open().run(late, "query-status", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late to be written: %v, want DeadlineExceeded", err)
	}
	for _, end := range []string{"huge", "bye"} {
		m := open()
		if err := m.run(t.Context(), end, nil, nil); err == nil {
			t.Errorf("%s: no error", end)
		}
		<-m.done
		if err := m.run(t.Context(), "query-status", nil, nil); err == nil {
			t.Errorf("query-status after %s: no error", end)
		}
	}
}

// TestOpenMonitorAfterAnother has what QEMU 7.2 was seen to say to the client
// that comes after one that was killed.
func TestOpenMonitorAfterAnother(t *testing.T) {
	for _, left := range []string{
		`{"return": {}, "id": 8}` + "\r\n",
		`"id": 8}` + "\r\n" + `{"event": "STOP", "timestamp": {}}` + "\r\n",
	} {
		path := scriptedMonitor(t, left+greeting+`{"return": {"status": "of another"}, "id": 2}`+"\r\n", func(string) string {
			return `{"return": {"status": "running"}, "id": %d}`
		})
		m, err := openMonitor(t.Context(), path, os.Getpid(), nil)
		if err != nil {
			t.Errorf("openMonitor when QEMU first says %q: %v", left, err)
			continue
		}
		var out struct{ Status string }
		if err := m.run(t.Context(), "query-status", nil, &out); err != nil || out.Status != "running" {
			t.Errorf("query-status = %+v, %v, want running", out, err)
		}
		m.close()
	}
}

func TestOpenMonitorRefuses(t *testing.T) {
	none := func(string) string { return "" }
	brief := func(path string, pid int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		m, err := openMonitor(ctx, path, pid, nil)
		if err == nil {
			m.close()
		}
		return err
	}
	// As a monitor that serves another client already: the kernel accepts.
	if err := brief(scriptedMonitor(t, "", none), os.Getpid()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no greeting: %v, want DeadlineExceeded", err)
	}
	if err := brief(scriptedMonitor(t, `{"hello": 1}`+"\n", none), os.Getpid()); err == nil {
		t.Error("a greeting of another protocol was taken")
	}
	if err := brief(scriptedMonitor(t, greeting, none), os.Getpid()+1); err == nil || !strings.Contains(err.Error(), "served by process") {
		t.Errorf("a monitor of another process: %v, want it named", err)
	}
	if err := brief(filepath.Join(t.TempDir(), "missing"), os.Getpid()); !vmm.NotListening(err) {
		t.Errorf("a missing socket: %v, want one that is worth trying again", err)
	}
}
