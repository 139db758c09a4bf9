package volar

import (
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
)

func TestParseMounts(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("site", 0o755); err != nil {
		t.Fatal(err)
	}
	site := filepath.Join(dir, "site")
	for _, c := range []struct {
		name           string
		volume, tmpfs  string
		want           []api.VolumeMount
		wantTmpfs      []api.Tmpfs
		folders, notes int
	}{
		{name: "none"},
		{name: "named", volume: "data:/var/lib/data", want: []api.VolumeMount{{Name: "data", Target: "/var/lib/data"}}},
		{
			name: "options", volume: "data:/d:ro,nocopy,size=1.5g other:/o:rw,Z",
			want: []api.VolumeMount{{Name: "data", Target: "/d", ReadOnly: true, NoCopy: true, SizeMB: 1536}, {Name: "other", Target: "/o"}},
		},
		{
			name: "folders", volume: site + ":/a data:/b ./site:/c/:ro", folders: 2, notes: 2,
			want: []api.VolumeMount{{Target: "/a", ReadOnly: true}, {Name: "data", Target: "/b"}, {Target: "/c", ReadOnly: true}},
		},
		{name: "anonymous", volume: "/var/lib/data", want: []api.VolumeMount{{Target: "/var/lib/data"}}},
		{
			name: "tmpfs", tmpfs: "/run /tmp:size=64m,mode=0700 /x:rw,nosuid,mode=1777",
			wantTmpfs: []api.Tmpfs{{Target: "/run"}, {Target: "/tmp", SizeMB: 64, Mode: "700"}, {Target: "/x", Mode: "1777"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := parseMounts(strings.Fields(c.volume), strings.Fields(c.tmpfs))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m.volumes, c.want) || !reflect.DeepEqual(m.tmpfs, c.wantTmpfs) || len(m.folders) != c.folders || len(m.notes) != c.notes {
				t.Errorf("parseMounts = %+v, want %+v, %+v, %d folders, %d notes", m, c.want, c.wantTmpfs, c.folders, c.notes)
			}
			for _, f := range m.folders {
				if f.dir != site || m.volumes[f.volume].Name != "" {
					t.Errorf("folder %+v is not %s", f, site)
				}
			}
		})
	}
}

func TestParseMountsRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for spec, want := range map[string]string{
		"data":                       `"data" is not an absolute path in the VM`,
		"data:var":                   "not an absolute path",
		"data:/":                     "the root itself",
		"/:/":                        "the root itself",
		"data:/a/../../etc":          `holds ".."`,
		"data:/a:ro:x":               "too many colons",
		"data:/a:shared":             `option "shared"`,
		"data:/a:size=lots":          `--volume size "lots"`,
		"data:/a:size=8m":            "at least 16 MiB",
		"data:/a:size=999999t":       "more than",
		"Data:/a":                    `volume name "Data" is not valid`,
		"dir/below:/a":               `volume name "dir/below" is not valid`,
		":/a":                        "volume name is missing",
		"./none:/a":                  "there is no folder ./none",
		dir + "/file:/a":             "only whole folders",
		"./sock:/a":                  "is a socket",
		"/dev/null:/a":               "is a device",
		"/:/host":                    "is the host itself",
		"/proc/:/a":                  "is the host itself",
		dir + ":/a:rw":               "read-only copy",
		dir + ":/a:nocopy":           `option "nocopy"`,
		dir + ":/a:size=1g":          `option "size=1g"`,
		"data:/a other:/a/":          "something is mounted on /a already",
		"/var/lib/x data:/var/lib/x": "mounted on /var/lib/x already",
	} {
		if m, err := parseMounts(strings.Fields(spec), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseMounts(%q) = %+v, %v, want an error with %q", spec, m, err, want)
		}
	}
	for spec, want := range map[string]string{
		"tmp":               "not an absolute path",
		"/tmp:size":         `--tmpfs size ""`,
		"/tmp:size=-1m":     "not a number",
		"/tmp:mode=8":       "not an octal number",
		"/tmp:mode=17777":   "not an octal number",
		"/tmp:noexec":       `option "noexec"`,
		"/tmp:uid=1000":     `option "uid=1000"`,
		"/tmp:size=9999999": "more than 1024.0 GiB",
	} {
		if m, err := parseMounts(nil, []string{spec}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseMounts(tmpfs %q) = %+v, %v, want an error with %q", spec, m, err, want)
		}
	}
	if _, err := parseMounts([]string{"data:/a"}, []string{"/a"}); err == nil {
		t.Error("a volume and a tmpfs in one place are taken")
	}
}
