package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// MaxImageSize is the largest kernel image accepted, in bytes, compressed or not.
// Distribution kernels unpack to 40-80 MiB; one with debug information kept stays
// below this too.
const MaxImageSize = 512 << 20

// Arch is the one machine architecture Volant's guests have.
const Arch = "x86_64"

var (
	// ErrNotKernel says that the file is neither a bzImage nor an ELF Linux kernel,
	// or a damaged one.
	ErrNotKernel = errors.New("not a Linux kernel image")
	// ErrArch says that the kernel is for another machine.
	ErrArch = errors.New("kernel is not for x86_64")
	// ErrNoPVH says that the kernel lacks the entry point by which a hypervisor
	// starts an uncompressed image.
	ErrNoPVH = errors.New("kernel has no PVH entry (ELF note Xen 18); it must be built with CONFIG_PVH=y")
	// ErrCompression says that the payload's compression is not supported.
	ErrCompression = errors.New("unsupported kernel compression")
	// ErrTooLarge says that an image, a module or a module set exceeds its limit.
	ErrTooLarge = errors.New("too large")
)

// Image is a bootable kernel: an uncompressed ELF file with a PVH entry.
type Image struct {
	Path        string // of the ELF file
	Digest      string // of its bytes, "sha256:" and 64 hex digits
	Size        int64  // bytes
	Version     string // what uname -r prints: "6.1.0-56-cloud-amd64"
	Arch        string // always Arch
	Compression string // of the bzImage it came from: "gzip", "lz4", "xz", "zstd", "none"; empty for a vmlinux
}

// Import reads a bzImage or a vmlinux of size bytes from src and writes the
// uncompressed ELF image into dir, which must exist, under the name
// "<hex digest>.vmlinux". The file appears whole or not at all, and importing the
// same kernel twice gives the same file. It is readable by everybody: every VMM maps
// it, and a kernel is no secret.
//
// Errors wrap ErrNotKernel, ErrArch, ErrNoPVH, ErrCompression, ErrTooLarge, ctx's
// error, or are those of src and of the file system.
func Import(ctx context.Context, src io.ReaderAt, size int64, dir string) (Image, error) {
	if size > MaxImageSize {
		return Image{}, fmt.Errorf("kernel image: %w: %d bytes, at most %d", ErrTooLarge, size, MaxImageSize)
	}
	body, compression, err := open(src, size)
	if err != nil {
		return Image{}, fmt.Errorf("kernel image: %w", err)
	}
	defer body.Close()

	tmp, err := os.CreateTemp(dir, ".vmlinux-*.tmp")
	if err != nil {
		return Image{}, err
	}
	defer func() {
		tmp.Close() // closed already if all went well
		os.Remove(tmp.Name())
	}()

	digest := sha256.New()
	var banner bannerScanner
	n, err := io.Copy(io.MultiWriter(tmp, digest, &banner), io.LimitReader(readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return body.Read(p)
	}), MaxImageSize+1))
	if err != nil {
		return Image{}, fmt.Errorf("kernel image: unpack %s payload: %w", compression, err)
	}
	if n > MaxImageSize {
		return Image{}, fmt.Errorf("kernel image: unpacked: %w: more than %d bytes", ErrTooLarge, MaxImageSize)
	}
	if err := checkELF(tmp, n); err != nil {
		return Image{}, fmt.Errorf("kernel image: %w", err)
	}
	if banner.version == "" {
		return Image{}, fmt.Errorf("kernel image: %w: ELF file without a Linux version banner", ErrNotKernel)
	}

	sum := hex.EncodeToString(digest.Sum(nil))
	img := Image{
		Path:        filepath.Join(dir, sum+".vmlinux"),
		Digest:      "sha256:" + sum,
		Size:        n,
		Version:     banner.version,
		Arch:        Arch,
		Compression: compression,
	}
	if err := tmp.Chmod(0o644); err != nil {
		return Image{}, err
	}
	if err := tmp.Sync(); err != nil {
		return Image{}, err
	}
	if err := tmp.Close(); err != nil {
		return Image{}, err
	}
	if err := os.Rename(tmp.Name(), img.Path); err != nil {
		return Image{}, err
	}
	return img, syncDir(dir)
}

// ImportFile is Import of the file at path.
func ImportFile(ctx context.Context, path, dir string) (Image, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // or a FIFO would wait for its writer
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Image{}, err
	}
	if !st.Mode().IsRegular() {
		return Image{}, fmt.Errorf("%s: %w: not a regular file", path, ErrNotKernel)
	}
	img, err := Import(ctx, f, st.Size(), dir)
	if err != nil {
		return Image{}, fmt.Errorf("%s: %w", path, err)
	}
	return img, nil
}

// open tells a bzImage from an ELF file and returns a reader of the ELF image in it.
func open(src io.ReaderAt, size int64) (body io.ReadCloser, compression string, err error) {
	head := make([]byte, 64)
	if size < int64(len(head)) {
		return nil, "", fmt.Errorf("%w: %d bytes", ErrNotKernel, size)
	}
	if _, err := src.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, "", err
	}
	switch {
	case string(head[:4]) == elfMagic:
		return io.NopCloser(io.NewSectionReader(src, 0, size)), "", nil
	case string(head[56:60]) == "ARM\x64": // Documentation/arch/arm64/booting.rst
		return nil, "", fmt.Errorf("%w: it is an arm64 Image", ErrArch)
	}
	b, err := parseBzImage(src, size)
	if err != nil {
		return nil, "", err
	}
	return b.payload(src)
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
