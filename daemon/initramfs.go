package daemon

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/volantvm/volant/initramfs"
)

// imageFormat is part of every cache key. It changes when the way of assembly
// does.
const imageFormat = "volant initramfs 2"

// Where the agent is. The archive of an OCI image may hold an /init of its own,
// which the image's workload can be; then the kernel is told of another place.
const (
	defaultAgent = "init"
	imageAgent   = ".volant/init"
)

// cache keeps assembled initramfs images: agent, modules and application
// archive in one file, made once for all VMs with the same three. A file's name
// is "<key>-<digest>.img", so that one rename makes the image and what is known
// of it durable together. Safe for concurrent use.
type cache struct {
	dir   string
	agent string // path of the binary that becomes /init

	turn chan struct{} // held while an image is assembled: two at a time only compete for the disk

	mu          sync.Mutex
	agentDigest string // guarded by mu; of the binary, "" before it was read
}

func newCache(dir, agent string) *cache {
	return &cache{dir: dir, agent: agent, turn: make(chan struct{}, 1)}
}

// initramfsParts says what an image is made of, in the order of its segments.
// Later ones overlay earlier ones.
type initramfsParts struct {
	agent   string   // path of this binary in the image; empty for none
	modules blobFile // of the kernel; empty for none
	archive blobFile // the application
}

// image returns the path of the image of p, which has just been verified: when
// it is there by its own digest, else its parts by theirs.
func (c *cache) image(ctx context.Context, p initramfsParts) (string, error) {
	key, err := c.key(p)
	if err != nil {
		return "", err
	}
	if path, err := c.lookup(key); path != "" || err != nil {
		return path, err
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	// Another may have made it meanwhile.
	if path, err := c.lookup(key); path != "" || err != nil {
		return path, err
	}
	return c.assemble(ctx, key, p)
}

// key names the combination.
func (c *cache) key(p initramfsParts) (string, error) {
	agent := ""
	if p.agent != "" {
		var err error
		if agent, err = c.binaryDigest(); err != nil {
			return "", fmt.Errorf("agent binary: %w", err)
		}
	}
	h := sha256.New()
	for _, s := range []string{imageFormat, agent, p.agent, p.modules.digest, p.archive.digest} {
		fmt.Fprintf(h, "%d:%s\n", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// binaryDigest reads the agent once: a running program's file does not change.
func (c *cache) binaryDigest() (string, error) {
	c.mu.Lock()
	digest := c.agentDigest
	c.mu.Unlock()
	if digest != "" {
		return digest, nil
	}
	if err := checkStatic(c.agent); err != nil {
		return "", err
	}
	digest, _, err := fileDigest(c.agent)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	c.agentDigest = digest
	c.mu.Unlock()
	return digest, nil
}

// checkStatic refuses a program that asks for a dynamic loader: as /init of a
// guest, which has none, it could not be executed, and the guest would end in a
// panic that does not say why.
func checkStatic(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it is only read
	magic := make([]byte, len(elf.ELFMAG))
	if n, _ := file.ReadAt(magic, 0); string(magic[:n]) != elf.ELFMAG {
		return nil // no ELF file, so no loader is asked for
	}
	f, err := elf.NewFile(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and cannot run as /init of a guest: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// lookup returns the verified image of that key, "" when there is none. One
// that is damaged is removed, to be made again.
func (c *cache) lookup(key string) (string, error) {
	paths, err := filepath.Glob(filepath.Join(c.dir, key+"-*.img"))
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		digest, _, err := fileDigest(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the collector was here
		}
		if err != nil {
			return "", err
		}
		if strings.TrimSuffix(filepath.Base(path), ".img") != key+"-"+strings.TrimPrefix(digest, "sha256:") {
			if err := removeIfThere(path); err != nil {
				return "", err
			}
			continue
		}
		now := time.Now() // tells the collector that it is in use
		if err := os.Chtimes(path, now, now); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return "", err
		}
		return path, nil
	}
	return "", nil
}

// assemble verifies the parts while it joins them.
func (c *cache) assemble(ctx context.Context, key string, p initramfsParts) (path string, err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(f.Close()), removeIfThere(f.Name()))
		}
	}()

	var segments []io.Reader
	if p.agent != "" {
		pr, pw := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			pw.CloseWithError(c.writeAgent(pw, p.agent))
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
			return "", b.verify()
		}
		if err != nil {
			return "", err
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
	sum := sha256.New()
	if _, err := initramfs.Concat(io.MultiWriter(f, sum), segments...); err != nil {
		if errors.Is(err, initramfs.ErrFormat) {
			return "", fmt.Errorf("the artifact is not an initramfs archive: %w", err)
		}
		return "", err
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return "", err
		}
	}
	path = filepath.Join(c.dir, key+"-"+hex.EncodeToString(sum.Sum(nil))+".img")
	return path, commitFile(f, path)
}

// writeAgent writes the segment that holds the agent.
func (c *cache) writeAgent(w io.Writer, name string) error {
	fi, err := os.Stat(c.agent)
	if err != nil {
		return err
	}
	var a initramfs.Archive
	if err := a.Add(initramfs.Entry{
		Name: name, Mode: 0o755, Size: fi.Size(),
		Open: func() (io.ReadCloser, error) { return os.Open(c.agent) },
	}); err != nil {
		return err
	}
	_, err = a.WriteTo(w)
	return err
}

// collectImages removes images that no VM boots and that were not used for
// timing.grace: those of plugins, kernels and daemons that are gone.
func (d *Daemon) collectImages(ctx context.Context) error {
	entries, err := os.ReadDir(d.cache.dir)
	if err != nil {
		return err
	}
	active, err := d.store.ActiveVMs(ctx)
	if err != nil {
		return err
	}
	used := make(map[string]bool, len(active))
	for i := range active {
		used[active[i].Initramfs] = true
	}
	cutoff := time.Now().Add(-d.t.grace)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || used[e.Name()] || !strings.HasSuffix(e.Name(), ".img") || !fi.ModTime().Before(cutoff) {
			continue
		}
		if err := removeIfThere(filepath.Join(d.cache.dir, e.Name())); err != nil {
			return err
		}
		d.log.Info("image removed", keyPath, e.Name())
	}
	return nil
}
