package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/initramfs"
)

// initramfsFormat is part of every key. It changes when the way of assembly
// does.
const initramfsFormat = "volant initramfs 3"

// Where the first program is. The archive of an OCI image may hold an /init of
// its own, which the image's workload can be; then the kernel is told of another
// place.
const (
	defaultInit = "init"
	imageInit   = ".volant/init"
)

// initramfsParts says what an initramfs is made of, in the order of its segments.
// Later ones overlay earlier ones.
type initramfsParts struct {
	init    string   // path of the first program in it; empty for none
	shim    bool     // that is the shim, and the agent is on a disk; else it is the agent
	modules blobFile // of the kernel; empty for none
	archive blobFile // the application
}

// initramfs returns the path of the initramfs of p, which is verified: when it
// is there by its own digest, else its parts by theirs.
func (d *Daemon) initramfs(ctx context.Context, p initramfsParts) (string, error) {
	first := ""
	switch {
	case p.shim:
		first = digestOf(sum256(shim.Binary()))
	case p.init != "":
		var err error
		if first, err = d.program.digest(); err != nil {
			return "", err
		}
	}
	key := cacheKey(initramfsFormat, first, p.init, p.modules.digest, p.archive.digest)
	return d.cache.file(ctx, key, func(w io.Writer) error { return d.assemble(ctx, w, p) })
}

func sum256(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// assemble writes the initramfs of p, and verifies the parts while it joins them.
func (d *Daemon) assemble(ctx context.Context, w io.Writer, p initramfsParts) error {
	var segments []io.Reader
	if p.init != "" {
		pr, pw := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			pw.CloseWithError(d.writeInit(pw, p))
		}()
		defer func() { pr.Close(); <-done }()
		segments = append(segments, pr)
	}
	var checks []func() error
	for _, b := range []blobFile{p.modules, p.archive} {
		if b.path == "" {
			continue
		}
		in, err := os.Open(b.path)
		if errors.Is(err, fs.ErrNotExist) {
			return b.verify()
		}
		if err != nil {
			return err
		}
		defer in.Close()
		h := sha256.New()
		segments = append(segments, io.TeeReader(ctxReader{ctx, in}, h))
		checks = append(checks, func() error {
			if got := digestOf(h.Sum(nil)); got != b.digest {
				return b.verify() // says which and why
			}
			return nil
		})
	}
	if _, err := initramfs.Concat(w, segments...); err != nil {
		if errors.Is(err, initramfs.ErrFormat) {
			return fmt.Errorf("the artifact is not an initramfs archive: %w", err)
		}
		return err
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// writeInit writes the segment that holds the first program.
func (d *Daemon) writeInit(w io.Writer, p initramfsParts) error {
	e := initramfs.Entry{
		Name: p.init, Mode: 0o755, Size: int64(len(shim.Binary())),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(shim.Binary()))), nil },
	}
	if !p.shim {
		fi, err := os.Stat(d.program.path)
		if err != nil {
			return err
		}
		e.Size, e.Open = fi.Size(), func() (io.ReadCloser, error) { return os.Open(d.program.path) }
	}
	var a initramfs.Archive
	if err := a.Add(e); err != nil {
		return err
	}
	_, err := a.WriteTo(w)
	return err
}
