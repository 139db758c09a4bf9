package build

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

func FuzzParseRecipe(f *testing.F) {
	f.Add([]byte("version = \"1\"\n[mappings]\n\"./a\" = \"/b\"\n[manifest]\nname = \"x\"\n[manifest.workload]\nenv = { A = \"b\" }\n[[manifest.disks]]\nname = \"d\"\n"))
	f.Add([]byte("version = \"1\"\n[agent]\nsource_strategy = \"http\"\n"))
	f.Add([]byte("a.b.c = [1, {x = 2}, [3.5, inf, 1979-05-27]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecipe("fledge.toml", data, nil)
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

// tinyELF is the least a dynamic linker would take: one segment that holds the
// interpreter's name, the dynamic section and its strings.
func tinyELF(tags ...uint64) []byte {
	le := binary.LittleEndian
	const phdrs, base = 64, 0x10000
	strs := []byte("\x00/lib/ld.so\x00liba.so\x00/opt/a:$ORIGIN/../lib\x00")
	interpAt := uint64(phdrs + 3*56)
	dynAt := interpAt + uint64(len(strs))
	dyn := append([]uint64{5, base + interpAt, 10, uint64(len(strs))}, tags...) // DT_STRTAB, DT_STRSZ
	dyn = append(dyn, 0, 0)
	size := dynAt + uint64(8*len(dyn))

	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 3)  // ET_DYN
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, phdrs)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 3, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	for _, p := range [][3]uint64{{1, 0, size}, {3, interpAt + 1, 11}, {2, dynAt, size - dynAt}} { // PT_LOAD, PT_INTERP, PT_DYNAMIC
		b = le.AppendUint32(b, uint32(p[0]))
		b = le.AppendUint32(b, 4)
		for _, v := range []uint64{p[1], base + p[1], base + p[1], p[2], p[2], 1} {
			b = le.AppendUint64(b, v)
		}
	}
	b = append(b, strs...)
	for _, v := range dyn {
		b = le.AppendUint64(b, v)
	}
	return b
}

func TestParseObject(t *testing.T) {
	const needed, rpath, runpath = 1, 15, 29
	o, err := parseObject(bytes.NewReader(tinyELF(needed, 12, rpath, 20, runpath, 20)))
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{"/opt/a", "$ORIGIN/../lib"}
	if o.interp != "/lib/ld.so" || !slices.Equal(o.needed, []string{"liba.so"}) || !slices.Equal(o.rpath, dirs) || !slices.Equal(o.runpath, dirs) {
		t.Errorf("parseObject = %+v", o)
	}
	for name, tags := range map[string][]uint64{
		"string beyond the table": {needed, 1 << 40},
		"empty name":              {needed, 0},
		"strings nowhere":         {needed, 12, 5, 1 << 50},
	} {
		if o, err := parseObject(bytes.NewReader(tinyELF(tags...))); err == nil {
			t.Errorf("%s: parseObject = %+v, want an error", name, o)
		}
	}
	huge := tinyELF(needed, 12)
	binary.LittleEndian.PutUint64(huge[64+2*56+32:], 1<<40) // p_filesz of PT_DYNAMIC
	if o, err := parseObject(bytes.NewReader(huge)); err == nil {
		t.Errorf("huge dynamic section: parseObject = %+v, want an error", o)
	}
}

func FuzzParseObject(f *testing.F) {
	f.Add(tinyELF(1, 12, 15, 20))
	f.Add(tinyELF(1, 12, 29, 20))
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
