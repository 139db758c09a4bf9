package daemon

import (
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func TestHasPmem(t *testing.T) {
	long := strings.Repeat("x", 256<<10)
	for text, want := range map[string]bool{
		"":                                   false,
		"\x00virtio_pmem\x00nd_pfn\x00":      true,
		"\x00nd_btt\x00.\x00virtio_pmem\x00": true,
		"\x00virtio_pmem\x00nd_region\x00":   false, // as Linux without ND_CLAIM
		"\x00xvirtio_pmem\x00nd_pfn\x00":     false,
		long + "\x00nd_pfn\x00" + long + "\x00virtio_pmem\x00":     true,
		long[7:] + "\x00virtio_pmem\x00" + long + "\x00nd_btt\x00": true, // across what is read at a time
	} {
		if got, err := hasPmem(strings.NewReader(text)); got != want || err != nil {
			t.Errorf("hasPmem of %d bytes, %.40q = %v, %v, want %v", len(text), text, got, err, want)
		}
	}
	if _, err := hasPmem(iotest.ErrReader(os.ErrClosed)); err == nil {
		t.Error("hasPmem of what cannot be read: no error")
	}
}
