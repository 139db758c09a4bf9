package vmm

import "testing"

func TestHasVirtualization(t *testing.T) {
	for in, want := range map[string]bool{
		"flags\t\t: fpu vmx sse\n":               true,
		"model : x\nflags : svm\nflags : svm\n":  true,
		"flags : fpu vmxoff\n":                   false,
		"vmx flags : ept vmx\nflags : fpu\n":     false,
		"model name : svm\nflags : hypervisor\n": false,
		"":                                       false,
	} {
		if got := hasVirtualization([]byte(in)); got != want {
			t.Errorf("hasVirtualization(%q) = %v, want %v", in, got, want)
		}
	}
}
