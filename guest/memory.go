package guest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/volantvm/volant/guest/wire"
)

func (a *agent) getMemory(w http.ResponseWriter, r *http.Request) {
	m, err := memory(a.files)
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	writeJSON(w, http.StatusOK, m)
}

// memory reads what memory the guest has, and who has it.
func memory(files Files) (m wire.Memory, err error) {
	info, err := files.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	status, err := files.ReadFile("/proc/self/status")
	if err != nil {
		return m, err
	}
	for _, f := range []struct {
		to   *int64
		from []byte
		key  string
		sign int64
	}{
		{&m.Total, info, "MemTotal", 1},
		{&m.Available, info, "MemAvailable", 1},
		{&m.Agent, status, "VmRSS", 1},
		{&m.Kernel, info, "SUnreclaim", 1},
		{&m.Kernel, info, "KernelStack", 1},
		{&m.Kernel, info, "PageTables", 1},
		{&m.Kernel, info, "Percpu", 1}, // since Linux 4.20
		{&m.Workload, info, "AnonPages", 1},
		{&m.Workload, info, "Shmem", 1},
		{&m.Workload, status, "RssAnon", -1},
		{&m.Workload, status, "RssShmem", -1},
	} {
		n, err := kibibytes(f.from, f.key)
		if err != nil {
			return m, err
		}
		*f.to += f.sign * n
	}
	m.Workload = max(0, m.Workload) // the two files are not of one moment
	return m, nil
}

// kibibytes returns the bytes behind a key, "MemTotal:  123 kB".
func kibibytes(b []byte, key string) (int64, error) {
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name != key {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 53)
		return int64(n) << 10, err
	}
	return 0, fmt.Errorf("the kernel does not say %s", key)
}
