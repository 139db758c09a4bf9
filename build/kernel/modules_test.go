package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/volantvm/volant/guest/wire"
)

// testModule builds the smallest relocatable object with a .modinfo section.
func testModule(info ...string) []byte {
	const headerSize, sectionSize = 64, 64
	le := binary.LittleEndian
	text := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	textAt := uint64(headerSize)
	namesAt := textAt + uint64(len(text))
	sectionsAt := (namesAt + uint64(len(names)) + 7) &^ 7

	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 1) // ET_REL
	b = le.AppendUint16(b, machineX86_64)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, sectionsAt)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{headerSize, 0, 0, sectionSize, 3, 2} {
		b = le.AppendUint16(b, v)
	}
	b = append(append(b, text...), names...)
	b = append(b, make([]byte, sectionsAt-uint64(len(b)))...)
	section := func(name, kind uint32, at, size uint64) {
		b = le.AppendUint32(b, name)
		b = le.AppendUint32(b, kind)
		for _, v := range []uint64{0, 0, at, size} {
			b = le.AppendUint64(b, v)
		}
		b = append(b, make([]byte, 24)...) // link, info, alignment, entry size
	}
	section(0, 0, 0, 0)
	section(1, 1, textAt, uint64(len(text)))                                 // SHT_PROGBITS
	section(uint32(len("\x00.modinfo\x00")), 3, namesAt, uint64(len(names))) // SHT_STRTAB
	return b
}

const vermagic = "vermagic=" + testVersion + " SMP mod_unload "

// testTree is a small module tree: name of the file → its modinfo beside the version.
func testTree(files map[string][]string) fstest.MapFS {
	tree := fstest.MapFS{
		"modules.builtin": {Data: []byte("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-ring.ko\n")},
		"build":           {Mode: fs.ModeSymlink, Data: []byte("/usr/src/linux")},
	}
	for name, info := range files {
		tree[name] = &fstest.MapFile{Data: testModule(append(info, vermagic)...)}
	}
	return tree
}

func names(modules []Module) string {
	var s []string
	for _, m := range modules {
		s = append(s, m.Name)
	}
	return strings.Join(s, " ")
}

func TestSelectModules(t *testing.T) {
	tree := testTree(map[string][]string{
		"kernel/drivers/block/virtio_blk.ko":    {"depends=virtio,virtio_ring"},
		"kernel/drivers/virtio/virtio.ko":       {"depends="},
		"kernel/drivers/net/virtio-net.ko":      {"depends=net-failover,virtio"},
		"kernel/drivers/net/net_failover.ko":    {"depends=failover"},
		"kernel/net/core/failover.ko":           nil,
		"updates/dkms/failover.ko":              {"depends=patched"},
		"updates/dkms/patched.ko":               nil,
		"kernel/fs/erofs/erofs.ko":              {"depends=libcrc32c"},
		"kernel/lib/libcrc32c.ko":               {"softdep=pre: crc32c-fast crc32c-alias post: after"},
		"kernel/arch/x86/crypto/crc32c-fast.ko": {"softdep=pre: libcrc32c"}, // a soft circle
		"kernel/lib/after.ko":                   nil,
	})
	for _, tc := range []struct {
		wanted []Wanted
		want   string
	}{
		{nil, ""},
		{[]Wanted{{Name: "virtio"}}, "virtio"},
		{[]Wanted{{Name: "ext4"}}, ""}, // built in
		{[]Wanted{{Name: "virtio-blk"}, {Name: "virtio"}}, "virtio virtio_blk"}, // virtio_ring is built in
		{[]Wanted{{Name: "absent", Optional: true}, {Name: "virtio"}}, "virtio"},
		{[]Wanted{{Name: "virtio_net"}}, "patched failover net_failover virtio virtio_net"},
		{[]Wanted{{Name: "virtio_blk"}, {Name: "virtio_net"}}, "virtio virtio_blk patched failover net_failover virtio_net"},
		{[]Wanted{{Name: "erofs"}}, "crc32c_fast libcrc32c erofs"},
	} {
		got, err := SelectModules(t.Context(), tree, testVersion, tc.wanted)
		if err != nil || names(got) != tc.want {
			t.Errorf("SelectModules(%v) = %q, %v, want %q", tc.wanted, names(got), err, tc.want)
		}
	}
}

func TestSelectModulesPaths(t *testing.T) {
	tree := testTree(map[string][]string{
		"kernel/virtio-blk.ko": {"depends=virtio"},
		"kernel/virtio.ko":     nil,
	})
	got, err := SelectModules(t.Context(), tree, testVersion, []Wanted{{Name: "virtio_blk"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Module{
		{Name: "virtio", Path: "lib/modules/volant/000-virtio.ko", Data: tree["kernel/virtio.ko"].Data},
		{Name: "virtio_blk", Path: "lib/modules/volant/001-virtio_blk.ko", Data: tree["kernel/virtio-blk.ko"].Data},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("SelectModules = %+v, want %+v", got, want)
	}
	if order := string(ModuleOrder(got)); order != "000-virtio.ko\n001-virtio_blk.ko\n" {
		t.Errorf("ModuleOrder = %q", order)
	}
	if want := strings.TrimPrefix(wire.ModulesDir, "/") + "/order"; ModuleOrderPath != want {
		t.Errorf("ModuleOrderPath = %q, want %q, where the guest looks", ModuleOrderPath, want)
	}
}

func TestSelectModulesUnpacks(t *testing.T) {
	plain := testModule(vermagic)
	for suffix, data := range map[string][]byte{
		".ko":     plain,
		".ko.gz":  pack(t, "gzip", plain),
		".ko.zst": pack(t, "zstd", plain),
		".ko.xz":  runXZ(t, plain, "--check=crc32", "--lzma2=dict=1MiB"), // scripts/Makefile.modinst
	} {
		tree := fstest.MapFS{"kernel/virtio" + suffix: {Data: data}}
		got, err := SelectModules(t.Context(), tree, testVersion, []Wanted{{Name: "virtio"}})
		if err != nil || len(got) != 1 || !bytes.Equal(got[0].Data, plain) {
			t.Errorf("SelectModules of %s = %q, %v, want the unpacked module", suffix, names(got), err)
		}
	}
}

func TestSelectModulesRefuses(t *testing.T) {
	file := func(name string, data []byte) fstest.MapFS { return fstest.MapFS{name: {Data: data}} }
	good := testModule(vermagic)
	for _, tc := range []struct {
		name string
		tree fs.FS
		want error
	}{
		{"empty tree", fstest.MapFS{}, ErrModuleMissing},
		{"absent", file("kernel/other.ko", good), ErrModuleMissing},
		{"dependency absent", file("kernel/m.ko", testModule(vermagic, "depends=gone")), ErrModuleMissing},
		{"depends on itself", testTree(map[string][]string{"m.ko": {"depends=n"}, "n.ko": {"depends=m"}}), ErrModule},
		{"other kernel", file("kernel/m.ko", testModule("vermagic=6.1.0-1 SMP")), ErrModuleVersion},
		{"no vermagic", file("kernel/m.ko", testModule("depends=")), ErrModule},
		{"text", file("kernel/m.ko", []byte("this is text")), ErrModule},
		{"empty", file("kernel/m.ko", nil), ErrModule},
		{"cut short", file("kernel/m.ko", good[:len(good)-30]), ErrModule},
		{"executable", file("kernel/m.ko", testELF(true)), ErrModule},
		{"malformed name", file("kernel/m .ko", good), ErrModule},
		{"damaged zstd", file("kernel/m.ko.zst", pack(t, "zstd", good)[:40]), nil},
		{"unpacks to too much", file("kernel/m.ko.gz", pack(t, "gzip", make([]byte, maxModuleBytes+1))), ErrTooLarge},
	} {
		got, err := SelectModules(t.Context(), tc.tree, testVersion, []Wanted{{Name: "m"}})
		if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
			t.Errorf("%s: SelectModules = %q, %v, want %v", tc.name, names(got), err, tc.want)
		}
	}
}

func TestSelectModulesCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tree := testTree(map[string][]string{"kernel/m.ko": nil})
	if _, err := SelectModules(ctx, tree, testVersion, []Wanted{{Name: "m"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("SelectModules = %v, want %v", err, context.Canceled)
	}
}

// The set must not depend on the order in which a file system lists its files.
func TestSelectModulesDeterministic(t *testing.T) {
	files := map[string][]string{}
	var wanted []Wanted
	for i := range 30 {
		files[fmt.Sprintf("kernel/m%d.ko", i)] = []string{fmt.Sprintf("depends=m%d", (i+7)%31), "softdep=pre: m30"}
		wanted = append(wanted, Wanted{Name: fmt.Sprintf("m%d", i)})
	}
	files["kernel/m30.ko"] = nil
	first, err := SelectModules(t.Context(), testTree(files), testVersion, wanted)
	if err != nil || len(first) != 31 {
		t.Fatalf("SelectModules = %d modules, %v, want 31", len(first), err)
	}
	for range 5 {
		again, err := SelectModules(t.Context(), testTree(files), testVersion, wanted)
		if err != nil || !reflect.DeepEqual(again, first) {
			t.Fatalf("SelectModules = %q, %v, then %q", names(first), err, names(again))
		}
	}
}

func TestGuestModules(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range RootfsModules() {
		if !validModuleName(moduleName(w.Name)) || seen[w.Name] {
			t.Errorf("RootfsModules: %q is malformed or twice", w.Name)
		}
		seen[w.Name] = true
	}
	for _, w := range ApplianceModules() {
		if !seen[w.Name] {
			t.Errorf("RootfsModules lacks %q of ApplianceModules", w.Name)
		}
	}
}
