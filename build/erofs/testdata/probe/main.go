// Probe is /init of the guests that TestGuestKernels boots: it mounts the disk
// and compares what the kernel shows with the text in /want. It refuses to do
// so anywhere but as the first process.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "probe: not the first process of a machine")
		os.Exit(1)
	}
	diff, err := compare()
	fmt.Printf("%.6000s\nPROBE END %d %v\n", diff, len(diff), err)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("PROBE power off:", err)
	}
}

func compare() (diff string, err error) {
	for _, m := range []struct{ source, target, fstype string }{{"dev", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}} {
		if err := errors.Join(os.MkdirAll(m.target, 0o755), mount(m.source, m.target, m.fstype, 0)); err != nil {
			return "", err
		}
	}
	modules, err := filepath.Glob("/lib/modules/volant/*.ko")
	if err != nil {
		return "", err
	}
	slices.Sort(modules)
	for _, name := range modules {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST && err != unix.ENODEV {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		f.Close()
	}
	for range 100 {
		if _, err = os.Stat("/dev/vda"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := errors.Join(os.Mkdir("/disk", 0o755), mount("/dev/vda", "/disk", "erofs", unix.MS_RDONLY)); err != nil {
		return "", err
	}
	tree, err := layers.FromDir(context.Background(), "/disk", layers.HostOptions{})
	if err != nil {
		return "", err
	}
	got, err := layertest.Text(tree)
	if err != nil {
		return "", err
	}
	want, err := os.ReadFile("/want")
	if err != nil {
		return "", err
	}
	return layertest.Diff(got, string(want)), nil
}

func mount(source, target, fstype string, flags uintptr) error {
	if err := unix.Mount(source, target, fstype, flags, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
