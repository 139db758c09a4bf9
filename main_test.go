package main

import (
	"bytes"
	"debug/elf"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const module = "github.com/volantvm/volant"

// maxBinarySize is the budget of the stripped amd64 binary, in bytes.
const maxBinarySize = 22 << 20

// arrows says which rooms a room may import: the house's import arrows run one
// way, and a new one needs its reason in the commit that adds it here. A name
// that ends in /* stands for all packages directly below.
func arrows() map[string][]string {
	heavy := []string{"roles/cmdline", "client", "client/api", "client/api/stdio", "daemon", "daemon/*", "store", "store/*", "ipam", "hv", "hv/*",
		"guest", "guest/plan", "guest/wire", "build", "build/*", "initramfs"}
	return map[string][]string{
		"":                           {"roles"},
		"roles":                      {"roles/*"},
		"roles/cmdline":              {},
		"roles/volar":                {"roles/cmdline", "client", "client/api", "client/api/archive", "client/api/stdio", "build", "build/*", "initramfs"},
		"roles/volantd":              heavy,
		"roles/kestrel":              {"guest", "guest/wire"},
		"roles/fledge":               {"roles/cmdline", "build", "build/*", "initramfs", "client/api"},
		"client":                     {"client/api", "client/api/stdio"},
		"client/api":                 {"client/api/stdio"},
		"client/api/archive":         {},
		"client/api/stdio":           {},
		"daemon":                     {"client/api", "client/api/stdio", "guest/plan", "guest/wire", "hv", "ipam", "initramfs", "store/row", "daemon/ext4", "daemon/cgroup", "guest/shim"}, // initramfs and guest/shim: the daemon packs the shim in front of an application
		"daemon/httpapi":             {"client/api", "client/api/stdio"},
		"daemon/httpapi/httpapitest": {"client/api", "client/api/archive", "client/api/stdio", "daemon/httpapi"},
		"daemon/ext4":                {},
		"daemon/cgroup":              {},
		"daemon/netdev":              {"ipam"}, // the bridge obeys the pool's rules about prefix and gateway
		"store":                      {"client/api", "ipam", "store/row"},
		"store/row":                  {"client/api", "hv"}, // what a row holds, shared with the daemon that may not see SQL
		"ipam":                       {},
		"hv":                         {},
		"hv/vmm":                     {"hv"},
		"hv/transport":               {"hv", "guest/wire"}, // the serial link's framing is the south contract's
		"hv/qemu":                    {"hv", "hv/vmm", "hv/transport", "guest/wire"},
		"hv/cloudhypervisor":         {"hv", "hv/vmm", "hv/transport"},
		"hv/hvtest":                  {"hv", "hv/vmm", "guest/wire", "initramfs", "hv/hvtest/guest"},
		"hv/hvtest/guest":            {"guest/wire"},
		"hv/hvtest/guest/init":       {"guest/wire", "hv/hvtest/guest"},
		"guest":                      {"guest/plan", "guest/wire", "client/api/archive", "client/api/stdio"},
		"guest/plan":                 {"guest/wire"},
		"guest/wire":                 {},
		"guest/shim":                 {},
		"build":                      {"client/api", "initramfs", "build/dockerfile", "build/erofs", "build/layers", "build/oci", "build/superblock"},
		"build/dockerfile":           {},
		"build/kernel":               {"guest/wire"}, // where the guest looks for modules
		"build/oci":                  {"client/api"},
		"build/oci/ocitest":          {"client/api"},
		"build/superblock":           {},
		"build/layers":               {},
		"build/layers/layertest":     {"build/layers"},
		"build/erofs":                {"build/layers"},
		"initramfs":                  {},
	}
}

// keepers says which rooms alone may import a library.
func keepers() map[string][]string {
	return map[string][]string{
		"github.com/alecthomas/kong":             {"roles/cmdline", "roles/volar", "roles/volantd", "roles/fledge"},
		"github.com/ncruces/go-sqlite3":          {"store"},
		"database/sql":                           {"store"},
		"github.com/vishvananda/netlink":         {"guest", "daemon/netdev", "hv/hvtest/guest/init"},
		"github.com/google/nftables":             {"daemon/netdev"},
		"github.com/hashicorp/yamux":             {"guest", "hv/transport", "hv/hvtest/guest/init"},
		"github.com/mdlayher/vsock":              {"guest", "hv/transport", "hv/hvtest/guest/init"},
		"github.com/cavaliergopher/cpio":         {"initramfs"},
		"github.com/klauspost/compress":          {"initramfs", "build/kernel", "build/oci", "build/oci/ocitest"},
		"github.com/pierrec/lz4":                 {"initramfs", "build/kernel"},
		"github.com/google/go-containerregistry": {"build/oci"},
		"github.com/pelletier/go-toml/v2":        {"build", "roles/volar"},
		"go.yaml.in/yaml/v3":                     {"build", "roles/volar"},
	}
}

// standardOnly lists the packages that import the standard library only,
// beyond the house's own contracts.
func standardOnly() []string {
	return []string{"client", "client/api", "client/api/archive", "client/api/stdio", "guest/wire", "ipam"}
}

// goFiles calls visit for every Go file of the module that the go tool builds.
func goFiles(t *testing.T, mode parser.Mode, visit func(room, path string, f *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); path != "." && err == nil {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, mode)
		if err != nil {
			return err
		}
		room := filepath.ToSlash(filepath.Dir(path))
		if room == "." {
			room = ""
		}
		visit(room, path, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportArrows(t *testing.T) {
	allowed, keep, leaves := arrows(), keepers(), standardOnly()
	seen := map[string]bool{}
	goFiles(t, parser.ImportsOnly, func(room, path string, f *ast.File) {
		seen[room] = true
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		rooms, ok := allowed[room]
		if !ok {
			t.Errorf("%s: room %q is not in arrows(): give it its place in the house", path, room)
			return
		}
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			if own, ok := strings.CutPrefix(imp, module+"/"); ok {
				parent, _, _ := cutLast(own, "/")
				if !slices.Contains(rooms, own) && !slices.Contains(rooms, parent+"/*") {
					t.Errorf("%s imports %s: room %q may import %v only", path, own, room, rooms)
				}
				continue
			}
			for lib, users := range keep {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(users, room) {
					t.Errorf("%s imports %s: only %v may", path, imp, users)
				}
			}
			if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") && slices.Contains(leaves, room) {
				t.Errorf("%s imports %s: room %q imports the standard library only", path, imp, room)
			}
		}
	})
	for room := range allowed {
		if !seen[room] {
			t.Errorf("arrows() names room %q, which does not exist", room)
		}
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

func TestOnePackageComment(t *testing.T) {
	comments := map[string][]string{}
	goFiles(t, parser.PackageClauseOnly|parser.ParseComments, func(room, path string, f *ast.File) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		if f.Doc != nil {
			comments[room] = append(comments[room], path)
		} else if comments[room] == nil {
			comments[room] = []string{}
		}
	})
	for room, files := range comments {
		if len(files) != 1 {
			t.Errorf("package %q has package comments in %v, want exactly one", room, files)
		}
	}
}

// TestSkips holds every test to package need: a test that skips by itself would
// do so unseen where everything has to run.
func TestSkips(t *testing.T) {
	goFiles(t, 0, func(_, path string, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, n.Sel.Name) {
					t.Errorf("%s skips a test: say with %s/testdata/need what it lacks, so that it fails where that must be there", path, module)
				}
			case *ast.BasicLit:
				if name, _ := strconv.Unquote(n.Value); name == "VOLANT_"+"TEST_ALL" {
					t.Errorf("%s looks at VOLANT_TEST_ALL, which is package need's", path)
				}
			}
			return true
		})
	})
}

// build makes the binary as the Makefile does and returns its path.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "volant")
	modfile, err := exec.Command("go", "run", "./testdata/modfile").Output()
	if err != nil {
		t.Fatalf("go run ./testdata/modfile: %v", err)
	}
	cmd := exec.Command("go", "build", "-modfile="+strings.TrimSpace(string(modfile)), "-tags=nethttpomithttp2", "-trimpath",
		"-ldflags=-s -w -X main.version=1.2.3-test", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

func TestBinary(t *testing.T) {
	bin := build(t)

	t.Run("static", func(t *testing.T) {
		f, err := elf.Open(bin)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Error("the binary asks for a dynamic loader, want a static one")
			}
		}
	})

	t.Run("size", func(t *testing.T) {
		st, err := os.Stat(bin)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d bytes, %.1f MiB of %d MiB", st.Size(), float64(st.Size())/(1<<20), maxBinarySize>>20)
		if st.Size() > maxBinarySize {
			t.Errorf("the stripped binary has %d bytes, want at most %d", st.Size(), maxBinarySize)
		}
	})

	t.Run("no work at package level", func(t *testing.T) {
		cmd := exec.Command(bin, "--version")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		var trace bytes.Buffer
		cmd.Stderr = &trace
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(trace.String(), "init runtime @") {
			t.Fatalf("no trace of package initialization in %q", trace.String())
		}
		for line := range strings.Lines(trace.String()) {
			if strings.Contains(line, "init "+module) || strings.HasPrefix(line, "init main ") {
				t.Errorf("package-level work: %s", strings.TrimSpace(line))
			}
		}
	})

	t.Run("version and help", func(t *testing.T) {
		for _, name := range []string{"volant", "volar", "volantd", "kestrel", "fledge", "init"} {
			link := filepath.Join(t.TempDir(), name)
			if err := os.Symlink(bin, link); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(link, "--version").CombinedOutput()
			if err != nil || string(out) != name+" 1.2.3-test\n" {
				t.Errorf("%s --version = %q, %v; want %q", name, out, err, name+" 1.2.3-test\n")
			}
			out, err = exec.Command(link, "--help").CombinedOutput()
			if err != nil || !strings.Contains(strings.ToLower(string(out)), "usage: ") {
				t.Errorf("%s --help = %q, %v; want a usage text and status 0", name, out, err)
			}
			if name == "volant" {
				continue
			}
			out, err = exec.Command(bin, name, "--version").CombinedOutput()
			if err != nil || string(out) != name+" 1.2.3-test\n" {
				t.Errorf("volant %s --version = %q, %v", name, out, err)
			}
		}
	})

	t.Run("unknown word", func(t *testing.T) {
		out, err := exec.Command(bin, "volnatd").CombinedOutput()
		if code(err) != 2 || !strings.Contains(string(out), `"volnatd" is neither a role nor a command`) {
			t.Errorf("volant volnatd = %q, %v; want exit status 2 and a sentence", out, err)
		}
	})

	t.Run("install", func(t *testing.T) { testInstall(t, bin) })
	t.Run("kestrel refuses a host", func(t *testing.T) { testGuard(t, bin) })
}

func testInstall(t *testing.T, bin string) {
	dir := t.TempDir()
	for range 2 { // the second time there is nothing to do
		if out, err := exec.Command(bin, "install", "--dir", dir).CombinedOutput(); err != nil {
			t.Fatalf("volant install: %v\n%s", err, out)
		}
		for _, name := range []string{"volar", "volantd", "fledge"} {
			if got, err := os.Readlink(filepath.Join(dir, name)); err != nil || got != bin {
				t.Errorf("%s links to %q, %v; want %q", name, got, err, bin)
			}
		}
	}
	taken := t.TempDir()
	if err := os.WriteFile(filepath.Join(taken, "volar"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "install", "--dir", taken).CombinedOutput()
	if code(err) != 1 || !strings.Contains(string(out), "exists and is no link") {
		t.Errorf("volant install over a file = %q, %v; want a refusal", out, err)
	}
	if b, _ := os.ReadFile(filepath.Join(taken, "volar")); string(b) != "mine" {
		t.Errorf("the file in the way now holds %q, want it untouched", b)
	}
}

// guardScript runs a command and compares what the guest role would change if
// its guard failed: mounts, names, devices, links, well-known files.
const guardScript = `
state() {
	cat /proc/self/mountinfo /proc/net/route /proc/sys/kernel/hostname /proc/sys/kernel/panic
	cut -d: -f1 /proc/net/dev
	ls -1A /
	ls /dev
	cat /etc/machine-id /etc/resolv.conf /etc/hosts 2>/dev/null
	true
}
before=$(state)
"$@"
status=$?
after=$(state)
if [ "$before" != "$after" ]; then
	echo "CHANGED"
	echo "$before" >before
	echo "$after" | diff before -
fi
exit $status
`

// testGuard runs the guest role on this host, as root where the test is root,
// under every name, plainly and as PID 1 of a PID namespace. The namespaces
// around it keep other tests' mounts out of the comparison, and keep a broken
// guard from doing harm.
func testGuard(t *testing.T, bin string) {
	dir := t.TempDir()
	var runs [][]string
	for _, name := range []string{"kestrel", "init"} {
		link := filepath.Join(dir, name)
		if err := os.Symlink(bin, link); err != nil {
			t.Fatal(err)
		}
		runs = append(runs, []string{link}, []string{bin, name}, []string{link, "volant.vm=x"})
		if os.Getuid() == 0 {
			// PID 1 alone must not be enough: / is no rootfs here.
			runs = append(runs, []string{"unshare", "--pid", "--fork", "--kill-child", link})
		}
	}
	for _, argv := range runs {
		args := append([]string{"sh", "-c", guardScript, "sh"}, argv...)
		if os.Getuid() == 0 {
			args = append([]string{"unshare", "--mount", "--net", "--uts", "--propagation", "private"}, args...)
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = t.TempDir()
		cmd.WaitDelay = time.Second
		timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		out, err := cmd.CombinedOutput()
		timer.Stop()
		if err == nil || !strings.Contains(string(out), "refus") {
			t.Errorf("%v = %q, %v; want a failure and a refusal", argv, out, err)
		}
		if strings.Contains(string(out), "CHANGED") {
			t.Fatalf("%v changed the host:\n%s", argv, out)
		}
	}
}

// code returns a command's exit status, 0 for a nil error.
func code(err error) int {
	if err == nil {
		return 0
	}
	if ee, ok := err.(*exec.ExitError); ok {
		return ee.ExitCode()
	}
	return -1
}
