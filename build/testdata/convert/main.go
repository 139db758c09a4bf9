// Convert makes a disk of one layer and prints how much memory that took
// beyond the program's own, in KiB. It is a program of its own so that neither
// a test's memory nor the race detector's is counted.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/layers"
)

func main() {
	if err := convert(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "convert:", err)
		os.Exit(1)
	}
}

func convert(layer, out string) error {
	idle, err := peak()
	if err != nil {
		return err
	}
	l, err := os.Open(layer)
	if err != nil {
		return err
	}
	st, err := l.Stat()
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	tree, err := layers.Flatten(context.Background(), []layers.Layer{{Name: layer, R: l, Size: st.Size()}}, layers.Limits{})
	if err != nil {
		return err
	}
	if _, err := build.WriteDisk(context.Background(), f, tree, build.DiskOptions{}); err != nil {
		return err
	}
	used, err := peak()
	if err != nil {
		return err
	}
	fmt.Println(used - idle)
	return f.Close()
}

// peak returns the largest resident size so far, in KiB.
func peak() (int, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/self/status")
}
