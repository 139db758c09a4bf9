package guest

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Real-time signals as C libraries count them: two are their own (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// parseSignal knows signals by name, with or without SIG, and by number; those
// of real time as RTMIN, RTMIN+n, RTMAX-n and RTMAX. "" is SIGTERM.
func parseSignal(name string) (syscall.Signal, error) {
	if name == "" {
		return syscall.SIGTERM, nil
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil && n > 0 && n <= sigRTMax {
		return syscall.Signal(n), nil
	}
	short := strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if sig := unix.SignalNum("SIG" + short); sig != 0 {
		return sig, nil
	}
	if sig, ok := realTime(short); ok {
		return sig, nil
	}
	return 0, fmt.Errorf("stop signal %q is neither the name nor the number of a signal", name)
}

// realTime parses RTMIN+3 and the like.
func realTime(s string) (syscall.Signal, bool) {
	base, rest, sign := 0, "", 1
	if r, ok := strings.CutPrefix(s, "RTMIN"); ok {
		base, rest = sigRTMin, r
	} else if r, ok := strings.CutPrefix(s, "RTMAX"); ok {
		base, rest, sign = sigRTMax, r, -1
	} else {
		return 0, false
	}
	if rest == "" {
		return syscall.Signal(base), true
	}
	if rest[0] != '+' && sign > 0 || rest[0] != '-' && sign < 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(rest[1:], 10, 8)
	sig := base + sign*int(n)
	return syscall.Signal(sig), err == nil && sig >= sigRTMin && sig <= sigRTMax
}

// signalName is what people call a signal.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("SIG%d", int(sig)) // one of real time
}
