package netdev

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// tapPrefix begins every tap's name. The rules drop what comes in through any device so named, unless a port allows it.
	tapPrefix = "vlt"
	// tapAliasPrefix and the VM's id are a tap's alias.
	tapAliasPrefix = "volant:"
	// maxVMID keeps the alias well under the kernel's 255 bytes.
	maxVMID = 128

	// tapFlags are what a VMM expects: Ethernet frames, each behind a virtio_net_hdr and without the four bytes of struct tun_pi.
	// Spelled out, since netlink's Tuntap with no flags silently becomes a multi-queue device (vishvananda/netlink#574).
	tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

	// portGroupFwdMask has a bit for each link-local group 01:80:c2:00:00:0x whose frames are treated as any others: all but
	// MAC control (01), which the kernel always drops and refuses here. Without it such frames skip the hooks that our rules are on:
	// the bridge learns forged MACs from them, and hands them to the host's IP layer as if the tap were an interface of its own
	// (br_handle_frame in net/bridge/br_input.c of Linux 6.18).
	portGroupFwdMask uint16 = 0xffff &^ (1 << 1)

	// ip6AddrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
	ip6AddrGenNone = 1
)

// Tap is one of Volant's taps.
type Tap struct {
	Name string // interface name
	VM   string // id of the VM it was made for
}

// TapName is the name of the tap of the VM with this id: "vlt" and 12 hexadecimal digits of the id's SHA-256, which is all
// that an interface name has room for. Two ids with the same name (48 bits: not before millions of VMs) are told apart by the alias, and
// the second is refused.
func TapName(vmID string) string {
	h := sha256.Sum256([]byte("volant tap " + vmID))
	return tapPrefix + hex.EncodeToString(h[:6])
}

// tapPattern reports whether the rules take a device of that name for a tap.
func tapPattern(name string) bool { return strings.HasPrefix(name, tapPrefix) }

// checkVMID admits what is safe in an alias and in a message.
func checkVMID(id string) error {
	if id == "" || len(id) > maxVMID {
		return fmt.Errorf("VM id %q: must have 1 to %d characters", id, maxVMID)
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("VM id %q: only printable ASCII without spaces", id)
		}
	}
	return nil
}

// tapVM returns the VM that a device is a tap of, and whether it is one of our taps at all.
func tapVM(l netlink.Link) (vm string, ours bool) {
	t, isTun := l.(*netlink.Tuntap)
	if !isTun || t.Mode != netlink.TUNTAP_MODE_TAP {
		return "", false
	}
	vm, ours = strings.CutPrefix(l.Attrs().Alias, tapAliasPrefix)
	return vm, ours && vm != ""
}

// findTap returns the tap of a VM, nil if there is none, or ErrForeign if its name is taken by something else.
func findTap(vmID string) (netlink.Link, error) {
	link, err := findLink(TapName(vmID))
	if err != nil || link == nil {
		return nil, err
	}
	vm, ours := tapVM(link)
	switch {
	case !ours:
		return nil, fmt.Errorf("%w: a %s with the alias %q has the name; remove it", ErrForeign, link.Type(), link.Attrs().Alias)
	case vm != vmID:
		return nil, fmt.Errorf("%w for this VM: VM %q has the name", ErrForeign, vm)
	}
	return link, nil
}

// AddTap makes sure that the VM has a tap, up and attached to the bridge, and returns its name. Calling it again is harmless. The
// tap stays until RemoveTap, whether anybody holds it open or not. Until ApplyRules names it the guest can send nothing.
//
// On error nothing is left that was not there before. Fails with ErrForeign, ErrNoBridge, ErrFull, or as described at the errors of this package.
func (n *Network) AddTap(ctx context.Context, vmID string) (name string, err error) {
	if err := checkVMID(vmID); err != nil {
		return "", err
	}
	n.adding.Lock()
	defer n.adding.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}

	name = TapName(vmID)
	op := fmt.Sprintf("tap %s of VM %s", name, vmID)
	bridge, err := findLink(n.cfg.Bridge)
	if err != nil {
		return "", explain(op, featNone, err)
	}
	if bridge == nil || bridge.Type() != "bridge" {
		return "", fmt.Errorf("%s: bridge %s: %w", op, n.cfg.Bridge, ErrNoBridge)
	}
	link, err := findTap(vmID)
	if err != nil {
		return "", explain(op, featNone, err)
	}
	if link != nil {
		err = n.configureTap(link, bridge)
	} else {
		err = n.createTap(vmID, bridge)
	}
	if err != nil {
		return "", explain(op, featNone, err)
	}
	return name, nil
}

// createTap makes the tap. It becomes persistent in the last step: until then the kernel removes it when the file is closed, also
// if this process is killed, so that no tap without an alias outlives us.
func (n *Network) createTap(vmID string, bridge netlink.Link) error {
	name := TapName(vmID)
	f, err := n.attach(name, tapFlags|unix.IFF_TUN_EXCL)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	// A tap without an owner may be attached to by every user who can open /dev/net/tun, which is mode 0666 on most hosts.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(n.cfg.TapOwner)); err != nil {
		return fmt.Errorf("set owner %d: %w", n.cfg.TapOwner, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(link, tapAliasPrefix+vmID); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	if err := n.configureTap(link, bridge); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make persistent: %w", err)
	}
	return nil
}

// configureTap attaches our tap to the bridge and sets what Config says.
func (n *Network) configureTap(link, bridge netlink.Link) error {
	a := link.Attrs()
	if a.MTU != n.cfg.MTU {
		if err := netlink.LinkSetMTU(link, n.cfg.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", n.cfg.MTU, err)
		}
	}
	// The host has no use for IPv6 on a bridge port, and guests none for its solicitations. A kernel without IPv6 refuses; that does as well.
	_ = netlink.LinkSetIP6AddrGenMode(link, ip6AddrGenNone)
	if a.MasterIndex != bridge.Attrs().Index {
		err := netlink.LinkSetMasterByIndex(link, bridge.Attrs().Index)
		if errors.Is(err, unix.EXFULL) {
			return fmt.Errorf("bridge %s: %w", n.cfg.Bridge, ErrFull)
		}
		if err != nil {
			return fmt.Errorf("attach to bridge %s: %w", n.cfg.Bridge, err)
		}
	}
	if err := netlink.LinkSetBRSlaveGroupFwdMask(link, portGroupFwdMask); err != nil {
		return fmt.Errorf("set forwarding of link-local groups: %w", err)
	}
	// Where bridged frames pass the IPv4 hooks, a guest's connection to its own published port is translated while it is still a frame
	// on the bridge, which would not send it back where it came from. What a guest broadcasts then comes back to it too, IPv4 and ARP.
	if err := netlink.LinkSetHairpin(link, bridgeFiltered()); err != nil {
		return fmt.Errorf("set hairpin: %w", err)
	}
	// On every port or on none: an isolated port still reaches one that is not.
	if err := netlink.LinkSetIsolated(link, n.cfg.Isolate); err != nil {
		return fmt.Errorf("set port isolation: %w", err)
	}
	if a.Flags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	return nil
}

// RemoveTap deletes the VM's tap. None is no error; a device that is not this VM's tap is left alone and ErrForeign returned. It takes the
// kernel some 16 ms, which parallel calls share.
func (n *Network) RemoveTap(ctx context.Context, vmID string) error {
	if err := checkVMID(vmID); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	op := fmt.Sprintf("delete tap %s of VM %s", TapName(vmID), vmID)
	link, err := findTap(vmID)
	if err != nil || link == nil {
		return explain(op, featNone, err)
	}
	// By index, so a device that took the name since is safe.
	return explain(op, featNone, ignoreGone(netlink.LinkDel(link)))
}

// Taps lists Volant's taps, sorted by name. A tap whose VM the daemon does not know is an orphan.
func (n *Network) Taps(ctx context.Context) ([]Tap, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, explain("list taps", featNone, err)
	}
	var taps []Tap
	for _, l := range links {
		if vm, ours := tapVM(l); ours {
			taps = append(taps, Tap{Name: l.Attrs().Name, VM: vm})
		}
	}
	slices.SortFunc(taps, func(a, b Tap) int { return strings.Compare(a.Name, b.Name) })
	return taps, nil
}

// OpenTap opens one of our taps for a VMM, which inherits the file (QEMU: -netdev tap,fd=N) and then needs no privilege and no access to
// this network namespace. Frames on it carry a virtio_net_hdr. The caller closes the file. Only one can be open at a time: ErrBusy.
// A tap that is gone is ErrNoTap.
func (n *Network) OpenTap(name string) (*os.File, error) {
	op := "open tap " + name
	if err := checkIfaceName(name); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	link, err := findLink(name)
	if err != nil {
		return nil, explain(op, featNone, err)
	}
	if link == nil {
		return nil, fmt.Errorf("%s: %w", op, ErrNoTap)
	}
	if _, ours := tapVM(link); !ours {
		return nil, fmt.Errorf("%s: %w", op, ErrForeign)
	}
	f, err := n.attach(name, tapFlags)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %w", op, ErrBusy)
	}
	if err != nil {
		return nil, explain(op, featNone, err)
	}
	// Had the tap been deleted since we looked, the call would have made a new one, attached to nothing. Ours are persistent,
	// that would not be.
	flags, err := tunFlags(f)
	if err != nil {
		f.Close()
		return nil, explain(op, featNone, err)
	}
	if flags&unix.IFF_PERSIST == 0 {
		f.Close()
		return nil, fmt.Errorf("%s: %w", op, ErrNoTap)
	}
	return f, nil
}

// attach opens the clone device and binds it to the named tap, making the tap if need be (TUNSETIFF, tun(4) in the kernel's
// Documentation/networking/tuntap.rst). The file is blocking and close-on-exec.
func (n *Network) attach(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open(n.tunDev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, explain("open "+n.tunDev, featTun, err)
	}
	f := os.NewFile(uintptr(fd), name)
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("attach to %s: %w", name, err)
	}
	return f, nil
}

// tunFlags reads the flags of the tap that f is bound to.
func tunFlags(f *os.File) (uint16, error) {
	req, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNGETIFF, req)
	}
	if err != nil {
		return 0, fmt.Errorf("read flags: %w", err)
	}
	return req.Uint16(), nil
}

// ipNet converts for netlink.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
