package guest

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// ErrRefused is why kestrel does nothing outside a Volant guest.
var ErrRefused = errors.New("refused: this runs only as process 1 of a Volant guest")

// Guard refuses, with an error that wraps ErrRefused, unless this is process 1
// on an initramfs that was booted with volant.vm= on the kernel command line.
// When it grants, /proc is mounted; when it refuses, everything is as it was.
// The package comment says in which order it asks, and why.
func Guard(sys Sys) error {
	if pid := sys.Getpid(); pid != 1 {
		return fmt.Errorf("%w: this is process %d", ErrRefused, pid)
	}
	magic, err := sys.FSMagic("/")
	if err != nil {
		return fmt.Errorf("%w: statfs /: %w", ErrRefused, err)
	}
	if magic != unix.RAMFS_MAGIC && magic != unix.TMPFS_MAGIC {
		return fmt.Errorf("%w: / is not an initramfs (file system type %#x)", ErrRefused, magic)
	}
	line, err := sys.ReadFile(procCmdline)
	if err == nil {
		// Somebody mounted /proc already.
		return checkParams(string(line))
	}
	_, statErr := sys.Stat("/proc")
	if statErr != nil {
		if err := sys.MkdirAll("/proc", 0o555); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	err = sys.Mount(procMount())
	if err == nil {
		line, err = sys.ReadFile(procCmdline)
		if err == nil {
			err = checkParams(string(line))
		}
		if err == nil {
			return nil
		}
		err = errors.Join(err, sys.Unmount("/proc"))
	}
	if statErr != nil {
		err = errors.Join(err, sys.Remove("/proc"))
	}
	if !errors.Is(err, ErrRefused) {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

const procCmdline = "/proc/cmdline"

func checkParams(cmdline string) error {
	if kernelParam(cmdline, wire.ParamVM) == "" {
		return fmt.Errorf("%w: %s= is not on the kernel command line", ErrRefused, wire.ParamVM)
	}
	return nil
}

// kernelParam returns the last value of a parameter on the kernel command line,
// or "". Volant's own values hold neither spaces nor quotes, so no unquoting is
// needed; a parser that unquotes must also survive a lone quote.
func kernelParam(cmdline, name string) string {
	value := ""
	for word := range strings.FieldsSeq(cmdline) {
		if k, v, ok := strings.Cut(word, "="); ok && k == name {
			value = v
		}
	}
	return value
}

func procMount() Mount {
	return Mount{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""}
}
