package build_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), need.Tool(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// unpack writes an artifact's files, links and directories to a new folder.
func unpack(t *testing.T, artifact string) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(artifact)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := initramfs.NewReader(f, initramfs.Limits{})
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, h.Name)
		switch {
		case h.Mode.IsDir():
			err = os.MkdirAll(p, 0o755)
		case h.Linkname != "":
			err = os.Symlink(h.Linkname, p)
		case h.Mode.IsRegular():
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(p, b, h.Mode.Perm())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inImage runs a program of an artifact with the artifact as its root, so that
// the real dynamic linker judges what is there.
func inImage(t *testing.T, artifact string, args ...string) string {
	t.Helper()
	need.Root(t, "for chroot(2)")
	dir := unpack(t, artifact)
	// $ORIGIN is read from /proc, which is not mounted here.
	if err := os.MkdirAll(filepath.Join(dir, "proc/self"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(args[0], filepath.Join(dir, "proc/self/exe")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Path = args[0]
	cmd.Err = nil // not to be looked up on the host
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s in the image: %v\n%s", args[0], err, out)
	}
	return string(out)
}

func toml(mappings string) string {
	return "version = \"1\"\n[mappings]\n" + mappings + strings.ReplaceAll(manifest, "/usr/bin/app", "/opt/app/bin/app")
}

func TestHostProgramRuns(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"fledge.toml": toml("\"/bin/ls\" = \"/opt/app/bin/app\"\n")})
	r := mustBuild(t, dir, build.Options{})
	if out := inImage(t, r.Artifact, "/opt/app/bin/app", "/"); !strings.Contains(out, "opt\n") {
		t.Errorf("ls / in the image printed %q", out)
	}
}

// compile builds app, which needs liba, which needs libb, all beside app.
func compile(t *testing.T, dir string, flags ...string) {
	t.Helper()
	write(t, dir, map[string]string{
		"b.c":   "int b(void) { return 42; }\n",
		"a.c":   "int b(void); int a(void) { return b(); }\n",
		"app.c": "#include <stdio.h>\nint a(void); int main(void) { printf(\"%d\\n\", a()); return 0; }\n",
		"bin/":  "", "lib/": "",
	})
	in := func(p string) string { return filepath.Join(dir, p) }
	command(t, "gcc", "-shared", "-fPIC", "-Wl,-soname,libb.so.1", "-o", in("lib/libb.so.1.0"), in("b.c"))
	if err := os.Symlink("libb.so.1.0", in("lib/libb.so.1")); err != nil {
		t.Fatal(err)
	}
	command(t, "gcc", "-shared", "-fPIC", "-Wl,-soname,liba.so", "-o", in("lib/liba.so"), in("a.c"), in("lib/libb.so.1"))
	command(t, "gcc", append([]string{"-o", in("bin/app"), in("app.c"), in("lib/liba.so"), "-Wl,-rpath-link," + in("lib")}, flags...)...)
	// Their paths must not be what makes them found.
	for _, c := range []string{"a.c", "b.c", "app.c"} {
		if err := os.Remove(in(c)); err != nil {
			t.Fatal(err)
		}
	}
}

// dropSections makes an ELF file forget its section headers, which running it
// does not need: e_shoff, e_shnum and e_shstrndx of elf(5) become zero.
func dropSections(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[0x28:0x30])
	clear(b[0x3c:0x40])
	if err := os.WriteFile(file, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestLibraries(t *testing.T) {
	const origin = "-Wl,-rpath,$ORIGIN/../lib"
	const rpath, runpath = "-Wl,--disable-new-dtags", "-Wl,--enable-new-dtags"
	for _, tt := range []struct {
		name     string
		flags    []string
		mappings string
		strip    bool
		err      string
	}{
		// An RPATH holds for what liba needs too.
		{"rpath from host", []string{origin, rpath}, "\"bin/app\" = \"/opt/app/bin/app\"\n", false, ""},
		{"rpath in image", []string{origin, rpath}, "\"bin\" = \"/opt/app/bin\"\n\"lib\" = \"/opt/app/lib\"\n", false, ""},
		{"no section headers", []string{origin, rpath}, "\"bin/app\" = \"/opt/app/bin/app\"\n", true, ""},
		// A RUNPATH does not: ld.so would fail, so must we.
		{"runpath", []string{origin, runpath}, "\"bin/app\" = \"/opt/app/bin/app\"\n", false,
			"/opt/app/bin/app needs the library libb.so.1 (for liba.so), which is not in "},
		// A library the program itself needs is loaded before liba asks.
		{"runpath, both needed", []string{origin, runpath, "-Wl,--no-as-needed", "LIBB"}, "\"bin/app\" = \"/opt/app/bin/app\"\n", false, ""},
		{"default directory in image", nil, "\"bin\" = \"/opt/app/bin\"\n\"lib\" = \"/usr/lib\"\n", false, ""},
		{"missing", nil, "\"bin\" = \"/opt/app/bin\"\n", false, "install it, or map it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "fledge-test-") // gcc's -Wl splits the names of t.TempDir
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			flags := append([]string(nil), tt.flags...)
			for i := range flags {
				flags[i] = strings.ReplaceAll(flags[i], "LIBB", filepath.Join(dir, "lib/libb.so.1"))
			}
			compile(t, dir, flags...)
			if tt.strip {
				dropSections(t, filepath.Join(dir, "bin/app"))
			}
			write(t, dir, map[string]string{"fledge.toml": toml(tt.mappings)})
			r, err := try(t, dir, build.Options{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Build = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if out := inImage(t, r.Artifact, "/opt/app/bin/app"); out != "42\n" {
				t.Errorf("app in the image printed %q, want 42", out)
			}
		})
	}
}

func TestMuslProgramRuns(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"app.c": "#include <stdio.h>\nint main(void) { puts(\"musl\"); return 0; }\n", "fledge.toml": toml("\"app\" = \"/opt/app/bin/app\"\n")})
	command(t, "musl-gcc", "-o", filepath.Join(dir, "app"), filepath.Join(dir, "app.c"))
	r := mustBuild(t, dir, build.Options{})
	if out := inImage(t, r.Artifact, "/opt/app/bin/app"); out != "musl\n" {
		t.Errorf("app in the image printed %q, want musl", out)
	}
}

// TestLibrariesOfLdSoConf takes a library from a directory that only
// ld.so.conf knows. The guest has no ld.so.cache and must find it nevertheless.
func TestLibrariesOfLdSoConf(t *testing.T) {
	dir, err := os.MkdirTemp("", "fledge-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	compile(t, dir)
	write(t, dir, map[string]string{"fledge.toml": toml("\"bin\" = \"/opt/app/bin\"\n\"lib\" = \"/usr/lib\"\n")})
	root := unpack(t, mustBuild(t, dir, build.Options{}).Artifact)
	write(t, root, map[string]string{
		"etc/ld.so.conf":            "include ld.so.conf.d/*.conf\n/gone # not there\n",
		"etc/ld.so.conf.d/own.conf": "# ours\n/opt/strange\n",
		"opt/strange/":              "",
	})
	for _, name := range []string{"libb.so.1", "libb.so.1.0"} {
		if err := os.Rename(filepath.Join(root, "usr/lib", name), filepath.Join(root, "opt/strange", name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, map[string]string{"fledge.toml": toml("\"bin/app\" = \"/opt/app/bin/app\"\n")})
	var o build.Options
	o.SetRoot(root)
	r := mustBuild(t, dir, o)
	got := list(t, r.Artifact)
	if got["opt/strange/libb.so.1"] != "Lrwxrwxrwx libb.so.1.0" || got["opt/strange/libb.so.1.0"] == "" {
		t.Errorf("the library and its link are not in /opt/strange: %q", got["opt/strange/libb.so.1"])
	}
	if out := inImage(t, r.Artifact, "/opt/app/bin/app"); out != "42\n" {
		t.Errorf("app in the image printed %q, want 42", out)
	}
}
