package volar

import (
	"bufio"
	"context"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
)

// detachAlone leaves a console at once, ctrl-], as of telnet and virsh.
const detachAlone = 0x1d

type consoleCmd struct {
	Name string `arg:"" help:"Name or id of the VM." complete:"vms"`
	Tail string `short:"n" help:"Begin with the last lines, this many, or all (default: ${default})." default:"24" placeholder:"N"`
}

// Run shows what a VM's console says until the VM has ended for good or the user
// leaves. The console takes no input: what a user types is looked at only for the
// keys that leave, ctrl-p ctrl-q, ctrl-] and ctrl-c.
func (cmd *consoleCmd) Run(c *cli) error {
	if c.output != outputTable {
		return usagef("-o %s: a console is watched; volar vms logs --log console -f -o %s gives its lines", c.output, c.output)
	}
	tail, err := parseTail(cmd.Tail)
	if err != nil {
		return err
	}
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	vm, err := cl.VM(c.ctx, cmd.Name, noWait())
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(c.ctx)
	defer leave()
	p := logPrinter{c: c, out: bufio.NewWriter(c.stdout), name: vm.Name, end: "\n"}
	left, noteEnd := func() bool { return false }, ""
	if f, ok := c.stdin.(*os.File); ok {
		if restore, err := makeRaw(f); err == nil { // else it is no terminal
			defer restore()
			p.end, noteEnd = "\r\n", "\r" // a raw terminal does not go back to the first column by itself
			keys := &keyWatch{r: f, leave: leave}
			defer keys.watch(f)()
			left = keys.left
			c.notef("console of %s, which takes no input here; ctrl-p ctrl-q leaves it%s", vm.Name, noteEnd)
		}
	}
	err = cl.VMLogs(ctx, vm.ID, api.LogQuery{Log: api.LogConsole, Tail: tail, Follow: true}, func(e api.LogEntry) error {
		p.print(e)
		return p.out.Flush()
	})
	if closeErr := p.close(); err == nil {
		err = closeErr
	}
	if left() {
		c.notef("left: %s goes on; volar vms console %s goes back to it%s", vm.Name, vm.Name, noteEnd)
		return nil
	}
	if err != nil {
		return err
	}
	if now, err := cl.VM(c.ctx, vm.ID, noWait()); err == nil {
		c.notef("%s: %s%s", now.Name, printable(describe(now)), noteEnd)
	}
	return nil
}

// keyWatch looks at what a user types for the keys that leave a console.
type keyWatch struct {
	r     io.Reader
	leave func()

	mu   sync.Mutex
	gone bool // guarded by mu
	held bool // the first of two keys was typed
}

func (k *keyWatch) left() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone
}

// watch begins that. The function that it returns ends it, without taking any
// key from whoever reads the terminal next.
func (k *keyWatch) watch(f *os.File) (stop func()) {
	done, doneWrite, err := os.Pipe()
	if err != nil {
		return func() {}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64)
		for {
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}, {Fd: int32(done.Fd()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err == unix.EINTR { //nolint:errorlint // an errno
				continue
			} else if err != nil || fds[1].Revents != 0 {
				return
			}
			n, err := k.r.Read(buf)
			if k.take(buf[:n]) || err != nil {
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		doneWrite.Close() //nolint:errcheck // a pipe's end
		wg.Wait()
		done.Close() //nolint:errcheck // likewise
	})
}

// take reports whether the keys leave.
func (k *keyWatch) take(keys []byte) bool {
	for _, key := range keys {
		switch {
		case key == detachAlone, key == keyInterrupt, k.held && key == detachSecond:
			k.mu.Lock()
			k.gone = true
			k.mu.Unlock()
			k.leave()
			return true
		}
		k.held = key == detachFirst
	}
	return false
}

// keyInterrupt is ctrl-c, which would make a signal if the terminal were not raw.
const keyInterrupt = 0x03
