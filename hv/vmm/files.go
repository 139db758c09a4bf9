package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/volantvm/volant/hv"
)

// CheckDir wants a directory that no earlier life of the machine has used: none
// of the names in own is there. Its errors wrap hv.ErrInvalidSpec.
func CheckDir(dir string, own []string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", hv.ErrInvalidSpec, err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("%w: %s is no directory", hv.ErrInvalidSpec, dir)
	}
	for _, name := range own {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%w: directory %s has been used before: it holds %s", hv.ErrInvalidSpec, dir, name)
		}
	}
	return nil
}

// CheckFile wants a file or block device that can be opened with mode, a flag of
// open(2). Its errors wrap hv.ErrInvalidSpec and name it as what.
func CheckFile(what, path string, mode int) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", hv.ErrInvalidSpec, what, err)
	}
	// Anything but a file or a block device could block the open.
	if !fi.Mode().IsRegular() && fi.Mode().Type() != os.ModeDevice {
		return fmt.Errorf("%w: %s %s is neither a file nor a block device", hv.ErrInvalidSpec, what, path)
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", hv.ErrInvalidSpec, what, err)
	}
	return f.Close()
}

// RemoveIfThere removes a file, which may be gone.
func RemoveIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// NotListening says that err, of a connection to a Unix socket, means that the
// socket is not there yet.
func NotListening(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// LastLine returns the end of what a program said, for an error.
func LastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}
