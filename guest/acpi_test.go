package guest

import "testing"

func TestIsPowerButton(t *testing.T) {
	event := func(class string) []byte {
		attr := append([]byte{4 + 43, 0, 1, 0}, class...)
		attr = append(attr, make([]byte, 4+44-len(attr))...)
		b := make([]byte, 20, 20+len(attr))
		b[0] = byte(20 + len(attr))
		return append(b, attr...)
	}
	power := event("button/power\x00")
	tests := []struct {
		name string
		b    []byte
		want bool
	}{
		{"power", power, true},
		{"second message", append(event("ac_adapter\x00"), power...), true},
		{"other", event("button/sleep\x00"), false},
		{"cut short", power[:30], false},
		{"length beyond the end", append([]byte{0xff}, power[1:]...), false},
		{"length of zero", make([]byte, 40), false},
		{"empty", nil, false},
	}
	for _, tt := range tests {
		if got := isPowerButton(tt.b); got != tt.want {
			t.Errorf("%s: isPowerButton() = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzIsPowerButton(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) { isPowerButton(b) })
}
