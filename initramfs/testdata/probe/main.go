// Probe is /init of the image that TestKernelUnpacks boots: it prints what the
// kernel unpacked, a line a path, and powers the machine off. It refuses to do
// so anywhere but as the first process.
package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "probe: not the first process of a machine")
		os.Exit(1)
	}
	fmt.Println("PROBE BEGIN")
	err := filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "/" || p == "/init" {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		links, rest := uint64(st.Nlink), ""
		switch {
		case fi.IsDir():
			links = 0 // counts subdirectories
		case fi.Mode()&fs.ModeSymlink != 0:
			if rest, err = os.Readlink(p); err != nil {
				return err
			}
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rest = fmt.Sprintf("%d %.4x", len(b), sha256.Sum256(b))
		case fi.Mode()&fs.ModeDevice != 0:
			rest = fmt.Sprintf("%d,%d", st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&0xfff00)
		}
		fmt.Printf("PROBE %v %d:%d n%d %s %s\n", fi.Mode(), st.Uid, st.Gid, links, p, rest)
		return nil
	})
	fmt.Println("PROBE END", err)
	syscall.Sync()
	if err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("PROBE power off:", err)
	}
}
