package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
)

func TestReadJournal(t *testing.T) {
	const (
		noise = `{"QMP": {"version": {}}}` + "\r\n" + `{"return": {}}` + "\r\n" + `{"timestamp": {}, "event": "RESUME"}` + "\r\n"
		off   = `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}` + "\r\n"
		reset = `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\r\n"
		panik = `{"event": "GUEST_PANICKED", "data": {"action": "pause"}}` + "\r\n"
		quit  = `{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}` + "\r\n"
		term  = `{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}` + "\r\n"
	)
	tests := []struct {
		name, in string
		want     hv.ExitReason // "" for none
	}{
		{"empty", "", ""},
		{"still running", noise, ""},
		{"power-off and clean-up", noise + off + quit, hv.ExitShutdown},
		{"reset", noise + reset, hv.ExitReset},
		{"panic", noise + panik + quit, hv.ExitPanic},
		{"quit", noise + quit, hv.ExitKilled},
		{"signal", noise + term, hv.ExitCrashed},
		{"torn at the front", `data": {"guest": true}}` + "\n" + off, hv.ExitShutdown},
		{"torn at the end", noise + reset[:30], ""},
		{"cut to the last part", strings.Repeat(noise, maxJournal/len(noise)+1) + reset, hv.ExitReset},
		{"no reason", `{"event": "SHUTDOWN"}`, hv.ExitCrashed},
	}
	for _, test := range tests {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, journalFile), []byte(test.in), 0o600); err != nil {
			t.Fatal(err)
		}
		exit, ok := readJournal(dir)
		if exit.Reason != test.want || ok != (test.want != "") || ok && exit.Detail == "" {
			t.Errorf("readJournal(%s) = %+v, %v, want %q", test.name, exit, ok, test.want)
		}
	}
	if exit, ok := readJournal(t.TempDir()); ok {
		t.Errorf("readJournal of an empty directory = %+v", exit)
	}
}

func TestCutLogs(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int64{logFile: maxLog + 1, journalFile: maxLog} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		cutLogs(dir)
		if _, err := f.WriteString("next"); err != nil {
			t.Fatal(err)
		}
		want := size + 4
		if size > maxLog {
			want = maxLog/2 + 4
		}
		if fi, err := f.Stat(); err != nil || fi.Size() != want {
			t.Errorf("%s has %d bytes, %v, want %d", name, fi.Size(), err, want)
		}
	}
}
