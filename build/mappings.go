package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// addMappings puts the recipe's mappings into the tree, in the order of their
// guest paths. outputs are the files this build will write: a mapped directory
// that holds one would feed each build its predecessor.
func addMappings(ctx context.Context, t *tree, r *Recipe, outputs []string) error {
	hosts := slices.SortedFunc(maps.Keys(r.Mappings), func(a, b string) int {
		return strings.Compare(r.Mappings[a], r.Mappings[b])
	})
	for _, host := range hosts {
		if err := addMapping(ctx, t, r, host, r.Mappings[host], outputs); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return r.src.errorf("mappings."+host, "%w", err)
		}
	}
	return nil
}

func mappingOrigin(host string) string { return fmt.Sprintf("mapping %q", host) }

func addMapping(ctx context.Context, t *tree, r *Recipe, host, guest string, outputs []string) error {
	origin := mappingOrigin(host)
	top, err := filepath.EvalSymlinks(r.hostPath(host))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no such file or directory: %s", r.hostPath(host))
	}
	if err != nil {
		return err
	}
	fi, err := os.Stat(top)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		if strings.HasSuffix(guest, "/") {
			return fmt.Errorf("guest path %q ends in / but %s is a file: name the file in the guest", guest, host)
		}
		return t.addFile(rel(guest), top, fi, 0, origin)
	}
	abs, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	for _, out := range outputs {
		if in, err := filepath.Rel(abs, out); err == nil && filepath.IsLocal(in) {
			return fmt.Errorf("holds the build's output %s: write it elsewhere with -o", out)
		}
	}
	return filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		sub, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		name := rel(path.Join(guest, filepath.ToSlash(sub)))
		if name == "init" && r.ownsInit() {
			return fmt.Errorf("%s would be /init, which is not for a mapping in this init mode: give [init] none = true to bring your own", p)
		}
		switch {
		case d.IsDir():
			return t.addDir(name, origin)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return t.addSymlink(name, target, origin)
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		return t.addFile(name, p, fi, 0, origin)
	})
}
