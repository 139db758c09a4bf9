package guest_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports guards the arrows: what runs as process 1 in every guest is paid
// for by every guest, and must not know the host's side.
func TestImports(t *testing.T) {
	const module = "github.com/volantvm/volant/"
	banned := []struct{ prefix, why string }{
		{"github.com/alecthomas/kong", "kestrel has no command line"},
		{"database/sql", "a guest stores nothing"},
		{"github.com/ncruces/go-sqlite3", "a guest stores nothing"},
		{module + "client", "the guest talks to the daemon by guest/wire alone"},
		{module + "daemon", "the guest does not know its daemon"},
		{module + "store", "the guest does not know its daemon"},
		{module + "hv", "the guest does not know its hypervisor"},
		{module + "build", "the guest builds nothing"},
	}
	for _, dep := range deps(t, ".", "../roles/kestrel") {
		if dep == module+"client/api/stdio" || dep == module+"client/api/archive" {
			continue // the framing of streams and archives, which goes through the daemon as it is
		}
		for _, b := range banned {
			if dep == b.prefix || strings.HasPrefix(dep, b.prefix+"/") {
				t.Errorf("guest imports %s: %s", dep, b.why)
			}
		}
	}
	for _, dep := range deps(t, "./wire") {
		if first, _, _ := strings.Cut(dep, "/"); strings.Contains(first, ".") && dep != module+"guest/wire" {
			t.Errorf("guest/wire imports %s: a contract imports the standard library alone", dep)
		}
	}
}

func deps(t *testing.T, pkgs ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-deps"}, pkgs...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}
