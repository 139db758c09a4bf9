package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// loadModules loads the kernel modules that wire.ModulesDir lists, in order. A
// guest without that list has everything built in.
func loadModules(sys Sys) error {
	list, err := sys.ReadFile(wire.ModulesDir + "/" + wire.ModulesOrder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errSurvived, err)
	}
	var errs []error
	for line := range strings.Lines(string(list)) {
		name := strings.TrimSpace(line)
		switch {
		case name == "" || name[0] == '#':
			continue
		case strings.Contains(name, "/") || name == "..":
			err = fmt.Errorf("module %q: not a file name", name)
		default:
			err = sys.LoadModule(wire.ModulesDir + "/" + name)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", errSurvived, errors.Join(errs...))
	}
	return nil
}
