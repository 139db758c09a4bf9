package hvtest

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/hv"
)

// diskSize is that of the disks of testDisks, in bytes.
const diskSize = 4 << 20

// disk makes a file for a disk, beside the machine's directory.
func (r *run) disk(content string) string {
	r.Helper()
	path := filepath.Join(r.TempDir(), "disk, raw")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
	if err := os.Truncate(path, diskSize); err != nil {
		r.Fatal(err)
	}
	return path
}

// readDisk returns what the guest finds on a disk.
func (r *run) readDisk(vm hv.VM, serial string, offset int64, size int) string {
	r.Helper()
	b, err := r.call(vm, http.MethodGet, fmt.Sprintf("/disk?serial=%s&offset=%d&size=%d", serial, offset, size), nil)
	if err != nil {
		r.Errorf("read disk %s: %v", serial, err)
	}
	return string(b)
}

func (r *run) writeDisk(vm hv.VM, serial string, offset int64, text string) error {
	_, err := r.call(vm, http.MethodPut, fmt.Sprintf("/disk?serial=%s&offset=%d", serial, offset), []byte(text))
	return err
}

// testDisks shares a disk among machines, keeps one from being shared, and
// looks what is left on it when the VMM is killed.
func testDisks(r *run) {
	shared, own, others := r.disk("shared"), r.disk(""), r.disk("")
	with := func(disks ...hv.Disk) hv.Spec {
		spec := r.spec()
		spec.Disks = disks
		return spec
	}
	root := hv.Disk{Serial: "volant-root", Path: shared, ReadOnly: true}
	// The order differs: a guest goes by the serial.
	a := r.launch(with(root, hv.Disk{Serial: "volant-upper", Path: own}))
	b := r.launch(with(hv.Disk{Serial: "volant-upper", Path: others}, root))
	for _, vm := range []hv.VM{a, b} {
		if got := r.readDisk(vm, "volant-root", 0, 6); got != "shared" {
			r.Errorf("machine %s reads %q from the disk that it shares, want %q", vm.Record().Dir, got, "shared")
		}
		if err := r.writeDisk(vm, "volant-root", 0, "broken"); err == nil {
			r.Errorf("machine %s wrote to a read-only disk", vm.Record().Dir)
		}
	}

	for name, disk := range map[string]hv.Disk{
		"another's disk":                    {Serial: "x", Path: own},
		"another's disk, read-only":         {Serial: "x", Path: own, ReadOnly: true},
		"the disk of others that only read": {Serial: "x", Path: shared},
	} {
		spec := with(disk)
		vm, err := r.driver.Launch(r.ctx, spec)
		if err == nil {
			vm.Kill(r.ctx)
		}
		if !errors.Is(err, hv.ErrDiskInUse) || !strings.Contains(err.Error(), disk.Path) {
			r.Errorf("Launch with %s: %v, want ErrDiskInUse and its path", name, err)
		}
		if left := names(r, spec.Dir); len(left) > 0 {
			r.Errorf("Launch with %s left the files %q", name, left)
		}
	}

	const text, at = "what was synced", 3 << 20
	if err := r.writeDisk(a, "volant-upper", at, text); err != nil {
		r.Fatalf("write: %v", err)
	}
	r.Crash(r, a.Record())
	r.wantExit(a, hv.ExitCrashed)
	file, err := os.ReadFile(own)
	if err != nil {
		r.Fatal(err)
	}
	if got := string(file[at : at+len(text)]); got != text || len(file) != diskSize {
		r.Errorf("the disk has %d bytes and holds %q after the VMM was killed, want %d and %q", len(file), got, diskSize, text)
	}
	if file, err := os.ReadFile(shared); err != nil || string(file[:6]) != "shared" {
		r.Errorf("the shared disk holds %q, %v", file[:6], err)
	}
	// Its lock went with the process.
	again := r.launch(with(hv.Disk{Serial: "volant-upper", Path: own}))
	if got := r.readDisk(again, "volant-upper", at, len(text)); got != text {
		r.Errorf("the next machine reads %q, want %q", got, text)
	}
}
