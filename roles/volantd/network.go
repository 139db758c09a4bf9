package volantd

import (
	"context"
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

// ApplyRules hands the ports on.
func (n network) ApplyRules(ctx context.Context, ports []daemon.Port) error {
	out := make([]netdev.Port, len(ports))
	for i, p := range ports {
		out[i] = netdev.Port{Tap: p.Tap, MAC: p.MAC, IP: p.IP}
	}
	return n.Network.ApplyRules(ctx, out)
}
