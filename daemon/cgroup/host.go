package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Controllers that limit a VMM or count what it does. In version 1 cpuacct
// counts what cpu limits.
const (
	ctlMemory = "memory"
	ctlPids   = "pids"
	ctlCPU    = "cpu"
	ctlIO     = "io"      // version 2
	ctlAcct   = "cpuacct" // version 1
	ctlBlkio  = "blkio"   // version 1
)

// Config says where the groups are.
type Config struct {
	// Parent is Volant's group below the top of each hierarchy, such as "volant";
	// its parts are [a-zA-Z0-9_.-]+.
	Parent string
	// Instance tells the groups of this daemon from those of others; [a-z0-9]+.
	Instance string
	// Mountinfo is the file to learn the hierarchies from; "" is
	// /proc/self/mountinfo.
	Mountinfo string
}

// Host is where this host keeps the groups of VMs. It is safe for concurrent use
// as far as calls are about different VMs.
type Host struct {
	roots   []root
	problem string
	rmdir   func(string) error // unix.Rmdir, which no directory tree of a test would obey
}

// root is Volant's part of one hierarchy.
type root struct {
	version     int    // 1 or 2
	dir         string // of the instance
	top         string // of the parent
	controllers []string
}

// Open finds the hierarchies of this host and makes the instance's groups in
// them. It fails only on a Config that cannot work.
func Open(cfg Config) (*Host, error) {
	if !validParent(cfg.Parent) {
		return nil, fmt.Errorf("cgroup %q: want a relative path of letters, digits, dots, hyphens and underscores", cfg.Parent)
	}
	if cfg.Instance == "" || strings.ContainsFunc(cfg.Instance, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		return nil, fmt.Errorf("cgroup instance %q: want lower-case letters and digits", cfg.Instance)
	}
	path := cfg.Mountinfo
	if path == "" {
		path = "/proc/self/mountinfo"
	}
	h := &Host{rmdir: unix.Rmdir}
	b, err := os.ReadFile(path)
	if err != nil {
		h.problem = err.Error()
		return h, nil
	}
	mounts := parseMounts(string(b))
	var problems []string
	for _, m := range mounts {
		r, err := openRoot(m, cfg)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		h.roots = append(h.roots, r)
	}
	// Version 2 first: it ends all that is in a group at once.
	slices.SortStableFunc(h.roots, func(a, b root) int { return b.version - a.version })
	var missing []string
	for _, c := range []string{ctlMemory, ctlPids, ctlCPU} {
		if !slices.ContainsFunc(h.roots, func(r root) bool { return slices.Contains(r.controllers, c) }) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		h.problem = "VMs run without limits of " + strings.Join(missing, ", ")
		switch {
		case len(mounts) == 0:
			h.problem += ": no cgroups are mounted"
		case len(problems) > 0:
			h.problem += ": " + strings.Join(problems, "; ")
		default:
			h.problem += ": this host's cgroups do not offer them to volantd"
		}
	}
	return h, nil
}

// Problem says which limits VMs go without and why, "" when they have all.
func (h *Host) Problem() string { return h.problem }

// Words says for people what there is: "v2 (cpu, io, memory, pids)".
func (h *Host) Words() string {
	var v1, v2 []string
	for _, r := range h.roots {
		if r.version == 2 {
			v2 = append(v2, r.controllers...)
		} else {
			v1 = append(v1, r.controllers...)
		}
	}
	var words []string
	for i, list := range [][]string{v1, v2} {
		if len(list) > 0 {
			slices.Sort(list)
			words = append(words, fmt.Sprintf("v%d (%s)", i+1, strings.Join(list, ", ")))
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " and ")
}

// mount is one mounted hierarchy.
type mount struct {
	version     int
	point       string
	controllers []string // of version 1
}

// parseMounts finds in proc_pid_mountinfo(5) the hierarchies that are of use,
// each once.
func parseMounts(text string) (mounts []mount) {
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 6 || len(t) < 3 {
			continue
		}
		m := mount{point: unescape(h[4])}
		switch t[0] {
		case "cgroup2":
			m.version = 2
		case "cgroup":
			m.version = 1
			for o := range strings.SplitSeq(t[2], ",") {
				if slices.Contains([]string{ctlMemory, ctlPids, ctlCPU, ctlAcct, ctlBlkio}, o) {
					m.controllers = append(m.controllers, o)
				}
			}
			if m.controllers == nil {
				continue
			}
		default:
			continue
		}
		if !slices.ContainsFunc(mounts, func(o mount) bool { return o.version == m.version && slices.Equal(o.controllers, m.controllers) }) {
			mounts = append(mounts, m)
		}
	}
	return mounts
}

// unescape undoes the octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func validParent(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_.-", r)
		}) {
			return false
		}
	}
	return true
}

// openRoot makes the instance's group in one hierarchy.
func openRoot(m mount, cfg Config) (root, error) {
	r := root{version: m.version, top: filepath.Join(m.point, cfg.Parent), controllers: m.controllers}
	r.dir = filepath.Join(r.top, cfg.Instance)
	if m.version == 2 {
		// Each level gives its controllers to the next; one that it lacks, or that is
		// kept for version 1, is refused and left out.
		dir := m.point
		for _, part := range strings.Split(cfg.Parent+"/"+cfg.Instance, "/") {
			enable(dir)
			dir = filepath.Join(dir, part)
			if err := makeDir(dir); err != nil {
				return root{}, err
			}
		}
		r.controllers = enable(dir)
		return r, nil
	}
	if err := makeDir(r.top); err != nil {
		return root{}, err
	}
	return r, makeDir(r.dir)
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// enable gives a group's children what they need, and returns what they have.
func enable(dir string) (enabled []string) {
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	for _, c := range []string{ctlCPU, ctlIO, ctlMemory, ctlPids} {
		if slices.Contains(strings.Fields(string(has)), c) && write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c) == nil {
			enabled = append(enabled, c)
		}
	}
	return enabled
}

// write writes to a file of a group in one piece, as the kernel wants it.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Close removes the instance's groups if no VM is in them, and the parent's if
// nobody's are.
func (h *Host) Close() error {
	var errs []error
	for _, r := range h.roots {
		for _, dir := range []string{r.dir, r.top} {
			err := h.rmdir(dir)
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
				break
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
				break
			}
		}
	}
	return errors.Join(errs...)
}
