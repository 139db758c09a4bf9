package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/client/api"
)

// addMountPoints adds the directories that any Linux userland expects, where
// the tree has nothing of that name: on a root that is never written, nobody
// could make them later.
func addMountPoints(t *layers.Tree) error {
	for _, name := range [...]string{"dev", "etc", "proc", "root", "run", "sys", "tmp"} {
		if t.Root.Child(name) == nil {
			if err := t.Add(name, layers.NewDir(unixMode(dirMode(name)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// addConsole adds the two device nodes that the kernel and /init want before
// devtmpfs is mounted, where an archive is the root.
func addConsole(t *layers.Tree) error {
	for _, d := range [...]struct {
		name               string
		perm, major, minor uint32 // Documentation/admin-guide/devices.txt
	}{
		{"dev/console", 0o600, 5, 1},
		{"dev/null", 0o666, 1, 3},
	} {
		if dev := t.Root.Child("dev"); !dev.IsDir() || dev.Child(path.Base(d.name)) != nil {
			continue
		}
		if err := t.Add(d.name, layers.NewDevice(layers.ModeChar|d.perm, d.major, d.minor)); err != nil {
			return err
		}
	}
	return nil
}

// addImageFiles puts what the recipe adds into the image's tree: /init,
// mappings, and what a root needs.
func (b *builder) addImageFiles(ctx context.Context) (string, error) {
	r, t := b.recipe, b.image.tree.Tree
	initrd := r.Strategy == StrategyInitramfs
	if s := r.Source; s != nil && s.Busybox+s.BusyboxURL != "" {
		b.warn("%s: source.busybox has no effect: the image brings its own programs", r.file)
	}
	if !initrd && r.Agent != nil && r.Agent.SourceStrategy != AgentRelease {
		b.warn("%s: [agent] has no effect with strategy %s: volantd supplies its own agent at boot", r.file, r.Strategy)
	}
	if initrd {
		host, detail, err := b.initFile(ctx)
		if err != nil {
			return "", err
		}
		if host != "" {
			if err := addHostFile(t, "init", host, 0o755); err != nil {
				return "", r.src.errorf("init", "%s: %w", detail, err)
			}
		}
	}
	files, err := b.addImageMappings(ctx)
	if err != nil {
		return "", err
	}
	if err := addMountPoints(t); err != nil {
		return "", err
	}
	if initrd {
		if err := addConsole(t); err != nil {
			return "", err
		}
		switch own := t.Root.Child("init"); {
		case own == nil && b.agent != api.AgentHost:
			return "", r.src.errorf("init", "neither the image nor a mapping gives an executable /init")
		case own != nil && b.agent == api.AgentHost:
			return "", fmt.Errorf("%s: the image has an /init of its own, which would replace the agent: build a disk (strategy oci_rootfs), or give [init] none = true to boot that /init without an agent", r.file)
		}
	}
	if err := b.checkProgram(); err != nil {
		return "", err
	}
	if len(r.Mappings) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%d mappings, %d files", len(r.Mappings), files), nil
}

// addImageMappings puts the recipe's mappings over the image, in the order of
// their guest paths, and returns how many files they are.
func (b *builder) addImageMappings(ctx context.Context) (int, error) {
	outputs, err := b.outputs()
	if err != nil {
		return 0, err
	}
	// The same walk as for an archive finds the files, their modes and the
	// conflicts among them.
	mapped := newTree()
	if err := addMappings(ctx, mapped, b.recipe, outputs); err != nil {
		return 0, err
	}
	keys := make(map[string]string) // of mappings, by the origin of their nodes
	for host := range b.recipe.Mappings {
		keys[mappingOrigin(host)] = "mappings." + host
	}
	files := 0
	for _, n := range mapped.sorted() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if n.implied {
			continue // Add makes what the image lacks
		}
		if err := addNode(b.image.tree.Tree, n); err != nil {
			return 0, b.recipe.src.errorf(keys[n.origin], "%w", err)
		}
		if n.Mode.IsRegular() {
			files++
		}
	}
	return files, nil
}

// addNode puts a mapped path into an image. A directory that the image has,
// under this name or by a link, stays as it is.
func addNode(t *layers.Tree, n *node) error {
	have := t.Lookup("/" + n.Name)
	switch {
	case n.Mode.IsDir():
		if have != nil && have.IsDir() {
			return nil
		}
		if have != nil {
			return fmt.Errorf("/%s is a file in the image", n.Name)
		}
		return t.Add(n.Name, layers.NewDir(unixMode(n.Mode)))
	case have != nil && have.IsDir() && path.Base(n.Name) == have.Name:
		return fmt.Errorf("/%s is a directory in the image: name a file", n.Name)
	case n.Mode&fs.ModeSymlink != 0:
		return t.Add(n.Name, layers.NewSymlink(n.Linkname))
	}
	return addHostFile(t, n.Name, n.host, unixMode(n.Mode))
}

// addHostFile adds a host file that belongs to root and has no time, so that
// equal content gives equal images.
func addHostFile(t *layers.Tree, name, host string, perm uint32) error {
	file, err := filepath.EvalSymlinks(host)
	if err != nil {
		return err
	}
	i, err := layers.HostFile(file)
	if err != nil {
		return err
	}
	i.Mode, i.UID, i.GID, i.ModSec, i.ModNsec = layers.ModeRegular|perm, 0, 0, 0, 0
	return t.Add(name, i)
}

// unixMode returns the permission bits of a mode, with the special ones.
func unixMode(m fs.FileMode) uint32 {
	perm := uint32(m.Perm())
	for _, s := range [...]struct {
		mode fs.FileMode
		unix uint32
	}{{fs.ModeSetuid, layers.ModeSetuid}, {fs.ModeSetgid, layers.ModeSetgid}, {fs.ModeSticky, layers.ModeSticky}} {
		if m&s.mode != 0 {
			perm |= s.unix
		}
	}
	return perm
}

// checkProgram sees to it that the workload's program is in the image: what the
// manifest names must be, what the image itself names may be brought by a
// volume.
func (b *builder) checkProgram() error {
	m, err := b.finish(b.image.config(), "artifact", "")
	if err != nil {
		return err
	}
	w := m.Workload
	if w == nil || len(w.Entrypoint) == 0 {
		return nil
	}
	search := w.Env["PATH"]
	if search == "" {
		search = searchPath
	}
	reason := ""
	switch program := w.Entrypoint[0]; {
	case strings.Contains(program, "/"):
		if !path.IsAbs(program) {
			program = path.Join("/", w.Workdir, program)
		}
		if !runnable(b.image.tree.Lookup(program)) {
			reason = fmt.Sprintf("%s is not in the image, or cannot be executed", program)
		}
	default:
		found := false
		for dir := range strings.SplitSeq(search, ":") {
			found = found || runnable(b.image.tree.Lookup(path.Join("/", dir, program)))
		}
		if !found {
			reason = fmt.Sprintf("%q is not in the image: no executable of that name in %s", program, search)
		}
	}
	if reason == "" {
		return nil
	}
	if own := b.template.manifest.Workload; own != nil && len(own.Entrypoint) > 0 {
		return b.template.errorf("workload.entrypoint", "%s", reason)
	}
	b.warn("the image's entrypoint %s", reason)
	return nil
}

func runnable(n *layers.Node) bool { return n != nil && n.IsRegular() && n.Mode&0o111 != 0 }

// initFile returns the host file that the recipe makes /init, empty for none,
// and what to call it.
func (b *builder) initFile(ctx context.Context) (host, detail string, err error) {
	r := b.recipe
	switch {
	case r.Init != nil && r.Init.Path != "":
		host, err = b.pinned("init.path", r.Init.Path, "")
		return host, "init " + r.Init.Path, err
	case b.agent != api.AgentImage:
		return "", "", nil
	case r.Agent.SourceStrategy == AgentLocal:
		host, err = b.pinned("agent.path", r.Agent.Path, strings.TrimPrefix(r.Agent.Checksum, "sha256:"))
		return host, "agent " + r.Agent.Path, err
	}
	host, err = b.download(ctx, "agent.url", r.Agent.URL, strings.TrimPrefix(r.Agent.Checksum, "sha256:"))
	return host, "agent " + r.Agent.URL, err
}

// pinned returns the path of a host file of the recipe, checking its digest if
// one is given.
func (b *builder) pinned(key, hostPath, digest string) (string, error) {
	host := b.recipe.hostPath(hostPath)
	fi, err := os.Stat(host)
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("is no file")
	}
	if err == nil {
		err = b.checkDigest(host, digest)
	}
	if err != nil {
		return "", b.recipe.src.errorf(key, "%w", err)
	}
	return host, nil
}
