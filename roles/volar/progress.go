package volar

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
)

// redrawEvery bounds how often a terminal's line is drawn again.
const redrawEvery = 100 * time.Millisecond

// imageProgress tells on stderr how far the work on an image got: on a terminal
// in one line that is drawn again and vanishes at the end, else in a line for
// every step once it takes long. Its methods are safe for concurrent use.
type imageProgress struct {
	c    *cli
	what string // the image
	term bool

	mu    sync.Mutex // guards the rest; taken before cli.noteMu
	step  string
	items map[string]api.ImageProgress // of the step
	said  string                       // the step that was told last
	drawn time.Time
	done  chan struct{}
	wg    sync.WaitGroup
}

// maxItems bounds how many parts of a step are told apart: images have 127
// layers at most, but the daemon that is asked could be anybody's.
const maxItems = 1024

func (c *cli) imageProgress(what string) *imageProgress {
	p := &imageProgress{c: c, what: what, step: "resolve", items: map[string]api.ImageProgress{}, done: make(chan struct{})}
	_, p.term = terminalWidth(c.stderr)
	p.wg.Go(p.tick)
	return p
}

// report is told by the client what the daemon does.
func (p *imageProgress) report(r api.ImageProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Step != p.step {
		p.step = r.Step
		clear(p.items)
	}
	if _, known := p.items[r.Item]; known || len(p.items) < maxItems {
		p.items[r.Item] = r
	}
	if p.term && time.Since(p.drawn) >= redrawEvery {
		p.draw()
	}
}

// tick tells of work that takes long, and of a daemon that says nothing.
func (p *imageProgress) tick() {
	t := time.NewTicker(p.c.progressAfter)
	defer t.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-t.C:
		}
		p.mu.Lock()
		if p.term {
			p.draw()
		} else if p.said != p.step {
			p.said = p.step
			p.c.notef("%s", p.words())
		}
		p.mu.Unlock()
	}
}

func (p *imageProgress) draw() {
	p.drawn = time.Now()
	p.c.redraw(p.words())
}

// end takes the line off the terminal.
func (p *imageProgress) end() {
	close(p.done)
	p.wg.Wait()
	p.c.redraw("")
}

// words says where the work stands: "nginx:alpine: download, 12.1 MiB of 40.0 MiB".
func (p *imageProgress) words() string {
	var done, total int64
	known := true
	for _, i := range p.items {
		done, total = done+max(i.Done, 0), total+max(i.Total, 0)
		known = known && i.Total > 0
	}
	s := p.what + ": " + stepWord(p.step)
	switch {
	case total > 0 && known && done <= total:
		s += fmt.Sprintf(", %s of %s", size(done), size(total))
	case done > 0:
		s += ", " + size(done)
	}
	return printable(s)
}

// stepWord says a step in words; one that is not known here says its own name.
func stepWord(step string) string {
	switch step {
	case "resolve":
		return "asking the registry"
	case "download":
		return "fetching"
	case "flatten":
		return "putting the layers together"
	case "write":
		return "writing"
	}
	return step
}

// redraw replaces the line that stands on the terminal; "" takes it off. On
// anything else than a terminal it does nothing.
func (c *cli) redraw(line string) {
	c.noteMu.Lock()
	defer c.noteMu.Unlock()
	width, term := terminalWidth(c.stderr)
	if !term || line == "" && !c.drawn {
		return
	}
	if line != "" {
		line = clip("volar: "+strings.ReplaceAll(line, "\n", " "), width-1)
	}
	_, _ = io.WriteString(c.stderr, eraseLine+line) // what is for the eye only
	c.drawn = line != ""
}

// eraseLine goes to the line's beginning and erases it (ECMA-48, EL).
const eraseLine = "\r\x1b[K"

// clip shortens s to n characters.
func clip(s string, n int) string {
	if n < 1 || utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}

// terminalWidth returns how many characters a line of the terminal w has; ok is
// false if w is none.
func terminalWidth(w any) (cols int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if ws.Col == 0 { // nobody told the terminal
		return 80, true
	}
	return int(ws.Col), true
}
