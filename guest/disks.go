package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
)

// diskTimeout is how long a disk may take to appear. With drivers built in it
// is there before process 1; with modules on a crowded emulated host it took
// seconds.
const diskTimeout = 30 * time.Second

// disks finds disks by their virtio serials. A disk is asked for its serial
// once, which is a request to the hypervisor and took milliseconds under
// emulation. One goroutine uses it.
type disks struct {
	files   Files
	serials map[string]string // by device
}

func newDisks(files Files) *disks { return &disks{files, make(map[string]string)} }

// await waits for the disk with a serial and returns its device.
func (d *disks) await(ctx context.Context, serial string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if device := d.find(serial); device != "" {
			return device, nil
		}
		if !sleep(ctx, wait) {
			return "", fmt.Errorf("no disk with the serial %q within %s (disks: %s)", serial, timeout, d)
		}
	}
}

// find returns the device of the disk with a serial, or "".
func (d *disks) find(serial string) string {
	for device, s := range d.serials {
		if s == serial {
			return device
		}
	}
	paths, _ := d.files.Glob("/sys/block/*/serial")
	for _, p := range paths {
		device := "/dev/" + path.Base(path.Dir(p))
		if _, known := d.serials[device]; known {
			continue
		}
		b, err := d.files.ReadFile(p)
		if err != nil {
			continue // went away
		}
		d.serials[device] = strings.TrimSpace(string(b))
		if d.serials[device] == serial {
			return device
		}
	}
	return ""
}

// String lists what disks there are, for an error message.
func (d *disks) String() string {
	var all []string
	for device, serial := range d.serials {
		all = append(all, fmt.Sprintf("%s=%q", path.Base(device), serial))
	}
	if all == nil {
		return "none"
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// Types of file systems on disks, as mount(2) knows them.
const (
	fsErofs    = "erofs"
	fsSquashfs = "squashfs"
	fsExt4     = "ext4"
)

// superblockBytes is as much of a disk as tells its file system.
const superblockBytes = 2048

// superblock tells a file system by its magic number: squashfs has it at the
// start, erofs and ext4 in the superblock at 1024 (Linux,
// Documentation/filesystems/{erofs,squashfs}.rst and ext4/super.rst). "" is
// none of these. Ext2 and ext3 are ext4 here: its driver mounts them.
func superblock(b []byte) string {
	le := binary.LittleEndian
	switch {
	case len(b) < superblockBytes:
		return ""
	case bytes.HasPrefix(b, []byte("hsqs")):
		return fsSquashfs
	case le.Uint32(b[1024:]) == 0xe0f5e1e2:
		return fsErofs
	case le.Uint16(b[1024+0x38:]) == 0xef53:
		return fsExt4
	}
	return ""
}

// identify tells the file system on a device.
func identify(files Files, device string) (string, error) {
	f, err := files.Open(device, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, superblockBytes)
	if _, err := io.ReadFull(f, b); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	if t := superblock(b); t != "" {
		return t, nil
	}
	return "", fmt.Errorf("%s: its superblock is that of neither ext4 nor erofs nor squashfs", device)
}

// mountDisk mounts the file system of a device and returns its type. One that
// cannot be written to is mounted read-only whatever is asked.
func mountDisk(sys Sys, device, target string, readOnly bool) (string, error) {
	kind, err := identify(sys, device)
	if err != nil {
		return "", err
	}
	m := Mount{device, target, kind, 0, ""}
	switch {
	case kind != fsExt4 || readOnly:
		m.Flags = unix.MS_RDONLY
	default:
		m.Data = plan.Ext4Options
	}
	err = sys.Mount(m)
	if kind == fsExt4 && readOnly && errors.Is(err, unix.EROFS) {
		// A disk that cannot be written to, whose journal would have to be: it
		// was taken from a machine that ran. It is shown as it is.
		m.Data = "noload"
		err = sys.Mount(m)
	}
	if errors.Is(err, unix.ENODEV) {
		return "", fmt.Errorf("%w: this kernel does not know %s; boot the kernel \"volant\"", err, kind)
	}
	return kind, err
}
