package guest

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// configTimeout is how long the configuration disk may take to appear. With
// drivers built in it is there before process 1; with modules on a crowded
// emulated host it took seconds.
const configTimeout = 30 * time.Second

// readConfig waits for the configuration disk and reads it.
func readConfig(ctx context.Context, sys Sys, timeout time.Duration) (wire.BootConfig, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		disk, seen := findDisk(sys, wire.ConfigSerial)
		if disk != "" {
			return readConfigDisk(sys, disk)
		}
		if !sleep(ctx, wait) {
			return wire.BootConfig{}, fmt.Errorf("no disk with the serial %q within %s (disks: %s)", wire.ConfigSerial, timeout, seen)
		}
	}
}

func readConfigDisk(sys Sys, disk string) (wire.BootConfig, error) {
	f, err := sys.Open(disk, os.O_RDONLY)
	if err != nil {
		return wire.BootConfig{}, err
	}
	defer f.Close()
	cfg, err := wire.DecodeBoot(f)
	if err != nil {
		return wire.BootConfig{}, fmt.Errorf("%s: %w", disk, err)
	}
	return cfg, nil
}

// findDisk returns the device of the disk with a virtio serial, and for the
// error message what other disks there are.
func findDisk(sys Sys, serial string) (device, seen string) {
	paths, _ := sys.Glob("/sys/block/*/serial")
	var others []string
	for _, p := range paths {
		b, err := sys.ReadFile(p)
		if err != nil {
			continue // went away
		}
		name := path.Base(path.Dir(p))
		if strings.TrimSpace(string(b)) == serial {
			return "/dev/" + name, ""
		}
		others = append(others, fmt.Sprintf("%s=%q", name, strings.TrimSpace(string(b))))
	}
	if others == nil {
		return "", "none"
	}
	return "", strings.Join(others, " ")
}

// sleep waits for d, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
