package guest

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nics configures network devices by ioctl, netdevice(7): what a boot needs, for
// IPv4. To do the same by netlink, with the library that Rewire uses, costs an
// emulated guest 50 ms more, before its workload.
type nics struct{ fd int }

func openNICs() (nics, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return nics{fd}, os.NewSyscallError("socket", err)
}

func (n nics) close() { unix.Close(n.fd) } // nothing was written

// ifreq is struct ifreq of net/if.h.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [3]uintptr // a union, of which struct ifmap is the largest
}

func newIfreq(name string) *ifreq {
	r := new(ifreq)
	copy(r.name[:unix.IFNAMSIZ-1], name)
	return r
}

func (r *ifreq) int() *int32    { return (*int32)(unsafe.Pointer(&r.data)) }
func (r *ifreq) flags() *uint16 { return (*uint16)(unsafe.Pointer(&r.data)) }

// sockaddr is the union as a struct sockaddr.
func (r *ifreq) sockaddr() *[16]byte { return (*[16]byte)(unsafe.Pointer(&r.data)) }

func (n nics) ioctl(request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(n.fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func (n nics) request(request uintptr, r *ifreq) error { return n.ioctl(request, unsafe.Pointer(r)) }

// firstIndices are where find looks: the NIC of a machine that boots comes right
// behind lo.
const firstIndices = 16

// find returns the name of a device with a MAC address among the first, "" where
// there is none.
func (n nics) find(mac string) (string, error) {
	for index := int32(loopback + 1); index <= firstIndices; index++ {
		r := new(ifreq)
		*r.int() = index
		err := n.request(unix.SIOCGIFNAME, r)
		if err == nil {
			err = n.request(unix.SIOCGIFHWADDR, r)
		}
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return "", os.NewSyscallError("SIOCGIFHWADDR", err)
		}
		// A struct sockaddr, whose family is the kind of the device.
		if *r.flags() == unix.ARPHRD_ETHER && net.HardwareAddr(r.sockaddr()[2:8]).String() == mac {
			return unix.ByteSliceToString(r.name[:]), nil
		}
	}
	return "", nil
}

func (n nics) up(name string) error {
	r := newIfreq(name)
	if err := n.request(unix.SIOCGIFFLAGS, r); err != nil {
		return os.NewSyscallError("SIOCGIFFLAGS", err)
	}
	*r.flags() |= unix.IFF_UP
	return os.NewSyscallError("SIOCSIFFLAGS", n.request(unix.SIOCSIFFLAGS, r))
}

func (n nics) setMTU(name string, mtu int) error {
	r := newIfreq(name)
	*r.int() = int32(mtu)
	return os.NewSyscallError("SIOCSIFMTU", n.request(unix.SIOCSIFMTU, r))
}

// carries reports whether the kernel lets frames through: the operational state
// is up, or one that the driver does not tell. From Linux 6.7 on, the question
// for the link has the kernel take note of it at once.
func (n nics) carries(name string) (bool, error) {
	r := newIfreq(name)
	ask := struct {
		name [unix.IFNAMSIZ]byte
		link *[2]uint32 // struct ethtool_value
		_    [2]uintptr
	}{r.name, &[2]uint32{unix.ETHTOOL_GLINK}, [2]uintptr{}}
	if err := n.ioctl(unix.SIOCETHTOOL, unsafe.Pointer(&ask)); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return false, os.NewSyscallError("SIOCETHTOOL", err)
	}
	if err := n.request(unix.SIOCGIFFLAGS, r); err != nil {
		return false, os.NewSyscallError("SIOCGIFFLAGS", err)
	}
	return *r.flags()&unix.IFF_RUNNING != 0, nil
}

// sockaddr is an IPv4 address as a struct sockaddr_in.
func sockaddr(ip netip.Addr) (sa [16]byte) {
	binary.NativeEndian.PutUint16(sa[:], unix.AF_INET)
	b := ip.As4()
	copy(sa[4:], b[:])
	return sa
}

// setAddress makes a the device's IPv4 address.
func (n nics) setAddress(name string, a netip.Prefix) error {
	r := newIfreq(name)
	*r.sockaddr() = sockaddr(a.Addr())
	if err := n.request(unix.SIOCSIFADDR, r); err != nil {
		return os.NewSyscallError("SIOCSIFADDR", err)
	}
	*r.sockaddr() = sockaddr(netip.AddrFrom4([4]byte(net.CIDRMask(a.Bits(), 32))))
	return os.NewSyscallError("SIOCSIFNETMASK", n.request(unix.SIOCSIFNETMASK, r))
}

// rtentry is struct rtentry of net/route.h.
type rtentry struct {
	_                     uintptr
	dst, gateway, genmask [16]byte
	flags                 uint16
	_                     int16
	_, _                  uintptr
	metric                int16
	dev                   *byte
	mtu, window           uintptr
	irtt                  uint16
}

// setGateway adds the default route by a device. One that is there already is no
// error.
func (n nics) setGateway(name string, gateway netip.Addr) error {
	dev := newIfreq(name)
	rt := rtentry{gateway: sockaddr(gateway), flags: unix.RTF_UP | unix.RTF_GATEWAY, dev: &dev.name[0]}
	rt.dst, rt.genmask = sockaddr(netip.IPv4Unspecified()), sockaddr(netip.IPv4Unspecified())
	if err := n.ioctl(unix.SIOCADDRT, unsafe.Pointer(&rt)); err != nil && !errors.Is(err, unix.EEXIST) {
		return os.NewSyscallError("SIOCADDRT", err)
	}
	return nil
}
