// Package httpapitest has a Service of package httpapi that lives in memory, for
// tests of the server, the client and the command line. It keeps the contract
// that Service states, and a machine of it boots at once, unless the test holds
// it. Its clock stands still but for one second per event, so what it shows can
// be compared with golden files.
package httpapitest

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
)

// Service is a daemon without machines. The zero value is empty and usable. It
// is safe for concurrent use.
type Service struct {
	// Boot says what becomes of the VM of this name when it is started: "" or
	// "healthy", "running" (never healthy), "unhealthy", "loop" (a crash loop), "starting" (hangs), "waiting" (for another), or anything else,
	// which is the reason of its crash. Set once before use.
	Boot map[string]string
	// Err makes the method of this name return an error, in place of doing its
	// work. Set once before use.
	Err map[string]error
	// Hypervisors is what Doctor finds; nil is one that emulates, and one that
	// does not work. Set once before use.
	Hypervisors []api.HypervisorCheck
	// Workload serves the workload of every VM. Set once before use.
	Workload http.Handler
	// Session plays the guest's part of an exec, or of an attach, for which e is
	// nil. nil is DefaultSession. Set once before use.
	Session func(vm string, e *api.Exec, r *stdio.Reader, w *stdio.Writer)
	// Connect, if set, plays it in Session's place, whatever it says.
	Connect func(net.Conn)
	// Logs is what every VM has written. Set once before use.
	Logs []api.LogEntry
	// Files is a directory that is the root of every VM. Set once before use.
	Files string
	// CopyFrom, if set, is what a VM sends as the archive of a file. Set once
	// before use.
	CopyFrom func(f api.File) io.ReadCloser
	// ImageConfig is the configuration of every image that is pulled. Set once before
	// use.
	ImageConfig api.ImageConfig
	// Pulling, when set, is called in the middle of every pull, whose error it
	// returns. Set once before use.
	Pulling func(ctx context.Context) error

	// Answers are what is kept of requests with these idempotency keys, whatever
	// they were.
	Answers map[string]api.Answer

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change; guarded by mu, as is all below
	vms     map[string]*api.VM
	plugins map[string]api.Plugin
	kernels map[string]api.Kernel
	blobs   map[string]int64
	images  map[string]api.Image // by ID
	volumes map[string]api.Volume
	auth    *api.RegistryAuth // of the last pull
	journal []api.Event
	configs map[string][]api.VMConfigVersion // guarded by mu; by VM id, the newest first
	answers map[string]keptAnswer            // guarded by mu; by idempotency key
	created api.VMCreate
	serial  int
	puts    int // uploads of blobs that were begun
}

// epoch is when a Service's clock starts.
func epoch() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }

// lock takes the mutex and makes the maps of a zero Service.
func (s *Service) lock() {
	s.mu.Lock()
	if s.changed == nil {
		s.changed = make(chan struct{})
		s.vms, s.plugins = map[string]*api.VM{}, map[string]api.Plugin{}
		s.kernels, s.blobs = map[string]api.Kernel{}, map[string]int64{}
		s.images, s.volumes = map[string]api.Image{}, map[string]api.Volume{}
	}
}

func (s *Service) now() time.Time { return epoch().Add(time.Duration(len(s.journal)) * time.Second) }

// emit appends to the journal. The caller holds mu.
func (s *Service) emit(e api.Event) {
	e.Seq, e.Time = uint64(len(s.journal)+1), s.now()
	s.journal = append(s.journal, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Service) emitVM(t api.EventType, vm *api.VM) {
	s.emit(api.Event{Type: t, Name: vm.Name, VMID: vm.ID, Status: vm.Status, IPAddress: vm.IPAddress, PID: vm.PID, Message: vm.Reason, Labels: maps.Clone(vm.Labels)})
}

func (s *Service) find(name string) *api.VM {
	if vm := s.vms[name]; vm != nil {
		return vm
	}
	for _, vm := range s.vms {
		if vm.ID == name {
			return vm
		}
	}
	return nil
}

// vm returns the VM called name, or the error that there is none.
func (s *Service) vm(name string) (*api.VM, error) {
	if vm := s.find(name); vm != nil {
		return vm, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "there is no VM %q", name)
}
