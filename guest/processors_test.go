package guest

import "testing"

func TestPluggedProcessor(t *testing.T) {
	for event, want := range map[string]string{
		"add@/devices/system/cpu/cpu3\x00ACTION=add\x00DEVPATH=/devices/system/cpu/cpu3\x00SUBSYSTEM=cpu\x00": "cpu3",
		"add@/devices/system/cpu/cpu12\x00":      "cpu12",
		"add@/devices/system/cpu/cpu3":           "", // cut off
		"remove@/devices/system/cpu/cpu3\x00":    "",
		"online@/devices/system/cpu/cpu3\x00":    "",
		"add@/devices/system/cpu/cpu3/cache\x00": "",
		"add@/devices/system/cpu/cpu../x\x00":    "",
		"add@/devices/system/cpu/cpu\x00":        "",
		"add@/devices/system/cpu/cpuidle\x00":    "",
		"add@/devices/system/memory/memory3\x00": "",
		"":                                       "",
	} {
		if got := pluggedProcessor([]byte(event)); got != want {
			t.Errorf("pluggedProcessor(%q) = %q, want %q", event, got, want)
		}
	}
}
