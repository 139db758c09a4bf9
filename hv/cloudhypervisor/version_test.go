package cloudhypervisor

import "testing"

func TestParseVersion(t *testing.T) {
	tests := []struct {
		text string
		want version
		ok   bool
	}{
		{"cloud-hypervisor v52.0\n", version{52, 0}, true},
		{"cloud-hypervisor v53.0.0\n", version{53, 0}, true},
		{"cloud-hypervisor v53.1-246-gae44c2971\n", version{53, 1}, true},
		{"cloud-hypervisor 54.0.0-dev\nfeatures: kvm\n", version{54, 0}, true},
		{"", version{}, false},
		{"cloud-hypervisor\n", version{}, false},
		{"cloud-hypervisor v53\n", version{}, false},
		{"QEMU emulator version 7.2\n", version{}, false},
		{"cloud-hypervisor v123456.0\n", version{}, false},
	}
	for _, test := range tests {
		if got, err := parseVersion(test.text); got != test.want || (err == nil) != test.ok {
			t.Errorf("parseVersion(%q) = %v, %v, want %v, ok %v", test.text, got, err, test.want, test.ok)
		}
	}
}

func TestTraits(t *testing.T) {
	for v, want := range map[version]struct {
		maxBody int
		notice  bool
	}{
		{52, 0}: {51200, true}, {53, 2}: {51200, false}, {54, 0}: {4 << 20, false}, {60, 0}: {4 << 20, true},
	} {
		if got := v.traits(); got.maxBody != want.maxBody || (got.notice != "") != want.notice {
			t.Errorf("version %s has the traits %+v, want a body of %d and notice %v", v, got, want.maxBody, want.notice)
		}
	}
}
