package daemon

import (
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFindAbilities(t *testing.T) {
	long := strings.Repeat("x", 256<<10)
	for text, want := range map[string]abilities{
		"":                                      {},
		"\x00virtio_pmem\x00nd_pfn\x00":         {pmem: true},
		"\x00nd_btt\x00.\x00virtio_pmem\x00":    {pmem: true},
		"\x00virtio_pmem\x00nd_region\x00":      {}, // as Linux without ND_CLAIM
		"\x00xvirtio_pmem\x00nd_pfn\x00":        {},
		"\x00virtio_mem\x00":                    {memory: true},
		"\x016ACPI: CPU%d has been hot-added\n": {cpus: true},
		long + "\x00nd_pfn\x00" + long + "\x00virtio_pmem\x00":               {pmem: true},
		long[7:] + "\x00virtio_pmem\x00" + long + "\x00nd_btt\x00":           {pmem: true}, // across what is read at a time
		long[20:] + "CPU%d has been hot-added" + long + "\x00virtio_mem\x00": {cpus: true, memory: true},
	} {
		if got, err := findAbilities(strings.NewReader(text)); got != want || err != nil {
			t.Errorf("findAbilities of %d bytes, %.40q = %+v, %v, want %+v", len(text), text, got, err, want)
		}
	}
	if _, err := findAbilities(iotest.ErrReader(os.ErrClosed)); err == nil {
		t.Error("findAbilities of what cannot be read: no error")
	}
}
