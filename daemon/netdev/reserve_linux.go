package netdev

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Errors of Reserve and CheckPort.
var (
	// ErrPortInUse: a program on the host has the port, or another VM.
	ErrPortInUse = errors.New("in use on the host")
	// ErrNoAddress: the host does not have the address that a port is to be published on.
	ErrNoAddress = errors.New("not an address of this host")
)

// Reserve makes the host's ports that are kept for a VM these and no others; none at all with a nil publish. A kept port is bound
// by a socket of this process that receives nothing: the rules take packets away before any socket is looked for, so a program that
// could still listen there would wait forever, and one that listens already would be cut off. The kernel gives a kept port to no
// outgoing connection either. Ports are kept until they are reserved otherwise, or the process ends.
//
// On error the VM's reservations are what they were. It wraps ErrPortInUse or ErrNoAddress.
func (n *Network) Reserve(ctx context.Context, vm string, publish []Publish) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.reserving.Lock()
	defer n.reserving.Unlock()
	old := n.reserved[vm]
	next := make(map[Publish]int, len(publish))
	undo := func() {
		for p, fd := range next {
			if _, had := old[p]; !had {
				_ = unix.Close(fd)
			}
		}
	}
	for _, p := range publish {
		if err := p.check(); err != nil {
			undo()
			return err
		}
		key := p
		key.GuestPort = 0 // another port of the guest is another rule, and the same socket
		if _, twice := next[key]; twice {
			undo()
			return fmt.Errorf("publish %s: named twice", p)
		}
		if fd, had := old[key]; had {
			next[key] = fd
			continue
		}
		fd, err := n.bind(key)
		if err != nil {
			undo()
			return err
		}
		next[key] = fd
	}
	for p, fd := range old {
		if _, kept := next[p]; !kept {
			_ = unix.Close(fd)
		}
	}
	if len(next) == 0 {
		delete(n.reserved, vm)
		return nil
	}
	if n.reserved == nil {
		n.reserved = make(map[string]map[Publish]int)
	}
	n.reserved[vm] = next
	return nil
}

// CheckPort reports whether Reserve could have the port now, for any VM. It wraps the same errors.
func (n *Network) CheckPort(p Publish) error {
	if err := p.check(); err != nil {
		return err
	}
	n.reserving.Lock()
	defer n.reserving.Unlock()
	fd, err := n.bind(p)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// releaseAll gives up all ports of all VMs.
func (n *Network) releaseAll() error {
	n.reserving.Lock()
	defer n.reserving.Unlock()
	var errs []error
	for _, kept := range n.reserved {
		for _, fd := range kept {
			errs = append(errs, unix.Close(fd))
		}
	}
	n.reserved = nil
	return errors.Join(errs...)
}

// bind makes the socket of a port. The caller holds reserving and closes it.
func (n *Network) bind(p Publish) (int, error) {
	kind := unix.SOCK_STREAM
	if p.Protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("publish %s: socket: %w", p, err)
	}
	addr := &unix.SockaddrInet4{Port: int(p.HostPort), Addr: netip.IPv4Unspecified().As4()}
	if !p.everywhere() {
		addr.Addr = p.HostIP.As4()
	}
	if kind == unix.SOCK_STREAM {
		err = holdTCP(fd, addr)
	} else {
		err = holdUDP(fd, addr)
	}
	if err == nil {
		return fd, nil
	}
	_ = unix.Close(fd)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		if vm := n.holder(p); vm != "" {
			return -1, fmt.Errorf("publish %s: %w, by VM %s", p, ErrPortInUse, vm)
		}
		return -1, fmt.Errorf("publish %s: %w, by another program", p, ErrPortInUse)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return -1, fmt.Errorf("publish %s: %w", p, ErrNoAddress)
	}
	return -1, fmt.Errorf("publish %s: %w", p, err)
}

// holdTCP binds as a server does, which passes over closed connections of an earlier one (TIME_WAIT, a minute of them), and then
// stops listening: a packet that meets the socket all the same is refused and does not wait for an accept that never comes. It
// takes both calls to keep others out: a socket that was bound with SO_REUSEADDR and never listened shares its port with the
// next of its kind.
func holdTCP(fd int, addr unix.Sockaddr) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, addr); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0); err != nil {
		return err
	}
	return unix.Shutdown(fd, unix.SHUT_RDWR)
}

// holdUDP binds the port. What reaches the socket past the rules fills its buffer, the smallest that there is, and is then dropped.
func holdUDP(fd int, addr unix.Sockaddr) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
		return err
	}
	return unix.Bind(fd, addr)
}

// holder returns the VM that a port is kept for, or "".
func (n *Network) holder(p Publish) string {
	for vm, kept := range n.reserved {
		for q := range kept {
			if p.overlaps(q) {
				return vm
			}
		}
	}
	return ""
}
