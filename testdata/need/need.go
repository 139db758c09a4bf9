// Package need lets a test say what it cannot do without. A test without it is
// skipped, with the reason; where VOLANT_TEST_ALL is 1, as make test has it, it
// fails instead if it could have had that, so that what can run does run.
// TestSkips sees to it that no test skips by itself.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// Missing ends a test for want of something that could be there: a program, a
// file, root.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("VOLANT_TEST_ALL") == "1" {
		t.Fatalf("needs "+format, args...)
	}
	t.Skipf("needs "+format, args...)
}

// Root wants a test to run as root; why says for what.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root: %s", why)
	}
}

// Tool returns the path of a program. testdata/deps.sh installs those that tests
// need.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, "a program: %v", err)
	}
	return path
}

// File wants a file of the host, and returns its path.
func File(t testing.TB, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		Missing(t, "a file: %v", err)
	}
	return path
}

// Env returns the value of an environment variable that names what make test has
// made, such as VOLANT_TEST_KERNEL.
func Env(t testing.TB, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		Missing(t, "what %s names (make test sets it)", name)
	}
	return value
}

// Elsewhere skips a test that this machine cannot run whatever is installed on
// it: its kernel, its processor or its hypervisor is another one.
func Elsewhere(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Skipf(format, args...)
}

// Long skips a test that takes long where go test was asked for -short.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long")
	}
}

// Bench skips what measures unless make bench asks for it, with VOLANT_BENCH:
// it takes minutes and a machine that does nothing else.
func Bench(t testing.TB) {
	t.Helper()
	if os.Getenv("VOLANT_BENCH") == "" {
		t.Skip("measures for minutes; make bench runs it")
	}
}
