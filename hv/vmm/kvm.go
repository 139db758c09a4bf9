package vmm

import (
	"errors"
	"os"
	"slices"
	"strings"
)

// CheckKVM says why KVM cannot run ordinary guests, as far as one can tell
// without running one. A /dev/kvm that opens is no proof: it is there under some
// paravirtual hypervisors too, whose guests must be made for them. So the
// processor must have the extensions, and the error is ErrNoExtensions if that
// is all that is amiss.
func CheckKVM() error {
	if err := Opens("/dev/kvm"); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !hasVirtualization(b) {
		return ErrNoExtensions
	}
	return nil
}

// ErrNoExtensions says that there is a KVM, but not one for ordinary guests.
var ErrNoExtensions = errors.New("the processor shows neither vmx nor svm")

// hasVirtualization looks for the flags of Intel VT-x and AMD-V in the text of
// /proc/cpuinfo.
func hasVirtualization(cpuinfo []byte) bool {
	for line := range strings.Lines(string(cpuinfo)) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		f := strings.Fields(flags)
		return slices.Contains(f, "vmx") || slices.Contains(f, "svm")
	}
	return false
}

// Opens says why the device at path cannot be opened for reading and writing.
func Opens(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
