package cloudhypervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// written is an event as Cloud Hypervisor writes it.
func written(source, name string) string {
	return fmt.Sprintf(`{
  "timestamp": {
    "secs": 1,
    "nanos": 5
  },
  "source": %q,
  "event": %q,
  "properties": {
    "id": "{\n}"
  }
}

`, source, name)
}

// decode feeds text to a decoder in pieces of n bytes.
func decode(text string, n int) []string {
	var d decoder
	var got []string
	for piece := range slices.Chunk([]byte(text), n) {
		d.write(piece, func(e event) { got = append(got, e.Source+" "+e.Event) })
	}
	return got
}

func TestDecoder(t *testing.T) {
	a, b := written("vm", "booted"), written("vm", "rebooting")
	tests := []struct {
		name, text string
		want       string
	}{
		{"two", a + b, "vm booted,vm rebooting"},
		{"unfinished", a + b[:len(b)-4], "vm booted"},
		{"nothing", "", ""},
		{"cut off within a value, then whole", a[:len(a)/2] + b, "vm rebooting"},
		{"cut off at a line, then whole", a[:strings.Index(a, `  "source"`)] + b, "vm rebooting"},
		{"the end of one, then whole", a[len(a)/2:] + b, "vm rebooting"},
		{"a hole", strings.Repeat("\x00", 5000) + b, "vm rebooting"},
		{"a hole up to the middle of one", strings.Repeat("\x00", 4096) + a[20:] + b, "vm rebooting"},
		{"on one line", `{"source":"vm","event":"paused"}` + "\n" + b, "vm paused,vm rebooting"},
		{"no event", "{\n}\n\n{\n  \"source\": 1\n}\n" + b, "vm rebooting"},
		{"endless line", strings.Repeat("x", 3*maxEvent) + "\n" + b, "vm rebooting"},
		{"endless object", "{\n" + strings.Repeat("  \"x\": 1,\n", maxEvent) + b, "vm rebooting"},
		{"carriage returns", strings.ReplaceAll(a, "\n", "\r\n"), "vm booted"},
	}
	for _, test := range tests {
		for _, n := range []int{1, 7, 1 << 20} {
			if got := strings.Join(decode(test.text, n), ","); got != test.want {
				t.Errorf("%s, in pieces of %d: got %q, want %q", test.name, n, got, test.want)
			}
		}
	}
}

// FuzzDecoder wants what is found not to depend on how the bytes come, and a
// whole event to be found whatever comes before it.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte(written("vm", "booted")), 3)
	f.Add([]byte("{\n\x00}\n{"), 1)
	f.Add([]byte(written("vm", "booted")[:40]), 2)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 || len(b) > 4096 {
			return
		}
		text := string(b) + "\n" + written("guest", "panic")
		got := decode(text, n)
		if whole := decode(text, len(text)); !slices.Equal(got, whole) {
			t.Errorf("in pieces of %d: %q, in one: %q", n, got, whole)
		}
		if !slices.Contains(got, "guest panic") {
			t.Errorf("got %q, without the last event", got)
		}
	})
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), eventsFile)
	j := journal{path: path}
	defer func() { j.close() }()
	var got []string
	read := func() string {
		t.Helper()
		got = nil
		if err := j.read(func(e event) { got = append(got, e.Event) }); err != nil {
			t.Fatal(err)
		}
		return strings.Join(got, ",")
	}
	if err := j.read(nil); !os.IsNotExist(err) {
		t.Errorf("read without a file: %v", err)
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	write := func(text string) {
		t.Helper()
		if _, err := file.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	a := written("vm", "a")
	write(a[:30])
	if s := read(); s != "" {
		t.Errorf("read %q of an unfinished event", s)
	}
	write(a[30:])
	if s := read(); s != "a" {
		t.Errorf("read %q, want a", s)
	}

	// Much of it is given back, and what follows is still found: also by one
	// who comes later.
	n := 2 * maxEvents / len(a)
	write(strings.Repeat(a, n))
	if read(); len(got) != n {
		t.Errorf("read %d events, want %d", len(got), n)
	}
	j.giveBack()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > maxEvents/4 {
		t.Errorf("the file holds %d KiB after most of it was given back", st.Blocks/2)
	}
	write(written("vm", "rebooting"))
	if s := read(); s != "rebooting" {
		t.Errorf("read %q, want rebooting", s)
	}
	if exit, ok := readJournal(filepath.Dir(path)); !ok || exit.Reason != hv.ExitReset {
		t.Errorf("readJournal = %+v, %v, want reset", exit, ok)
	}

	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	write(written("vm", "b"))
	if s := read(); s != "b" {
		t.Errorf("read %q of a truncated file, want b", s)
	}
}

// TestReadJournal: what the guest did first is how the machine ended.
func TestReadJournal(t *testing.T) {
	quit := written("vm", "shutdown") + written("vm", "deleted") + written("vmm", "shutdown")
	tests := []struct {
		name, text string
		want       hv.ExitReason
	}{
		{"power-off", written("vm", "booted") + quit, hv.ExitShutdown},
		{"reset, then quit", written("vm", "rebooting") + written("vm", "rebooted") + quit, hv.ExitReset},
		{"panic, then reset", written("guest", "panic") + written("vm", "rebooting"), hv.ExitPanic},
		{"reset, only the end of it written", written("vm", "rebooted"), hv.ExitReset},
		{"the VMM's own end", written("vmm", "shutdown"), ""},
		{"a device's reset", written("virtio-device", "reset"), ""},
		{"no event", "", ""},
	}
	for _, test := range tests {
		dir := t.TempDir()
		if err := os.WriteFile(eventsPath(dir), []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if exit, ok := readJournal(dir); exit.Reason != test.want || ok != (test.want != "") {
			t.Errorf("%s: %+v, %v, want %q", test.name, exit, ok, test.want)
		}
	}
	if exit, ok := readJournal(t.TempDir()); ok {
		t.Errorf("without a file: %+v", exit)
	}
}
