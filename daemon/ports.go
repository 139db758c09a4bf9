package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// Network is what the daemon needs of the host's network. Package
// daemon/netdev implements it. All methods are idempotent and safe for
// concurrent use.
type Network interface {
	// Ensure makes the bridge and the host's side of it.
	Ensure(ctx context.Context) error
	// AddTap makes the tap of a VM, closed until ApplyRules opens it, and
	// returns its name.
	AddTap(ctx context.Context, vm string) (tap string, err error)
	// RemoveTap removes the tap of a VM; one that is not there is no error.
	RemoveTap(ctx context.Context, vm string) error
	// Taps returns the names of all taps that are Volant's, by VM id.
	Taps(ctx context.Context) (map[string]string, error)
	// Reserve makes the host's ports that are kept for a VM these and no others;
	// none with a nil publish. Nobody else can have them until they are given up
	// or the process ends. On error the VM keeps what it had; it wraps
	// ErrPortInUse or ErrNoAddress.
	Reserve(ctx context.Context, vm string, publish []Publish) error
	// CheckPort reports whether Reserve could have the port now.
	CheckPort(p Publish) error
	// Traffic returns how many bytes a VM has received and sent through its tap.
	Traffic(ctx context.Context, vm string) (received, sent int64, err error)
	// ApplyRules replaces what guests may send, and what of them is published,
	// by what these ports say. No host port may be there twice.
	ApplyRules(ctx context.Context, ports []Port) error
}

// What Reserve and CheckPort of a Network say.
var (
	ErrPortInUse = errors.New("the port is in use on the host")
	ErrNoAddress = errors.New("the host does not have the address")
)

// Port says which guest is behind a tap, and what of it is published.
type Port struct {
	Tap     string
	MAC     net.HardwareAddr
	IP      netip.Addr
	Publish []Publish
}

// Publish is a port of a guest that is reached through the host.
type Publish struct {
	HostIP              netip.Addr // IPv4; the zero Addr for all of the host's
	HostPort, GuestPort uint16
	Protocol            string // "tcp" or "udp"
}

// ports is the set of open ports, and orders its way to the kernel: rules are
// always replaced whole, so the last one to write must know of all.
type ports struct {
	net  Network
	turn chan struct{} // held while rules are applied

	mu      sync.Mutex
	set     map[string]Port // guarded by mu; by VM id
	want    uint64          // guarded by mu; counts changes of set
	applied uint64          // guarded by mu; the newest want that is in the kernel
}

func newPorts(n Network) *ports {
	return &ports{net: n, turn: make(chan struct{}, 1), set: make(map[string]Port)}
}

// put opens the port of a VM. If the host's ports that it publishes cannot be had, nothing changes.
func (p *ports) put(ctx context.Context, vm string, port Port) error {
	if err := p.net.Reserve(ctx, vm, port.Publish); err != nil {
		return err
	}
	p.mu.Lock()
	p.set[vm] = port
	p.want++
	p.mu.Unlock()
	return p.apply(ctx)
}

// drop closes the port of a VM, if it has one, and then gives up what was reserved for it.
func (p *ports) drop(ctx context.Context, vm string) error {
	p.mu.Lock()
	_, open := p.set[vm]
	if open {
		delete(p.set, vm)
		p.want++
	}
	p.mu.Unlock()
	if open {
		if err := p.apply(ctx); err != nil {
			return err
		}
	}
	return p.net.Reserve(ctx, vm, nil)
}

// reset makes set the whole set, for a daemon that finds VMs running. They published their ports before, so that a program which
// has bound one since hears nothing there: the rules stay, and taken says, by VM, what could not be reserved again.
func (p *ports) reset(ctx context.Context, set map[string]Port) (taken map[string]error, err error) {
	taken = make(map[string]error)
	for vm, port := range set {
		if err := p.net.Reserve(ctx, vm, port.Publish); err != nil {
			taken[vm] = err
		}
	}
	p.mu.Lock()
	p.set = maps.Clone(set)
	p.want++
	p.mu.Unlock()
	return taken, p.apply(ctx)
}

// apply brings the set to the kernel. Calls that come while another is at it
// share the next one.
func (p *ports) apply(ctx context.Context) error {
	p.mu.Lock()
	mine := p.want
	p.mu.Unlock()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	done, at := p.applied >= mine, p.want
	list := slices.SortedFunc(maps.Values(p.set), func(a, b Port) int { return strings.Compare(a.Tap, b.Tap) })
	p.mu.Unlock()
	if done {
		return nil
	}
	if err := p.net.ApplyRules(ctx, list); err != nil {
		return err
	}
	p.mu.Lock()
	p.applied = at
	p.mu.Unlock()
	return nil
}

// choosePorts returns the ports of a VM and, if any is to be published, what
// chooses the host's ports once those that are taken are known.
func (d *Daemon) choosePorts(manifest, request []api.Port, vsock bool) ([]api.Port, func([]row.Published) ([]api.Port, error), error) {
	all := api.MergePorts(manifest, request)
	published := len(request) > 0
	for i := range all {
		complete(&all[i])
		published = published || all[i].HostPort != 0
	}
	if !published {
		return all, nil, nil
	}
	if vsock {
		return nil, nil, api.Errorf(api.CodeInvalid, "ports: with network mode vsock the VM has no address whose ports could be published")
	}
	return all, func(taken []row.Published) ([]api.Port, error) {
		out := slices.Clone(all)
		for i := range out {
			p := &out[i]
			asked := i >= len(out)-len(request)
			switch {
			case p.HostPort != 0:
				if err := d.canPublish(*p, nil, taken); err != nil {
					return nil, err
				}
			case asked:
				if p.HostPort = d.freePort(*p, out, taken); p.HostPort == 0 {
					return nil, api.Errorf(api.CodeExhausted, "no host port from %d on is free", api.FirstHostPort).WithHint("delete VMs that are not needed, or name a port")
				}
			}
		}
		return out, nil
	}, nil
}

// complete writes out what a port leaves to its defaults.
func complete(p *api.Port) {
	if p.Protocol == "" {
		p.Protocol = api.ProtocolTCP
	}
	if p.HostIP == "0.0.0.0" {
		p.HostIP = ""
	}
}

// canPublish refuses a port of the host that another has, a VM or a program. own
// are those that the VM itself has.
func (d *Daemon) canPublish(p api.Port, own []api.Port, taken []row.Published) error {
	if i := slices.IndexFunc(taken, func(t row.Published) bool { return t.Port.Conflicts(p) }); i >= 0 {
		return api.Errorf(api.CodeExists, "host port %d/%s is published by VM %s", p.HostPort, p.Protocol, taken[i].VM).
			WithHint("choose another host port, or delete that VM")
	}
	if slices.ContainsFunc(own, p.Conflicts) {
		return nil
	}
	return d.hostPortFree(p)
}

// freePort returns the lowest host port that p can have, 0 when there is none.
func (d *Daemon) freePort(p api.Port, own []api.Port, taken []row.Published) int {
	for p.HostPort = api.FirstHostPort; p.HostPort <= 65535; p.HostPort++ {
		if slices.ContainsFunc(own, p.Conflicts) || slices.ContainsFunc(taken, func(t row.Published) bool { return t.Port.Conflicts(p) }) {
			continue
		}
		if d.hostPortFree(p) == nil {
			return p.HostPort
		}
	}
	return 0
}

// hostPortFree asks whether another program of the host has the port.
func (d *Daemon) hostPortFree(p api.Port) error {
	if d.cfg.Network == nil {
		return nil
	}
	pub, err := publishOf(p)
	if err != nil {
		return err
	}
	if err := d.cfg.Network.CheckPort(pub); err != nil {
		return fmt.Errorf("publish %d/%s: %w", p.HostPort, p.Protocol, err)
	}
	return nil
}
