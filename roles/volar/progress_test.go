package volar

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// TestImageProgressLines checks what a log sees: nothing of quick work, and one
// line for each step of long work.
func TestImageProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var errOut bytes.Buffer
		c := &cli{stderr: &errOut, progressAfter: 2 * time.Second}
		p := c.imageProgress("nginx:alpine")
		p.report(api.ImageProgress{Step: "download", Item: "sha256:a", Done: 5, Total: 10})
		time.Sleep(time.Second)
		p.end()
		if errOut.Len() != 0 {
			t.Errorf("quick work writes %q", &errOut)
		}

		p = c.imageProgress("nginx:alpine")
		time.Sleep(3 * time.Second) // a registry that takes its time
		p.report(api.ImageProgress{Step: "download", Item: "sha256:a", Done: 1 << 20, Total: 3 << 20})
		p.report(api.ImageProgress{Step: "download", Item: "sha256:b", Total: 1 << 20})
		time.Sleep(4 * time.Second)
		p.report(api.ImageProgress{Step: "write", Done: 1 << 10})
		time.Sleep(2 * time.Second)
		p.report(api.ImageProgress{Step: "po\x1blish", Item: "x"}) // a later daemon's
		time.Sleep(2 * time.Second)
		p.end()
		want := "volar: nginx:alpine: asking the registry\n" +
			"volar: nginx:alpine: fetching, 1.0 MiB of 4.0 MiB\n" +
			"volar: nginx:alpine: writing, 1.0 KiB\n" +
			"volar: nginx:alpine: po\uFFFDlish\n"
		if errOut.String() != want {
			t.Errorf("long work writes %q, want %q", &errOut, want)
		}
	})
}

// TestImageProgressBounds checks that a daemon that counts without end fills no
// memory, and that nonsense is not printed as sizes.
func TestImageProgressBounds(t *testing.T) {
	p := &imageProgress{c: &cli{stderr: &bytes.Buffer{}}, what: "x", items: map[string]api.ImageProgress{}}
	for i := range 10 * maxItems {
		p.report(api.ImageProgress{Step: "download", Item: strings.Repeat("x", i%2000), Done: -1, Total: -1})
	}
	if len(p.items) > maxItems {
		t.Errorf("%d items are kept", len(p.items))
	}
	if got := p.words(); got != "x: fetching" {
		t.Errorf("words = %q", got)
	}
}

// TestImageProgressTerminal checks that the line on a terminal fits, vanishes at
// the end, and makes way for notes.
func TestImageProgressTerminal(t *testing.T) {
	master, slave := terminal(t, 30)
	c := &cli{stderr: slave, progressAfter: 10 * time.Millisecond}
	var seen bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for !bytes.HasSuffix(seen.Bytes(), []byte("END\r\n")) {
			n, err := master.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				return
			}
		}
	})
	p := c.imageProgress("registry.example:5000/team/app")
	p.report(api.ImageProgress{Step: "download", Item: "sha256:a", Done: 1, Total: 3})
	c.notef("a note")
	p.draw()
	p.end()
	c.notef("END")
	wg.Wait()
	text := seen.String()
	if !strings.Contains(text, eraseLine+"volar: registry.example:5000…") {
		t.Errorf("the line is not drawn to fit: %q", text)
	}
	if !strings.Contains(text, eraseLine+"volar: a note\r\n") || !strings.HasSuffix(text, eraseLine+"volar: END\r\n") {
		t.Errorf("the line stays under others: %q", text)
	}
}

// terminal opens a pseudo-terminal of a width.
func terminal(t *testing.T, cols uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: cols}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}
