package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The directories of one VM. Ids are made by the daemon and are safe in paths.
func (d *Daemon) dataDir(vm string) string { return filepath.Join(d.cfg.DataDir, "vms", vm) }
func (d *Daemon) runDirs(vm string) string { return filepath.Join(d.cfg.RuntimeDir, "vms", vm) }
func (d *Daemon) runDir(vm string, incarnation int) string {
	return filepath.Join(d.runDirs(vm), strconv.Itoa(incarnation))
}

// snapshotsDir is where snapshots of VMs lie, which their VMMs write.
func (d *Daemon) snapshotsDir() string { return filepath.Join(d.cfg.DataDir, "snapshots") }

// tempPrefix begins the names of files that are being written. What carries it
// when the daemon starts was left by one that was killed.
const tempPrefix = ".new-"

// writeFile writes a file whole: it has the old content or the new, also after
// a crash of the host.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return commitFile(f, path)
}

// commitFile gives a finished temporary file its name, durably, and closes it.
// On error the file still has its temporary name and is open.
func commitFile(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return f.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readAtMost reads all of r, and fails when that is more than n bytes.
func readAtMost(r io.Reader, n int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, n+1))
	if err == nil && int64(len(b)) > n {
		err = fmt.Errorf("more than %d bytes", n)
	}
	return b, err
}

// fileDigest returns the "sha256:..." digest and the size of a file.
func fileDigest(path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	// A buffer of 256 KiB: with io.Copy's 32 KiB system calls are a tenth of
	// the time that hashing a kernel takes.
	size, err = io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 256<<10))
	if err != nil {
		return "", 0, err
	}
	return digestOf(h.Sum(nil)), size, nil
}

func digestOf(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// freeBytes is how much an unprivileged writer could still write at path.
func freeBytes(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// clip shortens text from elsewhere to at most n bytes and replaces what is not
// UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
