package qemu

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds one message of QEMU, in bytes. The largest that is
	// asked for here is far below 1 KiB.
	maxMessage = 1 << 20
	// commandTimeout bounds a command whose context has no earlier end. QMP
	// answers in under a millisecond; a host that swaps may take seconds.
	commandTimeout = 30 * time.Second
)

// monitor is one connection to a QMP monitor (QEMU's docs/interop/qmp-spec).
// A monitor serves one client: a second connection is accepted by the kernel
// and then hears nothing, so every wait has a deadline. Safe for concurrent use.
type monitor struct {
	conn    net.Conn
	onEvent func(event string, data json.RawMessage) // called by the reader; must not block
	done    chan struct{}                            // closed when the connection is over

	mu      sync.Mutex
	next    uint64                   // guarded by mu; the id of the last command
	pending map[uint64]chan response // guarded by mu; nil once the connection is over
	err     error                    // guarded by mu; why it is over

	wmu sync.Mutex // one writer
}

// response is any message of QEMU: the greeting, an answer or an event.
type response struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     uint64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *monitorError   `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// monitorError is QEMU's refusal of a command.
type monitorError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *monitorError) Error() string { return e.Desc }

// openMonitor connects to the monitor at path, which the process pid must
// serve, and leaves negotiation mode. onEvent may be nil.
func openMonitor(ctx context.Context, path string, pid int, onEvent func(string, json.RawMessage)) (*monitor, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn, pid); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), conn.Close())
	}
	m := &monitor{conn: conn, onEvent: onEvent, done: make(chan struct{}), pending: make(map[uint64]chan response)}
	m.next = rand.Uint64N(1 << 52) // no answer that is late for another client is ours
	sc := bufio.NewScanner(conn)
	sc.Buffer(make([]byte, 0, 4096), maxMessage)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = awaitGreeting(sc)
	if !stop() {
		err = fmt.Errorf("no greeting, another client may be connected: %w", ctx.Err())
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	go m.read(sc)
	if err := m.run(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// awaitGreeting passes over what QEMU still had for the client before, such as
// the answer to a command whose daemon was killed, or the rest of one.
func awaitGreeting(sc *bufio.Scanner) error {
	for sc.Scan() {
		var r response
		if json.Unmarshal(sc.Bytes(), &r) == nil && r.QMP != nil {
			return nil
		}
	}
	return cmp.Or(sc.Err(), errors.New("no greeting"))
}

// checkPeer wants the socket to be served by the process pid.
func checkPeer(conn net.Conn, pid int) error {
	rc, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var perr error
	if err := rc.Control(func(fd uintptr) { peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if perr != nil {
		return perr
	}
	if int(peer.Pid) != pid {
		return fmt.Errorf("served by process %d, want %d", peer.Pid, pid)
	}
	return nil
}

// read hands out what QEMU says until the connection ends.
func (m *monitor) read(sc *bufio.Scanner) {
	for sc.Scan() {
		var r response
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			continue // newer versions may say what we cannot read
		}
		if r.Event != "" {
			if m.onEvent != nil {
				m.onEvent(r.Event, r.Data)
			}
			continue
		}
		m.mu.Lock()
		c := m.pending[r.ID]
		delete(m.pending, r.ID)
		m.mu.Unlock()
		if c != nil {
			c <- r // has room for the one answer
		}
	}
	err := sc.Err()
	if err == nil {
		err = errors.New("monitor connection closed")
	}
	m.mu.Lock()
	m.err, m.pending = err, nil
	m.mu.Unlock()
	m.conn.Close()
	close(m.done)
}

// run executes a command. args and out may be nil.
func (m *monitor) run(ctx context.Context, command string, args, out any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := m.exchange(ctx, command, args, out, nil); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	return nil
}

// pass gives QEMU a descriptor of f, to be named in a later command. f stays the
// caller's.
func (m *monitor) pass(ctx context.Context, name string, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	args := struct {
		Name string `json:"fdname"`
	}{name}
	if err := m.exchange(ctx, "getfd", args, nil, f); err != nil {
		return fmt.Errorf("qmp getfd: %w", err)
	}
	return nil
}

func (m *monitor) exchange(ctx context.Context, command string, args, out any, f *os.File) error {
	answer := make(chan response, 1)
	m.mu.Lock()
	if m.pending == nil {
		err := m.err
		m.mu.Unlock()
		return err
	}
	m.next++
	id := m.next
	m.pending[id] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.pending, id)
		m.mu.Unlock()
	}()

	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	if err := m.write(ctx, append(b, '\n'), f); err != nil {
		return err
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return r.Error
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(r.Return, out)
	case <-m.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write sends b, with a descriptor of f where that is not nil.
func (m *monitor) write(ctx context.Context, b []byte, f *os.File) error {
	m.wmu.Lock()
	defer m.wmu.Unlock()
	deadline, _ := ctx.Deadline() // run set one
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	n, err := 0, error(nil)
	if f != nil {
		n, _, err = m.conn.(*net.UnixConn).WriteMsgUnix(b[:1], unix.UnixRights(int(f.Fd())), nil)
	}
	if err == nil {
		var more int
		more, err = m.conn.Write(b[n:])
		n += more
	}
	if err != nil && n > 0 {
		m.conn.Close() // a torn command would spoil the next
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.DeadlineExceeded // the deadline was that of ctx
	}
	return err
}

// close ends the connection and waits for the reader.
func (m *monitor) close() {
	m.conn.Close() // the reader reports why it ended
	<-m.done
}
