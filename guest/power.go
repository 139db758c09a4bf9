package guest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// unmountDisks unmounts every file system that lives on a block device, the
// latest first. What is in memory goes with the machine.
func unmountDisks(sys Sys) error {
	b, err := sys.ReadFile("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	var targets []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && strings.HasPrefix(f[0], "/dev/") {
			targets = append(targets, unescapeMount(f[1]))
		}
	}
	var errs []error
	for _, target := range slices.Backward(targets) {
		errs = append(errs, sys.Unmount(target))
	}
	return errors.Join(errs...)
}

// unescapeMount undoes the octal escapes of proc_pid_mounts(5).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
