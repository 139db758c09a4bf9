package kernel

import "testing"

func FuzzParseModinfo(f *testing.F) {
	f.Add(testModule(vermagic, "depends=a,b-c", "softdep=pre: d post: e"))
	f.Fuzz(func(t *testing.T, in []byte) {
		info, err := parseModinfo(in)
		if err == nil && info.version == "" {
			t.Error("a module for no version")
		}
	})
}
