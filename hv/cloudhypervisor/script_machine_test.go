package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/hvtest/guest"
)

// scriptedConfig is what of a VmConfig the scripted Cloud Hypervisor knows: in
// vm.create, vm.info and config.json.
type scriptedConfig struct {
	CPUs struct {
		Boot int `json:"boot_vcpus"`
		Max  int `json:"max_vcpus"`
	} `json:"cpus"`
	Memory struct {
		Size          uint64         `json:"size"`
		HotplugSize   uint64         `json:"hotplug_size,omitempty"`
		HotplugMethod string         `json:"hotplug_method,omitempty"`
		Hotplugged    uint64         `json:"hotplugged_size,omitempty"`
		Shared        bool           `json:"shared"`
		Hugepages     bool           `json:"hugepages"`
		Prefault      bool           `json:"prefault"`
		Zones         []scriptedZone `json:"zones,omitempty"`
	} `json:"memory"`
	Payload struct {
		Kernel    string `json:"kernel"`
		Initramfs string `json:"initramfs,omitempty"`
		Cmdline   string `json:"cmdline"`
	} `json:"payload"`
	Disks []scriptedDisk `json:"disks,omitempty"`
	Pmem  []scriptedPmem `json:"pmem,omitempty"`
	Net   []scriptedNet  `json:"net,omitempty"`
	FS    []struct {
		ID     string `json:"id"`
		Tag    string `json:"tag"`
		Socket string `json:"socket"`
		Queues int    `json:"num_queues"`
		Size   int    `json:"queue_size"`
	} `json:"fs,omitempty"`
	Devices []struct {
		ID    string `json:"id"`
		Path  string `json:"path"`
		IOMMU bool   `json:"iommu"`
	} `json:"devices,omitempty"`
	Balloon *struct {
		ID        string `json:"id"`
		Size      uint64 `json:"size"`
		Deflate   bool   `json:"deflate_on_oom"`
		Reporting bool   `json:"free_page_reporting"`
	} `json:"balloon,omitempty"`
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
	} `json:"vsock,omitempty"`
	PVPanic  bool           `json:"pvpanic"`
	Watchdog bool           `json:"watchdog"`
	Landlock bool           `json:"landlock_enable"`
	Rules    []scriptedRule `json:"landlock_rules,omitempty"`
}

type scriptedZone struct {
	ID        string `json:"id"`
	Size      uint64 `json:"size"`
	File      string `json:"file,omitempty"`
	Shared    bool   `json:"shared"`
	Hugepages bool   `json:"hugepages"`
	Prefault  bool   `json:"prefault"`
}

type scriptedDisk struct {
	ID           string `json:"id"`
	Path         string `json:"path"`
	ReadOnly     bool   `json:"readonly"`
	Direct       bool   `json:"direct"`
	Sparse       bool   `json:"sparse"`
	BackingFiles bool   `json:"backing_files"`
	ImageType    string `json:"image_type"`
	Serial       string `json:"serial"`
}

type scriptedPmem struct {
	ID      string `json:"id"`
	File    string `json:"file"`
	Discard bool   `json:"discard_writes"`
}

type scriptedNet struct {
	ID      string `json:"id"`
	Tap     string `json:"tap,omitempty"`
	MAC     string `json:"mac"`
	HostMAC string `json:"host_mac,omitempty"` // kept up to version 53
	FDs     []int  `json:"fds,omitempty"`
	Queues  int    `json:"num_queues"`
	Size    int    `json:"queue_size"`
	TSO     bool   `json:"offload_tso"`
	UFO     bool   `json:"offload_ufo"`
	CSum    bool   `json:"offload_csum"`
}

type scriptedRule struct {
	Path   string `json:"path"`
	Access string `json:"access"`
}

type scriptedConsole struct {
	Mode   string `json:"mode"`
	Socket string `json:"socket,omitempty"`
	File   string `json:"file,omitempty"`
}

// decodeStrict refuses fields that it does not know, which the real one ignores.
func decodeStrict(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

func (s *scripted) create(body []byte) answer {
	if s.config != nil {
		return refuse(http.StatusInternalServerError, "VM is already created")
	}
	var c scriptedConfig
	if err := decodeStrict(body, &c); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	s.config = &c // stored, whatever comes of it
	for _, d := range c.Disks {
		if d.ImageType != "Raw" {
			return refuse(http.StatusInternalServerError, "the test wants an explicit image type")
		}
	}
	if c.Console.Mode != "Off" || c.Debug.Mode != "Off" {
		return refuse(http.StatusInternalServerError, "the test wants no other console")
	}
	if err := s.confine(); err != nil {
		return refuse(http.StatusInternalServerError, err.Error())
	}
	if err := s.openSerial(); err != nil {
		return refuse(http.StatusInternalServerError, "Error creating console devices", err.Error())
	}
	return done()
}

// confine checks Landlock's rules. s.mu is held.
func (s *scripted) confine() error {
	if !s.config.Landlock {
		return nil
	}
	for _, r := range s.config.Rules {
		if _, err := os.Stat(r.Path); err != nil {
			return fmt.Errorf("Path %s provided in landlock-rules does not exist", r.Path)
		}
	}
	return nil
}

// granted says whether Landlock lets it write to a path beyond what the machine was
// begun with. s.mu is held.
func (s *scripted) granted(path string) bool {
	return !s.config.Landlock || slices.ContainsFunc(s.config.Rules, func(r scriptedRule) bool {
		return r.Access == "rw" && strings.HasPrefix(path+"/", r.Path+"/")
	})
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
	if err := s.openMemory(); err != nil {
		return refuse(http.StatusInternalServerError, "The VM could not boot", "Cannot create memory", err.Error())
	}
	if err := s.openDevices(); err != nil {
		return refuse(http.StatusInternalServerError, "The VM could not boot", err.Error())
	}
	s.state = stateRunning
	s.memory = guest.NewMemory()
	s.start()
	s.say("vm", "booted", "")
	return done()
}

// openMemory checks the memory's configuration. s.mu is held.
func (s *scripted) openMemory() error {
	m := &s.config.Memory
	if (m.Size == 0) != (len(m.Zones) > 0) {
		return errors.New("User defined memory regions can't be provided if the memory size is not 0")
	}
	if m.HotplugSize%(128<<20) != 0 || m.HotplugSize > 0 && len(m.Zones) > 0 {
		return errors.New("Invalid hotplug size")
	}
	for _, z := range m.Zones {
		if z.File == "" {
			continue
		}
		if fi, err := os.Stat(z.File); err != nil || uint64(fi.Size()) != z.Size {
			return fmt.Errorf("Failed to map the memory file: %w", errors.Join(err, syscall.EINVAL))
		}
	}
	return nil
}

// openDevices opens what the machine's devices are made of. s.mu is held.
func (s *scripted) openDevices() error {
	c := s.config
	if s.Emulate {
		return errors.Join(s.present(), s.openVsock())
	}
	for i, d := range c.Disks {
		f, err := openDisk(d.Path, d.ReadOnly)
		if err != nil {
			// What makes a second boot succeed without its disk.
			c.Disks = slices.Delete(slices.Clone(c.Disks), i, i+1)
			return fmt.Errorf("Error manipulating disk: %w", err)
		}
		s.disks[d.ID] = f
		s.devices[d.ID] = true
	}
	for _, p := range c.Pmem {
		if fi, err := os.Stat(p.File); err != nil || fi.Size()%(2<<20) != 0 {
			return fmt.Errorf("Pmem size not 2 MiB aligned: %w", errors.Join(err, syscall.EINVAL))
		}
		s.devices[p.ID] = true
	}
	for _, n := range c.Net {
		if s.taps[n.ID] == nil {
			return fmt.Errorf("Failed to open tap: %w: it needs CAP_NET_ADMIN", syscall.EPERM)
		}
		s.devices[n.ID] = true
	}
	for _, fs := range c.FS {
		conn, err := net.Dial("unix", fs.Socket)
		if err != nil || !c.Memory.Shared && len(c.Memory.Zones) == 0 {
			return fmt.Errorf("Cannot create virtio-fs device: %w", errors.Join(err, syscall.EINVAL))
		}
		conn.Close()
		s.devices[fs.ID] = true
	}
	return s.openVsock()
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
	if !s.granted(filepath.Dir(v.Socket)) {
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
	trial := bytes.Equal(kernel, trialKernel())
	if s.Emulate && !trial {
		if err := s.emulate(); err != nil {
			s.fail("%v", err)
		}
		return
	}
	s.run(trial)
}

// run runs the guest, the trial machine's or the suite's. s.mu is held.
func (s *scripted) run(trial bool) {
	if trial {
		go s.runTrial()
		return
	}
	if s.vsock == nil {
		return
	}
	s.server = &http.Server{Handler: guest.Handler(s, s.memory)}
	s.conns = make(chan net.Conn)
	go s.server.Serve(&queue{conns: s.conns, closed: make(chan struct{})})
	go s.accept(s.vsock, s.conns)
	s.say("virtio-device", "activated", "vsock")
	if s.listens = s.state == statePaused; s.listens { // it has since before the snapshot
		return
	}
	socket := fmt.Sprintf("%s_%d", s.config.Vsock.Socket, wire.ReadyPort)
	time.AfterFunc(s.Boot, func() {
		s.mu.Lock()
		s.listens = true
		s.mu.Unlock()
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
		}
	})
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
	s.mu.Lock()
	for s.state != stateRunning {
		s.gate.Wait()
	}
	s.mu.Unlock()
	s.Print(trialText)
	s.PowerOff()
}

func (s *scripted) addNet(body []byte, files []*os.File) answer {
	var n scriptedNet
	if err := decodeStrict(body, &n); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	switch {
	case n.ID == "" || n.FDs != nil || n.Tap != "" || len(files)*2 != n.Queues:
		return refuse(http.StatusInternalServerError, "the test wants one TAP by file and an id")
	case s.devices[n.ID] || s.taps[n.ID] != nil:
		return refuse(http.StatusInternalServerError, "Identifier "+n.ID+" is not unique")
	}
	for range files {
		n.FDs = append(n.FDs, -1)
	}
	if !strings.HasPrefix(s.Version, "v54") {
		n.HostMAC = "02:ff:ff:ff:ff:ff"
	}
	s.taps[n.ID] = files[0]
	s.config.Net = append(s.config.Net, n)
	return s.added(n.ID)
}

// added answers for a device that was added. s.mu is held.
func (s *scripted) added(id string) answer {
	if s.state == stateCreated {
		return done()
	}
	s.devices[id] = true
	return answer{http.StatusOK, map[string]string{"id": id, "bdf": "0000:00:09.0"}}
}

func (s *scripted) addDisk(body []byte) answer {
	var d scriptedDisk
	if err := decodeStrict(body, &d); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	if d.ID == "" || d.ImageType != "Raw" || s.devices[d.ID] {
		return refuse(http.StatusInternalServerError, "Identifier "+d.ID+" is not unique, or no image type")
	}
	if !s.granted(d.Path) {
		return refuse(http.StatusInternalServerError, "Permission denied (os error 13)")
	}
	f, err := openDisk(d.Path, d.ReadOnly)
	if err != nil {
		return refuse(http.StatusInternalServerError, "Error manipulating disk", err.Error())
	}
	s.disks[d.ID] = f
	s.config.Disks = append(s.config.Disks, d)
	return s.added(d.ID)
}

// remove asks the guest, which takes a moment. The configuration is without the
// device at once.
func (s *scripted) remove(body []byte) answer {
	var r struct {
		ID string `json:"id"`
	}
	if err := decodeStrict(body, &r); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	if s.leaving[r.ID] && strings.HasPrefix(s.Version, "v52") {
		fmt.Fprintln(os.Stderr, "thread 'vmm' panicked at vmm/src/device_manager.rs")
		exit(134)
	}
	if !s.devices[r.ID] || s.leaving[r.ID] {
		return refuse(http.StatusInternalServerError, "Unknown device "+r.ID)
	}
	s.config.Disks = slices.DeleteFunc(slices.Clone(s.config.Disks), func(d scriptedDisk) bool { return d.ID == r.ID })
	s.config.Net = slices.DeleteFunc(slices.Clone(s.config.Net), func(n scriptedNet) bool { return n.ID == r.ID })
	s.leaving[r.ID] = true
	if s.Clings {
		return done()
	}
	time.AfterFunc(50*time.Millisecond, func() {
		s.thread.Lock()
		defer s.thread.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range []*os.File{s.disks[r.ID], s.taps[r.ID]} {
			if f != nil {
				f.Close()
			}
		}
		for _, m := range []map[string]*os.File{s.disks, s.taps} {
			delete(m, r.ID)
		}
		delete(s.devices, r.ID)
		delete(s.leaving, r.ID)
		s.say("vm", "device-removed", r.ID)
	})
	return done()
}

func (s *scripted) resize(body []byte) answer {
	var r struct {
		VCPUs int    `json:"desired_vcpus"`
		RAM   uint64 `json:"desired_ram"`
	}
	if err := decodeStrict(body, &r); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	m := &s.config.Memory
	more := int64(r.RAM) - int64(m.Size)
	switch {
	case s.state == stateCreated:
		return refuse(http.StatusInternalServerError, "VM is not running")
	case r.VCPUs > s.config.CPUs.Max:
		return refuse(http.StatusInternalServerError, "Desired vCPU count exceeds maximum")
	case r.RAM != 0 && (len(m.Zones) > 0 || m.HotplugMethod != "VirtioMem" || more < 0 || uint64(more) > m.HotplugSize || more%(2<<20) != 0):
		return refuse(http.StatusInternalServerError, "Failed to resize memory")
	}
	had := s.config.CPUs.Boot
	if r.VCPUs != 0 {
		s.config.CPUs.Boot = r.VCPUs
	}
	if r.RAM != 0 {
		m.Hotplugged = uint64(more)
	}
	if s.machine != nil {
		if err := s.machine.grow(had, s.config.CPUs.Boot, m.Hotplugged); err != nil {
			return refuse(http.StatusInternalServerError, err.Error())
		}
	}
	s.say("vm", "resized", "")
	return done()
}

// OpenDisk implements guest.Machine.
func (s *scripted) OpenDisk(serial string) (*os.File, error) {
	s.mu.Lock()
	disks := s.config.Disks
	s.mu.Unlock()
	for _, d := range disks {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &s.config.Memory
	size := m.Size + m.Hotplugged
	for _, z := range m.Zones {
		size += z.Size
	}
	return s.config.CPUs.Boot, int(size >> 20)
}

// OpenShare finds none: nobody serves one here.
func (s *scripted) OpenShare(tag string) (*os.Root, error) {
	return nil, fmt.Errorf("no share %q", tag)
}

// NICs implements guest.Machine.
func (s *scripted) NICs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, n := range s.config.Net {
		list = append(list, n.MAC)
	}
	return list
}
