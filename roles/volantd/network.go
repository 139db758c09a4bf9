package volantd

import (
	"context"
	"errors"
	"log/slog"

	"github.com/volantvm/volant/daemon"
	"github.com/volantvm/volant/daemon/netdev"
)

// network fits netdev's Network to what the daemon asks for.
type network struct {
	*netdev.Network
	log *slog.Logger
}

var _ daemon.Network = network{}

// Ensure makes bridge and rules, and logs what an operator should know.
func (n network) Ensure(ctx context.Context) error {
	r, err := n.Network.Ensure(ctx)
	if err != nil {
		return err
	}
	if r.ForwardingEnabled {
		n.log.Info("IPv4 forwarding was off and is now on", "sysctl", "net.ipv4.ip_forward")
	}
	if r.BridgeFiltered {
		n.log.Warn("traffic between VMs also passes the host's own packet filter", "sysctl", "net.bridge.bridge-nf-call-iptables")
	}
	return nil
}

// Taps returns the names of Volant's taps by VM id.
func (n network) Taps(ctx context.Context) (map[string]string, error) {
	taps, err := n.Network.Taps(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(taps))
	for _, t := range taps {
		out[t.VM] = t.Name
	}
	return out, nil
}

// Reserve hands the ports on.
func (n network) Reserve(ctx context.Context, vm string, publish []daemon.Publish) error {
	return portError(n.Network.Reserve(ctx, vm, published(publish)))
}

// CheckPort hands the port on.
func (n network) CheckPort(p daemon.Publish) error {
	return portError(n.Network.CheckPort(netdev.Publish(p)))
}

// ApplyRules hands the ports on.
func (n network) ApplyRules(ctx context.Context, ports []daemon.Port) error {
	out := make([]netdev.Port, len(ports))
	for i, p := range ports {
		out[i] = netdev.Port{Tap: p.Tap, MAC: p.MAC, IP: p.IP, Publish: published(p.Publish)}
	}
	return n.Network.ApplyRules(ctx, out)
}

func published(publish []daemon.Publish) []netdev.Publish {
	out := make([]netdev.Publish, len(publish))
	for i, p := range publish {
		out[i] = netdev.Publish(p)
	}
	return out
}

// portError makes the daemon know what netdev says of a host port.
func portError(err error) error {
	switch {
	case errors.Is(err, netdev.ErrPortInUse):
		return &kindError{err, daemon.ErrPortInUse}
	case errors.Is(err, netdev.ErrNoAddress):
		return &kindError{err, daemon.ErrNoAddress}
	}
	return err
}

// kindError is an error that is of another room's kind as well.
type kindError struct {
	error
	kind error
}

func (e *kindError) Unwrap() []error { return []error{e.error, e.kind} }
