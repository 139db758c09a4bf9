package guest

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/volantvm/volant/guest/wire"
)

// readConfig waits for the configuration disk and reads it.
func readConfig(ctx context.Context, d *disks, timeout time.Duration) (wire.BootConfig, error) {
	device, err := d.await(ctx, wire.ConfigSerial, timeout)
	if err != nil {
		return wire.BootConfig{}, err
	}
	return readConfigDisk(d.files, device)
}

func readConfigDisk(files Files, device string) (wire.BootConfig, error) {
	f, err := files.Open(device, os.O_RDONLY)
	if err != nil {
		return wire.BootConfig{}, err
	}
	defer f.Close()
	cfg, err := wire.DecodeBoot(f)
	if err != nil {
		return wire.BootConfig{}, fmt.Errorf("%s: %w", device, err)
	}
	return cfg, nil
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
