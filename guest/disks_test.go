package guest

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// diskImage is the beginning of a disk with a file system of that type.
func diskImage(kind string) string {
	b := make([]byte, 4096)
	switch kind {
	case fsSquashfs:
		copy(b, "hsqs")
	case fsErofs:
		binary.LittleEndian.PutUint32(b[1024:], 0xe0f5e1e2)
	case fsExt4:
		binary.LittleEndian.PutUint16(b[1024+56:], 0xef53)
	}
	return string(b)
}

func TestMountDisk(t *testing.T) {
	const where = "/mnt"
	tests := []struct {
		name     string
		kind     string
		readOnly bool
		fail     []error // of the mounts, in order
		want     []Mount
		err      string
	}{
		{"erofs", fsErofs, false, nil, []Mount{{"/dev/vdb", where, "erofs", unix.MS_RDONLY, ""}}, ""},
		{"squashfs", fsSquashfs, true, nil, []Mount{{"/dev/vdb", where, "squashfs", unix.MS_RDONLY, ""}}, ""},
		{"ext4", fsExt4, false, nil, []Mount{{"/dev/vdb", where, "ext4", 0, "errors=remount-ro"}}, ""},
		{"ext4 with a journal that cannot be replayed", fsExt4, true, []error{unix.EROFS},
			[]Mount{{"/dev/vdb", where, "ext4", unix.MS_RDONLY, ""}, {"/dev/vdb", where, "ext4", unix.MS_RDONLY, "noload"}}, ""},
		{"a disk that is read-only", fsExt4, false, []error{unix.EROFS}, []Mount{{"/dev/vdb", where, "ext4", 0, "errors=remount-ro"}}, "read-only file system"},
		{"unknown to the kernel", fsErofs, true, []error{unix.ENODEV}, []Mount{{"/dev/vdb", where, "erofs", unix.MS_RDONLY, ""}}, "does not know erofs"},
		{"nothing", "", true, nil, nil, "/dev/vdb: its superblock is that of neither ext4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newFakeSys(t)
			sys.put(t, "/dev/vdb", diskImage(tt.kind), 0o600)
			sys.failMounts = tt.fail
			kind, err := mountDisk(sys, "/dev/vdb", where, tt.readOnly)
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("mountDisk() = %v, want %q", err, tt.err)
			}
			if err == nil && kind != tt.kind {
				t.Errorf("it is %s, want %s", kind, tt.kind)
			}
			if !slices.Equal(sys.mounts, tt.want) {
				t.Errorf("mounted %+v, want %+v", sys.mounts, tt.want)
			}
		})
	}
	sys := newFakeSys(t)
	sys.put(t, "/dev/vdb", "short", 0o600)
	if _, err := identify(sys, "/dev/vdb"); err == nil || !strings.Contains(err.Error(), "superblock") {
		t.Errorf("identify() of five bytes = %v", err)
	}
	if _, err := identify(sys, "/dev/vdc"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("identify() of nothing = %v", err)
	}
}

// TestDisksAreAskedOnce has a serial that could not be read twice.
func TestDisksAreAskedOnce(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/sys/block/vda/serial", "one\n", 0o444)
	sys.put(t, "/sys/block/vdb/serial", "two\n", 0o444)
	d := newDisks(sys)
	if got := d.find("two"); got != "/dev/vdb" {
		t.Errorf("find(two) = %q", got)
	}
	sys.put(t, "/sys/block/vda/serial", "changed", 0o444)
	for serial, want := range map[string]string{"one": "/dev/vda", "changed": "", "three": ""} {
		if got := d.find(serial); got != want {
			t.Errorf("find(%s) = %q, want %q", serial, got, want)
		}
	}
	sys.put(t, "/sys/block/vdc/serial", "three", 0o444)
	if got := d.find("three"); got != "/dev/vdc" {
		t.Errorf("a disk that came late is %q", got)
	}
	if got, want := d.String(), `vda="one" vdb="two" vdc="three"`; got != want {
		t.Errorf("disks: %s, want %s", got, want)
	}
}
