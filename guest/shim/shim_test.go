package shim_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/guest/shim"
	"github.com/volantvm/volant/testdata/need"
)

// parse wants what the kernel can execute without a loader.
func parse(t *testing.T, program []byte) *elf.File {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a segment %v, want a static program", p.Type)
		}
	}
	if len(program) > shim.MaxSize {
		t.Errorf("it has %d bytes, want at most %d", len(program), shim.MaxSize)
	}
	return f
}

// compiler is what compiled a program, by its own words.
func compiler(t *testing.T, f *elf.File) string {
	t.Helper()
	s := f.Section(".comment")
	if s == nil {
		t.Fatal("it does not say what compiled it")
	}
	b, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(b), "\x00")
}

// TestRebuild compiles the shim again.
func TestRebuild(t *testing.T) {
	if shim.Binary() == "" {
		need.Elsewhere(t, "there is no shim for this architecture")
	}
	kept := parse(t, []byte(shim.Binary()))
	need.Tool(t, "gcc")
	out := filepath.Join(t.TempDir(), "shim")
	cmd := exec.Command("sh", "build.sh", out)
	cmd.Env = append(os.Environ(), "CC=gcc", "LC_ALL=C")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, b)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	// Another gcc gives other bytes, which must be a shim as well.
	was, is := compiler(t, kept), compiler(t, parse(t, program))
	switch {
	case was != is:
		t.Logf("the kept one is of %s, this machine has %s: bytes not compared", was, is)
	case string(program) != shim.Binary():
		t.Error("what gcc makes of shim.c is not what is kept: run go generate ./guest/shim")
	}
}

// TestRefusesHost runs the shim where it must not do anything.
func TestRefusesHost(t *testing.T) {
	if shim.Binary() == "" {
		need.Elsewhere(t, "there is no shim for this architecture")
	}
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, []byte(shim.Binary()), 0o755); err != nil {
		t.Fatal(err)
	}
	runs := [][]string{{path}}
	if os.Getuid() == 0 {
		// Process 1 alone must not be enough: / is no rootfs here.
		runs = append(runs, []string{"unshare", "--mount", "--pid", "--fork", "--kill-child", path})
	}
	for _, argv := range runs {
		before, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "refused") {
			t.Errorf("%v = %q, %v; want a refusal", argv, out, err)
		}
		if after, _ := os.ReadFile("/proc/self/mountinfo"); !bytes.Equal(before, after) {
			t.Fatalf("%v changed the mounts:\n%s", argv, after)
		}
	}
}
