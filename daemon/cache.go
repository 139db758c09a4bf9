package daemon

import (
	"context"
	"crypto/sha256"
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

	"github.com/volantvm/volant/store/row"
)

// cache keeps files that are made of others: each once for all VMs that need the
// same. A file's name is "<key>-<digest>.img", so that one rename makes the file
// and what is known of it durable together. Safe for concurrent use.
type cache struct {
	dir   string
	files *verifiedFiles
	since time.Time // what was used before is not known

	turn chan struct{} // held while a file is made: two at a time only compete for the disk

	mu   sync.Mutex
	used map[string]time.Time // guarded by mu; by file name
}

func newCache(dir string, files *verifiedFiles) *cache {
	return &cache{dir: dir, files: files, since: time.Now(), turn: make(chan struct{}, 1), used: make(map[string]time.Time)}
}

// cacheKey names what is made of parts.
func cacheKey(parts ...string) string {
	h := sha256.New()
	for _, s := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// file returns the path of the file of that key, verified; fill writes one that
// is not there.
func (c *cache) file(ctx context.Context, key string, fill func(w io.Writer) error) (string, error) {
	if path, err := c.lookup(ctx, key); path != "" || err != nil {
		return path, err
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	// Another may have made it meanwhile.
	if path, err := c.lookup(ctx, key); path != "" || err != nil {
		return path, err
	}
	return c.make(key, fill)
}

// lookup returns the verified file of that key, "" when there is none. One that
// is damaged is removed, to be made again.
func (c *cache) lookup(ctx context.Context, key string) (string, error) {
	paths, err := filepath.Glob(filepath.Join(c.dir, key+"-*.img"))
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		digest := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), key+"-"), ".img")
		c.touch(path)
		err := c.files.verify(ctx, blobFile{"sha256:" + digest, path})
		switch {
		case err == nil:
			return path, nil
		case errors.Is(err, fs.ErrNotExist): // the collector was here
		case errors.Is(err, errDamaged):
			if err := removeIfThere(path); err != nil {
				return "", err
			}
		default:
			return "", err
		}
	}
	return "", nil
}

func (c *cache) make(key string, fill func(w io.Writer) error) (path string, err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(f.Close()), removeIfThere(f.Name()))
		}
	}()
	sum := sha256.New()
	if err := fill(io.MultiWriter(f, sum)); err != nil {
		return "", err
	}
	digest := digestOf(sum.Sum(nil))
	path = filepath.Join(c.dir, key+"-"+strings.TrimPrefix(digest, "sha256:")+".img")
	c.touch(path)
	if err := commitFile(f, path); err != nil {
		return "", err
	}
	return path, c.files.written(blobFile{digest, path})
}

// touch notes that a file is used.
func (c *cache) touch(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used[filepath.Base(path)] = time.Now()
}

// idle reports whether nobody has asked for a file since cutoff, as far as is
// known.
func (c *cache) idle(name string, cutoff time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	used, ok := c.used[name]
	if !ok {
		used = c.since
	}
	return used.Before(cutoff)
}

// remove removes a file that is idle.
func (c *cache) remove(name string) error {
	if err := removeIfThere(filepath.Join(c.dir, name)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.used, name)
	return nil
}

// collectCache removes files that none of the active VMs boots and that were not
// used for timing.grace: those of plugins, kernels and daemons that are gone.
func (d *Daemon) collectCache(active []row.VM) error {
	entries, err := os.ReadDir(d.cache.dir)
	if err != nil {
		return err
	}
	used := make(map[string]bool, len(active))
	for i := range active {
		used[active[i].Initramfs], used[active[i].AgentImage] = true, true
	}
	cutoff := time.Now().Add(-d.t.grace)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || used[e.Name()] || !strings.HasSuffix(e.Name(), ".img") || !fi.ModTime().Before(cutoff) || !d.cache.idle(e.Name(), cutoff) {
			continue
		}
		if err := d.cache.remove(e.Name()); err != nil {
			return err
		}
		d.log.Info("cached file removed", keyPath, e.Name())
	}
	return nil
}
