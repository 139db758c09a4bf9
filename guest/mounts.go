package guest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
)

// mountAll mounts what every guest has; /proc comes from Guard. It stops at an essential entry that fails and
// reports the others together, as errSurvived. What a plan has mounted that could not be followed to its end, and
// what is below that, goes first.
func mountAll(sys Sys) error {
	var survived []error
	for _, m := range plan.Mounts() {
		if !m.Shim {
			_ = sys.Detach(m.Target)
		}
		err := mountAt(sys, m)
		if err != nil && m.Essential {
			return err
		}
		if err != nil {
			survived = append(survived, err)
		}
	}
	for _, l := range plan.DeviceLinks() {
		if err := sys.Symlink(l[0], l[1]); err != nil && !errors.Is(err, unix.EEXIST) {
			survived = append(survived, err)
		}
	}
	if len(survived) > 0 {
		return fmt.Errorf("%w: %w", errSurvived, errors.Join(survived...))
	}
	return nil
}

// mountAt mounts what may be mounted already, by the kernel, the shim or a plan, on
// a directory that it makes.
func mountAt(sys Sys, m plan.Mount) error {
	if err := sys.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	err := sys.Mount(Mount{m.Source, m.Target, m.Type, m.Flags, m.Data})
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
