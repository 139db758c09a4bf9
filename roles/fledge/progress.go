package fledge

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/volantvm/volant/build"
)

// patience is how long a step may take before it is announced unfinished.
const patience = 2 * time.Second

// progress prints a line for each step that did something, what steps tell while
// they run, and, for one that takes long and tells nothing, a line that says so.
type progress struct {
	mu    sync.Mutex // guards w and running
	w     io.Writer
	timer *time.Timer
	// running is the step that the timer may announce; empty between steps.
	running string
}

func (p *progress) step(s build.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.running = ""
	switch {
	case !s.Done && s.Detail != "":
		fmt.Fprintf(p.w, "%-10s          %s\n", s.Name, s.Detail)
	case !s.Done:
		p.running = s.Name
		p.timer = time.AfterFunc(patience, func() { p.announce(s.Name) })
	case s.Detail != "":
		fmt.Fprintf(p.w, "%-10s %8s  %s\n", s.Name, s.Duration.Round(100*time.Microsecond), s.Detail)
	}
}

func (p *progress) announce(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == name {
		fmt.Fprintf(p.w, "%-10s          working ...\n", name)
	}
}

func (p *progress) warn(msg string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "fledge: warning: %s\n", msg)
}

// stop ends the announcing; nothing is written after it returns.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.running = ""
}
