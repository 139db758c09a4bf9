package guest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/volantvm/volant/guest/wire"
)

func TestMemory(t *testing.T) {
	dir := t.TempDir()
	for path, content := range map[string]string{
		"proc/meminfo": "MemTotal:         100 kB\nMemFree:           20 kB\nMemAvailable:      50 kB\n" +
			"AnonPages:         30 kB\nShmem:              6 kB\nSUnreclaim:         8 kB\nKernelStack:        4 kB\nPageTables:         2 kB\nPercpu:             1 kB\n",
		"proc/self/status": "Name:\tinit\nVmRSS:\t     9 kB\nRssAnon:\t     5 kB\nRssFile:\t     3 kB\nRssShmem:\t     1 kB\nThreads:\t5\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := wire.Memory{Total: 100 << 10, Available: 50 << 10, Agent: 9 << 10, Kernel: 15 << 10, Workload: 30 << 10}
	if m, err := memory(rooted(dir)); m != want || err != nil {
		t.Errorf("memory() = %+v, %v, want %+v", m, err, want)
	}
	for _, bad := range []string{"", "MemTotal: -5 kB\n", "MemTotal: 99999999999999999999 kB\n", "MemTotal: lots\n"} {
		if n, err := kibibytes([]byte(bad), "MemTotal"); err == nil {
			t.Errorf("kibibytes(%q) = %d, want an error", bad, n)
		}
	}
}
