package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/transport"
)

// emulated is a real guest of the scripted Cloud Hypervisor: what is asked of the
// one is done by QEMU's q35, which has the same devices on the same bus, but for
// the vsock device: the agent's streams go by a serial port.
type emulated struct {
	dir   string
	agent *transport.Serial

	mu  sync.Mutex // held while something is said to it
	qmp net.Conn
}

// emulate runs the machine. s.mu is held.
func (s *scripted) emulate() error {
	dir, err := os.MkdirTemp("", "vche-")
	if err != nil {
		return err
	}
	e := &emulated{dir: dir, agent: transport.NewSerial(filepath.Join(dir, "agent"))}
	argv, files := s.emulator(dir)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Args[0] = "emulator" // it is no VMM of whoever counts those
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // with which it dies
		started <- cmd.Start()
		b := make([]byte, 4096)
		for {
			n, err := out.Read(b)
			s.Print(string(b[:n]))
			if err != nil {
				break
			}
		}
		cmd.Wait()
		select {}
	}()
	if err := <-started; err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if e.qmp, err = net.Dial("unix", filepath.Join(dir, "qmp")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	s.machine = e
	s.conns = make(chan net.Conn)
	go s.watch(e)
	if s.vsock == nil {
		return nil
	}
	go s.accept(s.vsock, s.conns)
	go func() {
		for c := range s.conns {
			go e.splice(c)
		}
	}()
	socket := fmt.Sprintf("%s_%d", s.config.Vsock.Socket, wire.ReadyPort)
	go func() {
		for {
			conn, err := e.agent.Dial(context.Background())
			if err != nil {
				continue
			}
			conn.Close()
			s.mu.Lock()
			s.listens = true
			s.mu.Unlock()
			if conn, err := net.Dial("unix", socket); err == nil {
				conn.Close()
			}
			return
		}
	}()
	return nil
}

// emulator returns QEMU's command, and the files that it inherits from 3 on.
func (s *scripted) emulator(dir string) (argv []string, files []*os.File) {
	c := s.config
	argv = []string{
		"/usr/bin/qemu-system-x86_64", "-M", "q35", "-accel", "tcg,tb-size=64", "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-smp", fmt.Sprintf("%d,maxcpus=%d,sockets=%[2]d,cores=1,threads=1", c.CPUs.Boot, c.CPUs.Max), "-m", fmt.Sprintf("%d,slots=8,maxmem=64G", c.Memory.Size>>20),
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off", "-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,server=on,wait=off,path=" + filepath.Join(dir, "agent"),
		"-device", "virtserialport,chardev=agent,name=" + wire.SerialPort,
		// That memory could be beyond 4 GiB costs a guest 64 MiB of bounce buffers.
		"-device", "virtio-rng-pci", "-kernel", c.Payload.Kernel, "-append", c.Payload.Cmdline + " swiotlb=noforce",
	}
	add := func(args ...string) { argv = append(argv, args...) }
	if c.Payload.Initramfs != "" {
		add("-initrd", c.Payload.Initramfs)
	}
	if more := c.Memory.HotplugSize; more > 0 {
		add("-object", fmt.Sprintf("memory-backend-ram,id=room,size=%d", more), "-device", "virtio-mem-pci,id=more,memdev=room,requested-size=0")
	}
	if c.PVPanic {
		add("-device", "pvpanic-pci")
	}
	if b := c.Balloon; b != nil {
		add("-device", fmt.Sprintf("virtio-balloon-pci,free-page-reporting=%t,deflate-on-oom=%t", b.Reporting, b.Deflate))
	}
	for i, p := range c.Pmem {
		fi, err := os.Stat(p.File)
		if err != nil {
			s.fail("%v", err)
		}
		add("-object", fmt.Sprintf("memory-backend-file,id=p%d,share=%t,size=%d,mem-path=%s", i, !p.Discard, fi.Size(), p.File), "-device", fmt.Sprintf("virtio-pmem-pci,memdev=p%d", i))
	}
	for i, d := range c.Disks {
		add("-drive", fmt.Sprintf("id=d%d,if=none,format=raw,discard=unmap,readonly=%s,file=%s", i, onOff(d.ReadOnly), d.Path), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=%s", i, d.Serial))
	}
	for i, n := range c.Net {
		add("-netdev", fmt.Sprintf("tap,id=n%d,fd=%d", i, 3+len(files)), "-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s", i, n.MAC))
		files = append(files, s.taps[n.ID])
	}
	return argv, files
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// splice joins a stream to the agent.
func (e *emulated) splice(c net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	agent, err := e.agent.Dial(ctx)
	if err != nil {
		c.Close()
		return
	}
	for _, way := range [][2]net.Conn{{c, agent}, {agent, c}} {
		go func() {
			io.Copy(way[0], way[1])
			c.Close()
			agent.Close()
		}()
	}
}

// say has the emulator do something.
func (e *emulated) say(command string, arguments map[string]any) error {
	b, err := json.Marshal(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err = e.qmp.Write(append(b, '\n'))
	return err
}

// grow plugs in the processors from had to has on, and makes the memory that was
// added this many bytes.
func (e *emulated) grow(had, has int, more uint64) error {
	for n := had; n < has; n++ {
		if err := e.say("device_add", map[string]any{"driver": "max-x86_64-cpu", "id": fmt.Sprint("cpu", n), "socket-id": n, "core-id": 0, "thread-id": 0}); err != nil {
			return err
		}
	}
	return e.say("qom-set", map[string]any{"path": "/machine/peripheral/more", "property": "requested-size", "value": more})
}

// watch tells what becomes of the guest.
func (s *scripted) watch(e *emulated) {
	if err := e.say("qmp_capabilities", nil); err != nil {
		s.fail("%v", err)
	}
	dec := json.NewDecoder(e.qmp)
	for {
		var m struct {
			Event string `json:"event"`
			Data  struct {
				Reason string `json:"reason"`
			} `json:"data"`
		}
		if err := dec.Decode(&m); err != nil {
			fmt.Fprintf(os.Stderr, "thread 'vmm' panicked: the emulator: %v\n", err)
			exit(101)
		}
		switch {
		case m.Event == "GUEST_PANICKED":
			s.say("guest", "panic", "")
		case m.Event == "SHUTDOWN" && m.Data.Reason == "guest-reset":
			os.RemoveAll(e.dir)
			s.say("vm", "rebooting", "")
			select {} // nobody waits for it to run again
		case m.Event == "SHUTDOWN":
			time.Sleep(300 * time.Millisecond) // for what its agent said last to be passed on
			os.RemoveAll(e.dir)
			s.PowerOff()
		}
	}
}

// emulation answers what an emulated machine is asked for; ok says that it was.
func (s *scripted) emulation(op string) (a answer, ok bool) {
	command := map[string]string{opPause: "stop", opResume: "cont", opButton: "system_powerdown"}[op]
	if s.machine == nil || command == "" {
		return answer{}, false
	}
	if err := s.machine.say(command, nil); err != nil {
		return refuse(http.StatusInternalServerError, err.Error()), true
	}
	return done(), op == opButton // of the others the state changes too
}

// present wants what an emulated machine is made of to be there: QEMU opens and
// locks it.
func (s *scripted) present() error {
	var err error
	for _, d := range s.config.Disks {
		_, serr := os.Stat(d.Path)
		err = errors.Join(err, serr)
		s.devices[d.ID] = true
	}
	for _, p := range s.config.Pmem {
		s.devices[p.ID] = true
	}
	for _, id := range slices.Collect(maps.Keys(s.taps)) {
		s.devices[id] = true
	}
	if strings.Contains(s.config.Payload.Cmdline, "\x00") {
		err = errors.Join(err, errors.New("a zero byte"))
	}
	return err
}
