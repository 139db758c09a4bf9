package build

import (
	"bytes"
	"errors"
	"os"
	"testing"
)

func FuzzParseRecipe(f *testing.F) {
	f.Add([]byte("version = \"1\"\n[mappings]\n\"./a\" = \"/b\"\n[manifest]\nname = \"x\"\n[manifest.workload]\nenv = { A = \"b\" }\n[[manifest.disks]]\nname = \"d\"\n"))
	f.Add([]byte("version = \"1\"\n[agent]\nsource_strategy = \"http\"\n"))
	f.Add([]byte("a.b.c = [1, {x = 2}, [3.5, inf, 1979-05-27]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecipe("fledge.toml", data)
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("parseRecipe = %v, not an *Error", err)
		}
		if err != nil || r.Manifest == nil {
			return
		}
		if _, err := loadTemplate(r, ""); err != nil && !errors.As(err, &e) {
			t.Fatalf("loadTemplate = %v, not an *Error", err)
		}
	})
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add("m.toml", []byte("name = \"x\"\n"))
	f.Add("m.yaml", []byte("name: x\nenv: &a {b: *a}\n"))
	f.Add("m.json", []byte("{\"name\": \"x\"}"))
	f.Fuzz(func(t *testing.T, file string, data []byte) {
		_, err := DecodeManifest(file, data)
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("DecodeManifest = %v, not an *Error", err)
		}
	})
}

func FuzzParseObject(f *testing.F) {
	for _, p := range []string{"/bin/ls", "/bin/true"} {
		if b, err := os.ReadFile(p); err == nil {
			f.Add(b[:min(len(b), 16<<10)])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parseObject(bytes.NewReader(data))
		if err != nil || o == nil {
			return
		}
		for _, n := range o.needed {
			if n == "" {
				t.Fatal("an empty name is needed")
			}
		}
	})
}
