package cloudhypervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/hvtest/guest"
)

// script says how a scripted Cloud Hypervisor behaves. It is the file
// script.json beside its binary, a link to the test's own.
type script struct {
	Version string             // "v53.0"
	Late    time.Duration      // until the API's socket is there
	Broken  string             // ends at once with status 1 and says this
	PID     int                // instead of its own, in vmm.ping
	Silent  []string           // endpoints that never answer
	Die     []string           // endpoints that end the process
	Refuse  map[string]refusal // endpoints that say no
	Events  string             // "lost", or "cut": partial ones between
	Deaf    bool               // the guest ignores the power button
	Stays   bool               // vmm.shutdown is answered, and ignored
	VCPU    bool               // the power button makes a virtual CPU fail
	Confine bool               // the machine boots only without Landlock
	Boot    time.Duration      // until the guest's agent listens
	Clings  bool               // the guest lets go of no device
	Torn    string             // a part of a snapshot that is not written, although the call succeeds
	NoState bool               // vm.snapshot fails, as where the host's KVM does not tell nested state
	Emulate bool               // guests are real, and emulated by QEMU
	NoFault bool               // memory cannot be restored on demand, as without userfaultfd
}

type refusal struct {
	Status int
	Body   string
}

// scripted is a process that behaves as Cloud Hypervisor does, as far as its API
// description and what was measured of it say. Unlike the real one it refuses
// fields that it does not know.
type scripted struct {
	script
	dir    string // of the binary
	socket string
	events *os.File

	thread sync.Mutex // held by the call that is served, and by what the guest does

	mu      sync.Mutex
	config  *scriptedConfig // nil until vm.create
	state   string
	devices map[string]bool // what the guest has, by id
	leaving map[string]bool // what it was asked to let go of
	taps    map[string]*os.File
	memory  *guest.Memory
	listens bool // the guest's agent does
	serial  net.Listener
	screen  net.Conn
	backlog []byte // what was printed while nobody listened
	vsock   net.Listener
	conns   chan net.Conn
	server  *http.Server
	gate    *sync.Cond // of mu: state has changed
	disks   map[string]*os.File
	machine *emulated // nil for a guest that is none
}

// scriptedMain is the process.
func scriptedMain() {
	time.AfterFunc(10*time.Minute, func() { exit(3) }) // the test that started it has ended long ago
	s := &scripted{
		dir: filepath.Dir(os.Args[0]), state: stateCreated, devices: make(map[string]bool), leaving: make(map[string]bool),
		taps: make(map[string]*os.File), disks: make(map[string]*os.File),
	}
	s.gate = sync.NewCond(&s.mu)
	b, err := os.ReadFile(filepath.Join(s.dir, "script.json"))
	if err == nil {
		err = json.Unmarshal(b, &s.script)
	}
	if err != nil {
		s.fail("script: %v", err)
	}
	args := os.Args[1:]
	if slices.Equal(args, []string{"--version"}) {
		fmt.Println("cloud-hypervisor " + s.Version)
		exit(0)
	}
	var events string
	for i := 0; i < len(args); i += 2 {
		if i+1 == len(args) {
			s.fail("error: a value is required for '%s'", args[i])
		}
		value, path := strings.CutPrefix(args[i+1], "path=")
		switch {
		case args[i] == "--api-socket" && path && s.socket == "":
			s.socket = value
		case args[i] == "--event-monitor" && path && events == "":
			events = value
		case args[i] == "--seccomp" && slices.Contains([]string{"true", "false", "log"}, args[i+1]):
		default:
			s.fail("error: unexpected argument '%s %s' found", args[i], args[i+1])
		}
	}
	if s.events, err = os.Create(events); err != nil { // it truncates, and does not append
		s.fail("event monitor: %v", err)
	}
	s.say("vmm", "starting", "")
	time.Sleep(s.Late)
	if s.Broken != "" {
		s.fail("%s", s.Broken)
	}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.fail("Error binding API server socket: %v", err)
	}
	srv := &http.Server{Handler: s, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}}
	srv.Serve(fdListener{l.(*net.UnixListener)})
}

type connKey struct{}

// fdListener accepts connections that keep the files that come with a message.
type fdListener struct{ *net.UnixListener }

func (l fdListener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &fdConn{UnixConn: c}, nil
}

type fdConn struct {
	*net.UnixConn
	mu    sync.Mutex
	files []*os.File // guarded by mu
}

func (c *fdConn) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(8*4))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if messages, perr := unix.ParseSocketControlMessage(oob[:oobn]); perr == nil {
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			c.mu.Lock()
			for _, fd := range fds {
				c.files = append(c.files, os.NewFile(uintptr(fd), "passed"))
			}
			c.mu.Unlock()
		}
	}
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF // ReadMsgUnix does not say so
	}
	return n, err
}

// passed takes the files that have come by the connection of a request.
func passed(r *http.Request) []*os.File {
	c := r.Context().Value(connKey{}).(*fdConn)
	c.mu.Lock()
	defer c.mu.Unlock()
	files := c.files
	c.files = nil
	return files
}

// exit ends the process without the second that the race detector takes for it.
func exit(status int) {
	unix.Syscall(unix.SYS_EXIT_GROUP, uintptr(status), 0, 0)
	panic("exit_group(2) returned")
}

func (s *scripted) fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	exit(1)
}

// say writes an event as the real one does: indented, and a blank line after it.
func (s *scripted) say(source, name, id string) {
	if s.Events == "lost" && source != "vmm" {
		return
	}
	type stamp struct {
		Secs  int64 `json:"secs"`
		Nanos int64 `json:"nanos"`
	}
	e := struct {
		Timestamp  stamp             `json:"timestamp"`
		Source     string            `json:"source"`
		Event      string            `json:"event"`
		Properties map[string]string `json:"properties"`
	}{Source: source, Event: name}
	if id != "" {
		e.Properties = map[string]string{"id": id}
	}
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		s.fail("%v", err)
	}
	if s.Events == "cut" {
		s.events.Write(b[:len(b)/2])
	}
	s.events.Write(append(b, "\n\n"...))
}

// answer is what a call comes to: a status and, unless it is 204, a body.
type answer struct {
	status int
	body   any
}

func refuse(status int, chain ...string) answer {
	return answer{status, append([]string{"Error from API"}, chain...)}
}

func done() answer { return answer{status: http.StatusNoContent} }

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 51201))
	if err != nil {
		return
	}
	op := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	log, err := os.OpenFile(filepath.Join(s.dir, "requests.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		s.fail("%v", err)
	}
	files := passed(r)
	with := ""
	if len(files) > 0 {
		with = fmt.Sprintf(" with %d files", len(files))
	}
	fmt.Fprintf(log, "%s %s %s%s\n", r.Method, r.RequestURI, body, with)
	log.Close()
	w.Header().Set("Server", "Firecracker API")

	s.thread.Lock()
	defer s.thread.Unlock()
	if slices.Contains(s.Silent, op) {
		select {}
	}
	if slices.Contains(s.Die, op) {
		fmt.Fprintln(os.Stderr, "thread 'vmm' panicked at vmm/src/lib.rs")
		exit(101)
	}
	if no, ok := s.Refuse[op]; ok {
		w.WriteHeader(no.Status)
		io.WriteString(w, no.Body)
		return
	}
	a := s.serve(r, op, body, files)
	if a.body == nil {
		w.WriteHeader(a.status)
	} else {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.status)
		json.NewEncoder(w).Encode(a.body)
	}
	if err := http.NewResponseController(w).Flush(); err != nil { // before the guest can end the process
		return
	}
	if op == opQuit && !s.Stays {
		s.quit()
	}
}

func (s *scripted) serve(r *http.Request, op string, body []byte, files []*os.File) answer {
	method, takes := http.MethodPut, false
	switch op {
	case opPing, opInfo, opCounters:
		method = http.MethodGet
	case opCreate, opAddNet, opAddDisk, opRemove, opResize, opSnapshot, opRestore:
		takes = true
	case opBoot, opPause, opResume, opButton, opQuit:
	default:
		return refuse(http.StatusNotFound, "Not found")
	}
	if r.Method != method || r.ContentLength != int64(len(body)) || len(body) > 51200 || (len(body) > 0) != takes || r.URL.RawQuery != "" ||
		len(files) > 0 && op != opAddNet && op != opRestore {
		return answer{http.StatusBadRequest, json.RawMessage(`{"error": "Invalid HTTP request"}`)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	missing := http.StatusNotFound
	if strings.HasPrefix(s.Version, "v52") {
		missing = http.StatusInternalServerError
	}
	if op != opPing && op != opQuit && op != opCreate && op != opRestore && s.config == nil {
		return refuse(missing, "VM is not created")
	}
	if a, ok := s.emulation(op); ok {
		return a
	}
	switch op {
	case opPing:
		pid := os.Getpid()
		if s.PID != 0 {
			pid = s.PID
		}
		return answer{http.StatusOK, map[string]any{"build_version": s.Version, "version": strings.TrimPrefix(s.Version, "v"), "pid": pid, "features": []string{"kvm"}}}
	case opQuit:
		return answer{status: http.StatusOK}
	case opCreate:
		return s.create(body)
	case opBoot:
		return s.boot()
	case opInfo:
		tree := make(map[string]any)
		for id := range s.devices {
			tree[id] = map[string]any{"id": id, "pci_bdf": "0000:00:05.0"}
		}
		return answer{http.StatusOK, map[string]any{"config": s.config, "state": s.state, "memory_actual_size": s.config.Memory.Size, "device_tree": tree}}
	case opCounters:
		c := make(map[string]map[string]uint64)
		for _, d := range s.config.Disks {
			c[d.ID] = map[string]uint64{"read_ops": 1, "read_bytes": 4096, "read_latency_min": 1<<64 - 1}
		}
		return answer{http.StatusOK, c}
	case opAddNet:
		return s.addNet(body, files)
	case opAddDisk:
		return s.addDisk(body)
	case opRemove:
		return s.remove(body)
	case opResize:
		return s.resize(body)
	case opSnapshot:
		return s.snapshot(body)
	case opRestore:
		return s.restore(body, files)
	case opPause, opResume:
		from, to := stateRunning, statePaused
		if op == opResume {
			from, to = to, from
		}
		if s.state != from {
			return refuse(http.StatusInternalServerError, fmt.Sprintf("Invalid VM state transition: %s to %s", s.state, to))
		}
		s.state = to
		s.gate.Broadcast()
		s.say("vm", map[string]string{opPause: "pausing", opResume: "resuming"}[op], "")
		s.say("vm", map[string]string{opPause: "paused", opResume: "resumed"}[op], "")
		return done()
	}
	// The power button.
	if s.state != stateRunning {
		return refuse(http.StatusInternalServerError, "VM is not running")
	}
	switch {
	case s.VCPU:
		fmt.Fprintln(os.Stderr, `cloud-hypervisor: 1.5s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: VcpuRun(InternalError)`)
		go s.PowerOff()
	case !s.Deaf:
		go s.PowerOff()
	}
	return done()
}

// accept answers CONNECT and hands the streams to the guest.
func (s *scripted) accept(l net.Listener, conns chan<- net.Conn) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			s.mu.Lock()
			for s.state == statePaused { // nobody reads
				s.gate.Wait()
			}
			s.mu.Unlock()
			var line []byte
			for b := make([]byte, 1); len(line) < 32 && !bytes.HasSuffix(line, []byte("\n")); line = append(line, b[0]) {
				if _, err := io.ReadFull(c, b); err != nil {
					c.Close()
					return
				}
			}
			s.mu.Lock()
			listens := s.listens
			s.mu.Unlock()
			if !listens || string(line) != fmt.Sprintf("CONNECT %d\n", wire.AgentPort) {
				c.Close() // nobody listens there
				return
			}
			if _, err := io.WriteString(c, "OK 1073741824\n"); err != nil {
				c.Close()
				return
			}
			conns <- c
		}()
	}
}

// queue is a listener for streams that have begun.
type queue struct {
	conns  <-chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.close.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.UnixAddr{Name: "vsock", Net: "unix"} }

// quit ends the process in order. s.thread is held.
func (s *scripted) quit() {
	s.mu.Lock()
	if s.state == statePaused {
		s.stir()
	}
	if s.state != stateCreated {
		s.say("vm", "shutdown", "")
		s.say("vm", "deleted", "")
	}
	s.say("vmm", "shutdown", "")
	s.unbind()
	os.Remove(s.socket)
	exit(0) // 0 says nothing
}

// stir is what the devices do of a paused machine that is ended in order: they run
// once more, and write to the guest's memory, which may be a template's. s.mu is
// held.
func (s *scripted) stir() {
	for _, z := range s.config.Memory.Zones {
		if z.File == "" || !z.Shared {
			continue
		}
		if err := os.WriteFile(z.File, []byte("a frame that came late"), 0o600); err != nil {
			s.fail("%v", err)
		}
	}
}

// unbind takes away the machine's sockets. s.mu is held.
func (s *scripted) unbind() {
	for _, l := range []net.Listener{s.serial, s.vsock} {
		if l != nil {
			l.Close() // and removes its file
		}
	}
	if s.screen != nil {
		s.screen.Close()
		s.screen = nil
	}
}

// PowerOff implements guest.Machine.
func (s *scripted) PowerOff() {
	s.thread.Lock()
	s.quit()
}

// Reset implements guest.Machine: the machine begins again in the same process.
func (s *scripted) Reset() {
	s.thread.Lock()
	defer s.thread.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.say("vm", "rebooting", "")
	s.server.Close()
	s.unbind()
	time.Sleep(100 * time.Millisecond)
	if err := errors.Join(s.openSerial(), s.openVsock()); err != nil {
		s.fail("%v", err)
	}
	s.start()
	s.say("vm", "rebooted", "")
}

// Panic implements guest.Machine: the kernel tells its pvpanic device, and then
// resets, as panic=-1 has it.
func (s *scripted) Panic() {
	if s.config.PVPanic {
		s.say("guest", "panic", "")
	}
	s.Reset()
}

// Print implements guest.Machine.
func (s *scripted) Print(text string) {
	s.mu.Lock()
	screen := s.screen
	if screen == nil && !strings.HasPrefix(s.Version, "v52") && len(s.backlog) < 1<<20 {
		s.backlog = append(s.backlog, text...)
	}
	s.mu.Unlock()
	if screen != nil {
		io.WriteString(screen, text)
	}
}
