package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/layers"
)

// DiskOptions say what disk to make of a tree.
type DiskOptions struct {
	Type string // "erofs" (also empty), "squashfs" or "ext4"
	// SizeBufferMB is the MiB that an ext4 disk has free; zero stands for a
	// quarter of its content, at least 64 and at most 1024.
	SizeBufferMB int
	Preallocate  bool // the image file has no holes
	// CompressionLevel is of squashfs, 1 to 22; zero stands for 15.
	CompressionLevel int
}

// Written is a finished disk or archive.
type Written struct {
	Digest string // "sha256:..."
	Size   int64  // bytes
	Inodes int
	// XattrsLost counts the files whose extended attributes, such as file
	// capabilities, the format could not hold.
	XattrsLost int
}

// ErrTool: a program that makes a file system is not installed, or not usable.
var ErrTool = errors.New("cannot run")

// WriteDisk makes a disk of t in f, whose content it replaces; what f holds
// after an error is of no use. Equal trees and options give equal bytes, with
// one version of the programs that make ext4 and squashfs. These two need root,
// for the owners of files, and room beside f for the files' content. f is not
// synced. Nothing else may use t meanwhile. It blocks until done or ctx ends.
func WriteDisk(ctx context.Context, f *os.File, t *layers.Tree, o DiskOptions) (Written, error) {
	if err := f.Truncate(0); err != nil {
		return Written{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Written{}, err
	}
	inodes := len(t.Index())
	switch o.Type {
	case "", "erofs":
		r, err := erofs.Write(ctx, f, t, erofs.Options{})
		return Written{Digest: r.Digest, Size: r.Size, Inodes: inodes}, err
	case "squashfs", "ext4":
	default:
		return Written{}, fmt.Errorf("disks of type %q are not made here; use erofs, squashfs or ext4", o.Type)
	}
	w, err := writeByTool(ctx, f, t, o)
	w.Inodes = inodes
	return w, err
}

// writeByTool makes a disk with another program, from a directory that holds
// the tree's files.
func writeByTool(ctx context.Context, f *os.File, t *layers.Tree, o DiskOptions) (w Written, err error) {
	if os.Geteuid() != 0 {
		return Written{}, fmt.Errorf("a disk of type %s needs root, to give files their owners; run as root or use erofs", o.Type)
	}
	program, pkg := "mksquashfs", "squashfs-tools"
	if o.Type == "ext4" {
		program, pkg = "mke2fs", "e2fsprogs"
	}
	path, err := tool(program, pkg)
	if err != nil {
		return Written{}, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(f.Name()), "."+filepath.Base(f.Name())+".files.*")
	if err != nil {
		return Written{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root := filepath.Join(dir, "root")
	if err := extract(ctx, t, root); err != nil {
		return Written{}, err
	}
	if o.Type == "ext4" {
		err = makeExt4(ctx, path, f, t, root, o)
	} else {
		err = makeSquashfs(ctx, path, f, root, o)
	}
	if err != nil {
		return Written{}, err
	}
	return digestOf(ctx, f)
}

// tool finds a program, also where root's path often does not lead.
func tool(name, pkg string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range [...]string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w %s: it is not installed; install the package %s, or use erofs, which needs no program", ErrTool, name, pkg)
}

// toolFile is the disk's file in a program run by runTool.
const toolFile = "/proc/self/fd/3"

// runTool runs a program with f as toolFile, in an environment that no
// variable of the user's changes.
func runTool(ctx context.Context, f *os.File, path string, args, env []string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}, env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text := strings.TrimSpace(string(out))
	if strings.Contains(text, "No space left on device") {
		err = unix.ENOSPC
	}
	return fmt.Errorf("%w %s: %w: %s", ErrTool, filepath.Base(path), err, text[max(0, len(text)-400):])
}

func makeSquashfs(ctx context.Context, path string, f *os.File, root string, o DiskOptions) error {
	level := o.CompressionLevel
	if level == 0 {
		level = 15
	}
	// A bounded cache: by default it is a quarter of the machine's memory.
	return runTool(ctx, f, path, []string{root, toolFile, "-noappend", "-comp", "zstd", "-Xcompression-level", strconv.Itoa(level),
		"-mkfs-time", "0", "-xattrs", "-no-progress", "-quiet", "-exit-on-error", "-mem", "256M"}, nil)
}

// digestOf reads what a program wrote.
func digestOf(ctx context.Context, f *os.File) (Written, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Written{}, err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(contextWriter{ctx, h}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	if err != nil {
		return Written{}, err
	}
	return Written{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: n}, nil
}

// preallocate gives a file's holes blocks.
func preallocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err == unix.EOPNOTSUPP {
		return fmt.Errorf("preallocate %s: its file system cannot", f.Name())
	}
	return os.NewSyscallError("fallocate", err)
}
