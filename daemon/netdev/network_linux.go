package netdev

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/volantvm/volant/ipam"
)

const (
	defaultMTU = 1500
	minMTU     = 576   // RFC 791: what every IPv4 host must accept
	maxMTU     = 65521 // tap limit: 65535 less an Ethernet header

	// maxIfaceName is IFNAMSIZ less the closing zero byte.
	maxIfaceName = 15
	// parallelDeletes bounds how many taps Teardown removes at once. A deletion waits for an RCU grace period and not for
	// the CPU, and waits in parallel share one.
	parallelDeletes = 16
)

// Config says what the network looks like.
type Config struct {
	// Bridge is the bridge's interface name, at most 15 bytes.
	Bridge string
	// Prefix is the host's address on the bridge with the length of the network: 192.168.127.1/24. IPv4.
	Prefix netip.Prefix
	// MTU of bridge and taps in bytes; 0 means 1500.
	MTU int
	// Isolate keeps guests from reaching each other. They still reach the host and what lies beyond it.
	Isolate bool
	// TapOwner is the user id that may open taps by name without CAP_NET_ADMIN; 0 is root. A VMM that is handed the file of
	// OpenTap needs none.
	TapOwner uint32
}

// Network is the bridge, taps and rules of one Config in the network namespace of the process. There is one per namespace: two
// would replace each other's rules.
//
// All methods may be called concurrently. The order of two calls for the same VM, and of two ApplyRules, is the caller's to
// keep. No method blocks longer than the kernel takes: ctx is looked at before each step and bounds the nftables
// transaction.
type Network struct {
	cfg    Config
	tunDev string // path of the clone device; tests change it

	// setup serialises Ensure, ApplyRules and Teardown, so that the last one to start is the last one to finish. It is held
	// across the system calls because it is they that it orders.
	setup sync.Mutex
	// adding serialises AddTap for the same reason: a tap has no alias for a moment, and a second call for the same VM would take it for
	// a stranger's. The kernel's own lock serialises creation in any case.
	adding sync.Mutex

	reserving sync.Mutex
	// reserved are the sockets that hold published ports, by VM; guarded by reserving. The keys name no guest port.
	reserved map[string]map[Publish]int
}

// Report says what Ensure found and changed.
type Report struct {
	// BridgeCreated: the bridge was not there.
	BridgeCreated bool
	// ForwardingEnabled: net.ipv4.ip_forward was 0 and is now 1. Teardown leaves it, since others may rely on it by then.
	ForwardingEnabled bool
	// BridgeFiltered: net.bridge.bridge-nf-call-iptables is 1, so traffic between guests also passes the host's iptables and nftables rules for
	// IPv4, and a forward policy of drop (Docker sets one) cuts guests off from each other.
	BridgeFiltered bool
}

// New checks cfg. It does not touch the kernel.
func New(cfg Config) (*Network, error) {
	if err := checkIfaceName(cfg.Bridge); err != nil {
		return nil, fmt.Errorf("bridge name %q: %w", cfg.Bridge, err)
	}
	if tapPattern(cfg.Bridge) {
		return nil, fmt.Errorf("bridge name %q: names that begin with %s are for taps", cfg.Bridge, tapPrefix)
	}
	// A pool without reserved ranges has the same rules about prefix and gateway.
	if _, err := ipam.NewPool(cfg.Prefix, cfg.Prefix.Addr()); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", cfg.Bridge, err)
	}
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if cfg.MTU < minMTU || cfg.MTU > maxMTU {
		return nil, fmt.Errorf("bridge %s: MTU %d is outside %d to %d", cfg.Bridge, cfg.MTU, minMTU, maxMTU)
	}
	return &Network{cfg: cfg, tunDev: "/dev/net/tun"}, nil
}

// checkIfaceName holds a name to what the kernel takes (dev_valid_name), and to what needs no quoting.
func checkIfaceName(name string) error {
	if name == "" || len(name) > maxIfaceName {
		return fmt.Errorf("must have 1 to %d characters", maxIfaceName)
	}
	for i, c := range []byte(name) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return errors.New("only letters, digits, '-', '_' and '.', beginning with a letter or digit")
		}
	}
	return nil
}

// Ensure brings the bridge up with its address, turns on IPv4 forwarding, and, where Volant's tables are missing, installs them without
// ports. It changes nothing that is already right. Call it when the daemon starts, then ApplyRules with the ports of all VMs.
//
// A bridge of that name that Volant did not make is refused with ErrForeign unless it carries exactly the configured
// address.
func (n *Network) Ensure(ctx context.Context) (Report, error) {
	n.setup.Lock()
	defer n.setup.Unlock()

	var r Report
	var err error
	if r.BridgeCreated, err = n.ensureBridge(ctx); err != nil {
		return r, err
	}
	if r.ForwardingEnabled, err = enableForwarding(); err != nil {
		return r, err
	}
	r.BridgeFiltered = bridgeFiltered()
	there, err := tablesExist(ctx)
	if err != nil || there {
		return r, err
	}
	return r, n.replaceTables(ctx, nil)
}

// ApplyRules makes the rules say that exactly these ports exist, in one transaction, and the host's ARP table with them. Taps
// not named can send nothing. Connections to ports that are not published any more end. It does not look whether the host itself uses a
// port that is to be published: that is what Reserve is for.
func (n *Network) ApplyRules(ctx context.Context, ports []Port) error {
	if err := n.checkPorts(ports); err != nil {
		return err
	}
	n.setup.Lock()
	defer n.setup.Unlock()
	before, err := published(ctx)
	if err != nil {
		return err
	}
	if err := n.replaceTables(ctx, ports); err != nil {
		return err
	}
	return errors.Join(
		explain("set net.ipv4.conf."+n.cfg.Bridge+".route_localnet", featNone, n.setRouteLocalnet(needsLocalnet(ports))),
		explain("ARP table", featNone, n.pinNeighbours(ctx, ports)),
		forget(ctx, before, targets(ports)),
	)
}

// Teardown removes all that is Volant's: tables, taps, and the bridge if Volant made it. VMs that still run lose their network. What
// is already gone is no error, and one failure does not keep it from removing the rest.
func (n *Network) Teardown(ctx context.Context) error {
	n.setup.Lock()
	defer n.setup.Unlock()

	taps, err := n.Taps(ctx)
	errs := []error{
		err,
		n.releaseAll(),
		explain("close 127.0.0.0/8", featNone, n.setRouteLocalnet(false)), // while the rules still stand
		n.removeTaps(ctx, taps),
		explain("ARP table", featNone, n.pinNeighbours(ctx, nil)), // a bridge that is not ours stays
		n.removeBridge(ctx),
		removeTables(ctx),
	}
	return errors.Join(errs...)
}

// removeTaps deletes taps in parallel.
func (n *Network) removeTaps(ctx context.Context, taps []Tap) error {
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(taps))
		slot = make(chan struct{}, parallelDeletes)
	)
	for i, t := range taps {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			errs[i] = n.RemoveTap(ctx, t.VM)
		})
	}
	wg.Wait()
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
}
