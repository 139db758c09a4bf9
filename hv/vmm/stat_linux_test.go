package vmm

import "testing"

func TestParseStat(t *testing.T) {
	const tail = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21\n"
	tests := []struct {
		in     string
		start  uint64
		zombie bool
		ok     bool
	}{
		{"7 (qemu) S" + tail, 4242, false, true},
		{"7 (qemu) Z" + tail, 4242, true, true},
		{"7 (a) Z 1 (b) R" + tail, 4242, false, true}, // the command is the process's own choice
		{"7 (qemu) S 1 2", 0, false, false},
		{"7 qemu S" + tail, 0, false, false},
		{"", 0, false, false},
	}
	for _, test := range tests {
		start, zombie, err := parseStat([]byte(test.in))
		if start != test.start || zombie != test.zombie || (err == nil) != test.ok {
			t.Errorf("parseStat(%q) = %d, %v, %v, want %d, %v, ok %v", test.in, start, zombie, err, test.start, test.zombie, test.ok)
		}
	}
}
