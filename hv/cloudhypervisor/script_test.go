package cloudhypervisor

import (
	"bytes"
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
	"syscall"
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
	raw     json.RawMessage
	state   string
	serial  net.Listener
	screen  net.Conn
	backlog []byte // what was printed while nobody listened
	vsock   net.Listener
	conns   chan net.Conn
	server  *http.Server
	gate    *sync.Cond // of mu: state has changed
	disks   []*os.File
}

// scriptedConfig is what of a VmConfig it knows.
type scriptedConfig struct {
	CPUs struct {
		Boot int `json:"boot_vcpus"`
		Max  int `json:"max_vcpus"`
	} `json:"cpus"`
	Memory struct {
		Size      uint64 `json:"size"`
		Shared    bool   `json:"shared"`
		Hugepages bool   `json:"hugepages"`
		Prefault  bool   `json:"prefault"`
	} `json:"memory"`
	Payload struct {
		Kernel    string `json:"kernel"`
		Initramfs string `json:"initramfs"`
		Cmdline   string `json:"cmdline"`
	} `json:"payload"`
	Disks []struct {
		ID           string `json:"id"`
		Path         string `json:"path"`
		ReadOnly     bool   `json:"readonly"`
		Direct       bool   `json:"direct"`
		Sparse       bool   `json:"sparse"`
		BackingFiles bool   `json:"backing_files"`
		ImageType    string `json:"image_type"`
		Serial       string `json:"serial"`
	} `json:"disks"`
	Net []struct {
		ID   string `json:"id"`
		Tap  string `json:"tap"`
		MAC  string `json:"mac"`
		TSO  bool   `json:"offload_tso"`
		UFO  bool   `json:"offload_ufo"`
		CSum bool   `json:"offload_csum"`
	} `json:"net"`
	RNG struct {
		Src string `json:"src"`
	} `json:"rng"`
	Serial  scriptedConsole `json:"serial"`
	Console scriptedConsole `json:"console"`
	Debug   scriptedConsole `json:"debug_console"`
	Vsock   *struct {
		ID     string `json:"id"`
		CID    uint64 `json:"cid"`
		Socket string `json:"socket"`
	} `json:"vsock"`
	PVPanic  bool `json:"pvpanic"`
	Watchdog bool `json:"watchdog"`
	Landlock bool `json:"landlock_enable"`
	Rules    []struct {
		Path   string `json:"path"`
		Access string `json:"access"`
	} `json:"landlock_rules"`
}

type scriptedConsole struct {
	Mode   string `json:"mode"`
	Socket string `json:"socket"`
	File   string `json:"file"`
}

// scriptedMain is the process.
func scriptedMain() {
	time.AfterFunc(10*time.Minute, func() { exit(3) }) // the test that started it has ended long ago
	s := &scripted{dir: filepath.Dir(os.Args[0]), state: stateCreated}
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
	http.Serve(l, s)
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
	fmt.Fprintf(log, "%s %s %s\n", r.Method, r.RequestURI, body)
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
	a := s.serve(r, op, body)
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

func (s *scripted) serve(r *http.Request, op string, body []byte) answer {
	method, takes := http.MethodPut, false
	switch op {
	case opPing, opInfo, opCounters:
		method = http.MethodGet
	case opCreate:
		takes = true
	case opBoot, opPause, opResume, opButton, opQuit:
	default:
		return refuse(http.StatusNotFound, "Not found")
	}
	if r.Method != method || r.ContentLength != int64(len(body)) || len(body) > 51200 || (len(body) > 0) != takes || r.URL.RawQuery != "" {
		return answer{http.StatusBadRequest, json.RawMessage(`{"error": "Invalid HTTP request"}`)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	missing := http.StatusNotFound
	if strings.HasPrefix(s.Version, "v52") {
		missing = http.StatusInternalServerError
	}
	if op != opPing && op != opQuit && op != opCreate && s.config == nil {
		return refuse(missing, "VM is not created")
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
		return answer{http.StatusOK, map[string]any{"config": s.raw, "state": s.state, "memory_actual_size": s.config.Memory.Size}}
	case opCounters:
		c := make(map[string]map[string]uint64)
		for _, d := range s.config.Disks {
			c[d.ID] = map[string]uint64{"read_ops": 1, "read_latency_min": 1<<64 - 1}
		}
		return answer{http.StatusOK, c}
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

func (s *scripted) create(body []byte) answer {
	if s.config != nil {
		return refuse(http.StatusInternalServerError, "VM is already created")
	}
	var c scriptedConfig
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	s.config, s.raw = &c, body // stored, whatever comes of it
	for _, d := range c.Disks {
		if d.ImageType != "Raw" {
			return refuse(http.StatusInternalServerError, "the test wants an explicit image type")
		}
	}
	if c.Console.Mode != "Off" || c.Debug.Mode != "Off" {
		return refuse(http.StatusInternalServerError, "the test wants no other console")
	}
	if c.Landlock {
		for _, r := range c.Rules {
			if _, err := os.Stat(r.Path); err != nil {
				return refuse(http.StatusInternalServerError, "Path "+r.Path+" provided in landlock-rules does not exist")
			}
		}
	}
	if err := s.openSerial(); err != nil {
		return refuse(http.StatusInternalServerError, "Error creating console devices", err.Error())
	}
	return done()
}

// openSerial makes the serial port's socket and serves one client at a time. s.mu
// is held.
func (s *scripted) openSerial() error {
	if s.config.Serial.Mode != "Socket" {
		return errors.New("the test wants a serial port on a socket")
	}
	l, err := net.Listen("unix", s.config.Serial.Socket)
	if err != nil {
		return err
	}
	s.serial = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			if s.screen != nil {
				s.screen.Close()
			}
			s.screen = c
			c.Write(s.backlog)
			s.backlog = nil
			s.mu.Unlock()
			s.gate.Broadcast()
		}
	}()
	return nil
}

func (s *scripted) boot() answer {
	if s.state != stateCreated {
		return refuse(http.StatusInternalServerError, fmt.Sprintf("Invalid VM state transition: %s to Running", s.state))
	}
	s.say("vm", "booting", "")
	c := s.config
	if s.Confine && c.Landlock {
		return refuse(http.StatusInternalServerError, "The VM could not boot", "Permission denied (os error 13)")
	}
	if _, err := os.Stat(c.Payload.Kernel); err != nil {
		return refuse(http.StatusInternalServerError, "The VM could not boot", err.Error())
	}
	disks := c.Disks
	for i, d := range disks {
		f, err := openDisk(d.Path, d.ReadOnly)
		if err != nil {
			// What makes a second boot succeed without its disk.
			c.Disks = append(slices.Clone(disks[:i]), disks[i+1:]...)
			return refuse(http.StatusInternalServerError, "The VM could not boot", "Error manipulating disk", err.Error())
		}
		s.disks = append(s.disks, f)
	}
	if err := s.openVsock(); err != nil {
		return refuse(http.StatusInternalServerError, "The VM could not boot", "Cannot create virtio-vsock backend", err.Error())
	}
	s.state = stateRunning
	s.start()
	s.say("vm", "booted", "")
	return done()
}

func openDisk(path string, readOnly bool) (*os.File, error) {
	mode, lock := os.O_RDWR, unix.Flock_t{Type: unix.F_WRLCK}
	if readOnly {
		mode, lock.Type = os.O_RDONLY, unix.F_RDLCK
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return nil, errors.Join(errors.New("the disk image is already locked"), err, f.Close())
	}
	return f, nil
}

// openVsock makes the vsock device's socket. s.mu is held.
func (s *scripted) openVsock() error {
	v := s.config.Vsock
	if v == nil {
		return nil
	}
	granted := slices.ContainsFunc(s.config.Rules, func(r struct {
		Path   string `json:"path"`
		Access string `json:"access"`
	}) bool {
		return r.Path == filepath.Dir(v.Socket) && r.Access == "rw"
	})
	if s.config.Landlock && !granted {
		return syscall.EACCES
	}
	l, err := net.Listen("unix", v.Socket)
	if err != nil {
		return err
	}
	s.vsock = l
	return nil
}

// start runs the guest. s.mu is held.
func (s *scripted) start() {
	kernel, err := os.ReadFile(s.config.Payload.Kernel)
	if err != nil {
		s.fail("%v", err)
	}
	if bytes.Equal(kernel, trialKernel()) {
		go s.runTrial()
		return
	}
	if s.vsock == nil {
		return
	}
	s.server = &http.Server{Handler: guest.Handler(s, guest.NewMemory())}
	s.conns = make(chan net.Conn)
	go s.server.Serve(&queue{conns: s.conns, closed: make(chan struct{})})
	go s.accept(s.vsock, s.conns)
	s.say("virtio-device", "activated", "vsock")
}

// runTrial is the trial machine's guest.
func (s *scripted) runTrial() {
	s.mu.Lock()
	for s.screen == nil {
		s.gate.Wait()
	}
	screen := s.screen
	s.mu.Unlock()
	if _, err := screen.Read(make([]byte, 1)); err != nil {
		return
	}
	s.Print(trialText)
	s.PowerOff()
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
			if string(line) != fmt.Sprintf("CONNECT %d\n", wire.AgentPort) {
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
	if s.state != stateCreated {
		s.say("vm", "shutdown", "")
		s.say("vm", "deleted", "")
	}
	s.say("vmm", "shutdown", "")
	s.unbind()
	os.Remove(s.socket)
	exit(0) // 0 says nothing
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

// OpenDisk implements guest.Machine.
func (s *scripted) OpenDisk(serial string) (*os.File, error) {
	for _, d := range s.config.Disks {
		switch {
		case d.Serial != serial:
		case d.ReadOnly:
			return os.Open(d.Path)
		default:
			return os.OpenFile(d.Path, os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no disk %q", serial)
}

// Size implements guest.Machine.
func (s *scripted) Size() (vcpus, memoryMiB int) {
	return s.config.CPUs.Boot, int(s.config.Memory.Size >> 20)
}

// NICs implements guest.Machine.
func (s *scripted) NICs() []string {
	var list []string
	for _, n := range s.config.Net {
		list = append(list, n.MAC)
	}
	return list
}
