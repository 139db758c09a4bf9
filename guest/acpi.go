package guest

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// isPowerButton tells whether a datagram of netlink messages holds a press of
// the ACPI power button: after the headers of netlink (16 bytes) and generic
// netlink (4), attribute 1 is struct acpi_genl_event, whose first 20 bytes are
// the device class, "button/power".
func isPowerButton(b []byte) bool {
	for len(b) >= 16 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < 16 || size > len(b) {
			return false
		}
		if size >= 20 && hasPowerClass(b[20:size]) {
			return true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false
}

func hasPowerClass(attrs []byte) bool {
	const classLen = 20
	for len(attrs) >= 4 {
		size, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
		if size < 4 || size > len(attrs) {
			return false
		}
		if kind == 1 && size >= 4+classLen {
			class, _, _ := bytes.Cut(attrs[4:4+classLen], []byte{0})
			if strings.HasPrefix(string(class), "button/power") {
				return true
			}
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return false
}
