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

// memory reads what memory the guest has.
func memory(files Files) (m wire.Memory, err error) {
	info, err := files.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	if m.Total, err = kibibytes(info, "MemTotal"); err != nil {
		return m, err
	}
	if m.Available, err = kibibytes(info, "MemAvailable"); err != nil {
		return m, err
	}
	status, err := files.ReadFile("/proc/self/status")
	if err != nil {
		return m, err
	}
	m.Agent, err = kibibytes(status, "VmRSS")
	return m, err
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
