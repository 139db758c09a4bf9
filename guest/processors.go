package guest

import "strings"

// pluggedProcessor returns the processor that a uevent says was added, such as
// "cpu3"; "" of another event. An event begins with what has happened and to which
// device, and ends with a zero byte: lib/kobject_uevent.c of Linux.
func pluggedProcessor(event []byte) string {
	head, _, ended := strings.Cut(string(event), "\x00")
	name, ok := strings.CutPrefix(head, "add@/devices/system/cpu/")
	number, isCPU := strings.CutPrefix(name, "cpu")
	if !ok || !ended || !isCPU || number == "" || len(number) > 5 || strings.Trim(number, "0123456789") != "" {
		return ""
	}
	return name
}
