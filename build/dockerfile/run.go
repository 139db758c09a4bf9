package dockerfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	// grace is how long a builder that was told to end may take to put its own
	// things in order before it is killed.
	grace = 5 * time.Second
	// maxLine bounds one line of output, in bytes; longer ones come in parts.
	maxLine = 4 << 10
)

// run runs a command in dir, in a process group of its own, and passes its
// output on line by line. Its error holds the last line: builders print their
// reason there. When ctx ends the group is told to, and killed after a while.
func run(ctx context.Context, argv []string, dir string, output func(string)) error {
	lines := &lineWriter{emit: output}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	// buildx would add an attestation, which is no part of the image.
	cmd.Env = append(os.Environ(), "BUILDX_NO_DEFAULT_ATTESTATIONS=1")
	cmd.Stdout, cmd.Stderr = lines, lines
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	if err := cmd.Start(); err != nil {
		return err
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		// What the builder started may not have ended with it.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return fmt.Errorf("%s: %w", argv[0], ctx.Err())
	}
	lines.flush()
	var exit *exec.ExitError
	if errors.As(err, &exit) && lines.last != "" {
		return fmt.Errorf("%s: %w: %s", argv[0], err, lines.last)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	return nil
}

// lineWriter cuts what is written to it into lines.
type lineWriter struct {
	mu   sync.Mutex // guards the rest; exec may write after Wait's delay is over
	buf  []byte
	last string // the last line with something in it
	emit func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	for {
		i := bytes.IndexAny(w.buf, "\r\n")
		if i < 0 && len(w.buf) < maxLine {
			return len(p), nil
		}
		if i < 0 || i > maxLine {
			w.line(w.buf[:maxLine])
			w.buf = w.buf[maxLine:]
			continue
		}
		w.line(w.buf[:i])
		w.buf = w.buf[i+1:]
	}
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line(w.buf)
	w.buf = nil
}

// line passes on a line without what would move a terminal's cursor.
func (w *lineWriter) line(b []byte) {
	s := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return -1
		}
		return r
	}, string(b)))
	if s == "" {
		return
	}
	w.last = s
	if w.emit != nil {
		w.emit(s)
	}
}
