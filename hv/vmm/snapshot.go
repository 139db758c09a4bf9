package vmm

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/volantvm/volant/hv"
)

// Shape is what makes up a machine, and must be the same when it is restored:
// its guest has found it so. Paths and addresses are no part of it.
type Shape struct {
	VCPUs        int         `json:"vcpus"`
	MaxVCPUs     int         `json:"max_vcpus"`
	MemoryMiB    int         `json:"memory_mib"`
	MaxMemoryMiB int         `json:"max_memory_mib"`
	Disks        []DiskShape `json:"disks,omitempty"`
	NICs         int         `json:"nics"`
	Shares       []string    `json:"shares,omitempty"` // tags
	Devices      int         `json:"devices"`
	Vsock        bool        `json:"vsock"`
	Balloon      bool        `json:"balloon"`
}

// DiskShape is what a guest finds of a disk.
type DiskShape struct {
	Serial   string `json:"serial"`
	ReadOnly bool   `json:"read_only"`
	Pmem     bool   `json:"pmem"`
}

// ShapeOf returns the shape of the machine that a Spec describes.
func ShapeOf(spec *hv.Spec) Shape {
	s := Shape{
		VCPUs: spec.VCPUs, MaxVCPUs: max(spec.VCPUs, spec.MaxVCPUs), MemoryMiB: spec.MemoryMiB, MaxMemoryMiB: max(spec.MemoryMiB, spec.MaxMemoryMiB),
		NICs: len(spec.NICs), Devices: len(spec.Devices), Vsock: spec.CID != 0, Balloon: spec.Balloon,
	}
	for _, pmem := range []bool{false, true} { // a guest does not see how these follow each other
		for _, d := range spec.Disks {
			if d.Pmem == pmem {
				s.Disks = append(s.Disks, DiskShape{d.Serial, d.ReadOnly, d.Pmem})
			}
		}
	}
	for _, sh := range spec.Shares {
		s.Shares = append(s.Shares, sh.Tag)
	}
	return s
}

// Digest returns the shape as hv.Snapshot.Machine holds it.
func (s Shape) Digest() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // no value of these types fails to encode
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// snapshotFile is what hv.SnapshotFile holds: the snapshot, and how its parts
// look when they are whole.
type snapshotFile struct {
	hv.Snapshot
	Files      map[string]int64 `json:"files"`       // bytes by name
	MemorySize int64            `json:"memory_size"` // bytes of MemoryFile, 0 without one
	// Of is the process whose memory MemoryFile is. While it lives it may write
	// there: a fork would find another memory than the state that was saved.
	Of *ofProcess `json:"of,omitempty"`
}

// ofProcess names a process for all time, as hv.Record does.
type ofProcess struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	BootID    string `json:"boot_id"`
}

// lives says whether the process is there still.
func (o *ofProcess) lives() (bool, error) {
	boot, err := BootID()
	if err != nil || boot != o.BootID {
		return false, err
	}
	p, err := Open(o.PID, o.StartTime)
	if errors.Is(err, hv.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.Close()
	return true, nil
}

// WriteSnapshot completes the snapshot whose parts, all of them files, are in
// s.Dir: it brings them to the disk and writes hv.SnapshotFile last. of is the
// machine that it was taken of.
func WriteSnapshot(s hv.Snapshot, of hv.Record) error {
	whole := snapshotFile{Snapshot: s, Files: make(map[string]int64)}
	if s.MemoryFile != "" {
		whole.Of = &ofProcess{of.PID, of.StartTime, of.BootID}
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("snapshot %s: %s is no file", s.Dir, e.Name())
		}
		if whole.Files[e.Name()], err = syncFile(filepath.Join(s.Dir, e.Name())); err != nil {
			return err
		}
	}
	if s.MemoryFile != "" {
		if whole.MemorySize, err = syncFile(s.MemoryFile); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(s.Dir, hv.SnapshotFile), whole)
}

// syncFile brings a file to the disk and returns its size in bytes.
func syncFile(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	err = f.Sync()
	fi, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// CheckSnapshot wants a snapshot that is whole and that a driver with these
// capabilities can restore as spec: with hv.ErrUnsupported if it is another
// driver's, version's or machine's. The directory and the memory file may have
// been moved since it was taken. The machine that a template was taken of must
// have ended.
func CheckSnapshot(s *hv.Snapshot, spec *hv.Spec, caps *hv.Capabilities) error {
	switch {
	case s.Driver != caps.Driver:
		return fmt.Errorf("%w: the snapshot is of %s", hv.ErrUnsupported, s.Driver)
	case s.Version != caps.Version:
		return fmt.Errorf("%w: the snapshot is of %s %s, this is %s: only the version that took it can restore it", hv.ErrUnsupported, s.Driver, s.Version, caps.Version)
	case s.VCPUs != spec.VCPUs || s.MemoryMiB != spec.MemoryMiB:
		return fmt.Errorf("%w: the snapshot is of a machine with %d vCPUs and %d MiB, not %d and %d", hv.ErrUnsupported, s.VCPUs, s.MemoryMiB, spec.VCPUs, spec.MemoryMiB)
	case s.Machine != ShapeOf(spec).Digest():
		return fmt.Errorf("%w: the snapshot is of a machine with other devices or limits: disks by number, serial and kind, NICs, shares and the most vCPUs and memory must be as they were", hv.ErrUnsupported)
	}
	var whole snapshotFile
	if err := ReadJSON(filepath.Join(s.Dir, hv.SnapshotFile), &whole); err != nil {
		return fmt.Errorf("snapshot %s is not whole: %w", s.Dir, err)
	}
	was := whole.Snapshot
	was.Dir = s.Dir
	if (was.MemoryFile == "") == (s.MemoryFile == "") {
		was.MemoryFile = s.MemoryFile
	}
	if was != *s {
		return fmt.Errorf("snapshot %s holds another one than was asked for", s.Dir)
	}
	for name, size := range whole.Files {
		if err := checkSize(filepath.Join(s.Dir, name), size); err != nil {
			return fmt.Errorf("snapshot %s is not whole: %w", s.Dir, err)
		}
	}
	if s.MemoryFile != "" {
		if err := checkSize(s.MemoryFile, whole.MemorySize); err != nil {
			return fmt.Errorf("snapshot %s is not whole: %w", s.Dir, err)
		}
	}
	if whole.Of != nil {
		alive, err := whole.Of.lives()
		if err != nil {
			return fmt.Errorf("snapshot %s: the machine that it was taken of: %w", s.Dir, err)
		}
		if alive {
			return fmt.Errorf("snapshot %s: the machine that it was taken of, process %d, runs still, and its memory is the template's: kill it first", s.Dir, whole.Of.PID)
		}
	}
	return nil
}

func checkSize(path string, size int64) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("%s: %s of %d bytes, want a file of %d", path, fi.Mode(), fi.Size(), size)
	}
	return nil
}

// CheckEmpty wants the directory of a snapshot, which the caller has made, to
// hold nothing.
func CheckEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("directory %s is not empty: it holds %s", dir, entries[0].Name())
	}
	return nil
}

// ClearDir removes what is in the directory of a snapshot that failed.
func ClearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
