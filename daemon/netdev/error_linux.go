package netdev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart. Beside these, a lack of privilege satisfies errors.Is(err, fs.ErrPermission), and a kernel without tap,
// bridge or nftables support errors.Is(err, errors.ErrUnsupported).
var (
	// ErrForeign: a device with the name we need exists and is not Volant's.
	ErrForeign = errors.New("not made by volant")
	// ErrNoTap: the VM has no tap, or it vanished.
	ErrNoTap = errors.New("no such tap")
	// ErrNoBridge: the bridge does not exist; Ensure has not run or somebody deleted it.
	ErrNoBridge = errors.New("no such bridge")
	// ErrFull: the bridge has as many ports as Linux allows (BR_MAX_PORTS, counting from 1).
	ErrFull = errors.New("all 1023 ports are taken")
	// ErrBusy: another process holds the tap open.
	ErrBusy = errors.New("in use by another process")
)

// feature names the part of the kernel that an operation needs, with the way to get it.
type feature string

const (
	featNone      feature = "" // nothing that could be missing
	featTun       feature = "the kernel has no tap devices: load the module tun; in a container, pass /dev/net/tun"
	featBridge    feature = "the kernel has no bridges: load the module bridge"
	featNftables  feature = "the kernel lacks nftables for the families ip and bridge, or its NAT: load nf_tables, nft_chain_nat, nft_masq, nft_nat and nft_fib_ipv4"
	featConntrack feature = "the kernel does not show its connections: load the module nf_conntrack_netlink"
)

// hint is an error with one sentence on what to do about it, where errno alone would leave the reader guessing.
type hint struct {
	text string
	err  error
	kind error // errors.ErrUnsupported or nil
}

func (h *hint) Error() string        { return h.text + ": " + h.err.Error() }
func (h *hint) Unwrap() error        { return h.err }
func (h *hint) Is(target error) bool { return h.kind != nil && target == h.kind }

// explain wraps err with the operation and, the first time, with a hint.
func explain(op string, need feature, err error) error {
	if err == nil {
		return nil
	}
	if !errors.As(err, new(*hint)) {
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			err = &hint{text: "needs root or CAP_NET_ADMIN", err: err}
		case isUnsupported(need, err):
			err = &hint{text: string(need), err: err, kind: errors.ErrUnsupported}
		}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// isUnsupported reports whether err is how the kernel says that it lacks a feature, which differs by subsystem.
func isUnsupported(need feature, err error) bool {
	var errnos []unix.Errno
	switch need {
	case featTun: // no device node, or a node without the module
		errnos = []unix.Errno{unix.ENOENT, unix.ENODEV, unix.ENXIO}
	case featBridge:
		errnos = []unix.Errno{unix.EOPNOTSUPP}
	case featNftables: // ENOENT: our transactions name nothing that they did not make, so it is an unknown expression or chain type
		errnos = []unix.Errno{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT}
	case featConntrack: // EINVAL: nfnetlink knows no such subsystem
		errnos = []unix.Errno{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EINVAL}
	}
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
