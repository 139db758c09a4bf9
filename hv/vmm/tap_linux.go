package vmm

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// OpenTap opens the queue of an existing TAP for a VMM that may not do so
// itself: it is passed on, among the files of Spawn or over a socket, and then
// closed here. Frames are behind a virtio_net_hdr. A TAP has one queue: the error
// wraps unix.EBUSY while another has it.
func OpenTap(name string) (*os.File, error) {
	f, err := openTap(name)
	if err != nil {
		return nil, fmt.Errorf("%w: tap %s: %w", hv.ErrInvalidSpec, name, err)
	}
	return f, nil
}

func openTap(name string) (*os.File, error) {
	before, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tap "+name)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		f.Close() // nothing was attached
		return nil, fmt.Errorf("attach: %w", err)
	}
	// Had the device gone meanwhile, the kernel would have made another, which goes
	// again when the file is closed.
	after, err := net.InterfaceByName(name)
	if err == nil && after.Index != before.Index {
		err = fmt.Errorf("was replaced by another device")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
