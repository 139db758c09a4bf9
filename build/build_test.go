package build_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

const manifest = `
[manifest]
name = "app"
version = "1"
[manifest.resources]
cpu_cores = 1
memory_mb = 128
[manifest.workload]
type = "exec"
entrypoint = ["/usr/bin/app"]
`

const recipe = `version = "1"
strategy = "initramfs"
[mappings]
"./app" = "/usr/bin/app"
`

// write makes files below dir; names that end in / are directories, contents
// that begin with "-> " symbolic links.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(target, p)
		default:
			err = os.WriteFile(p, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// try builds the recipe of dir.
func try(t *testing.T, dir string, o build.Options) (*build.Result, error) {
	t.Helper()
	o.Recipe = filepath.Join(dir, "fledge.toml")
	if o.Output == "" {
		o.Output = filepath.Join(t.TempDir(), "out")
	}
	return build.Build(t.Context(), o)
}

func mustBuild(t *testing.T, dir string, o build.Options) *build.Result {
	t.Helper()
	r, err := try(t, dir, o)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return r
}

// list reads an artifact: name to "mode link content".
func list(t *testing.T, artifact string) map[string]string {
	t.Helper()
	f, err := os.Open(artifact)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := make(map[string]string)
	r := initramfs.NewReader(f, initramfs.Limits{})
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.UID != 0 || h.GID != 0 || h.MTime != 0 {
			t.Errorf("%s: owner %d:%d, time %d; want all zero", h.Name, h.UID, h.GID, h.MTime)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		content := fmt.Sprintf("%d bytes", len(b))
		if len(b) < 100 {
			content = string(b)
		}
		out[h.Name] = strings.TrimRight(fmt.Sprintf("%v %s%s", h.Mode, h.Linkname, content), " ")
	}
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"fledge.toml": recipe + `
"site" = "/srv/www/"
"data.txt" = "/opt/bin/data"
"lib.txt" = "/usr/lib/libx.so.1"
"current" = "/opt/current"
` + manifest,
		"app": "static", "site/index.html": "<p>", "site/css/a.css": "a{}", "site/run.sh": "echo",
		"site/link": "-> css/a.css", "site/dangling": "-> /nowhere", "site/empty/": "",
		"data.txt": "d", "lib.txt": "l", "v1/x": "1", "current": "-> v1",
	})
	for _, plain := range []string{"site/index.html", "site/css/a.css", "data.txt", "lib.txt", "v1/x"} {
		if err := os.Chmod(filepath.Join(dir, plain), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var steps []string
	r := mustBuild(t, dir, build.Options{Progress: func(s build.Step) {
		if s.Done && s.Detail != "" {
			steps = append(steps, s.Name)
		}
	}})
	got := list(t, r.Artifact)
	for name, want := range map[string]string{
		"usr/bin/app":        "-rwxr-xr-x static",
		"srv/www":            "drwxr-xr-x",
		"srv/www/index.html": "-rw-r--r-- <p>",
		"srv/www/css/a.css":  "-rw-r--r-- a{}",
		"srv/www/run.sh":     "-rwxr-xr-x echo",
		"srv/www/link":       "Lrwxrwxrwx css/a.css",
		"srv/www/dangling":   "Lrwxrwxrwx /nowhere",
		"srv/www/empty":      "drwxr-xr-x",
		"opt/bin/data":       "-rwxr-xr-x d",
		"usr/lib/libx.so.1":  "-rwxr-xr-x l",
		"opt/current/x":      "-rw-r--r-- 1",
		"tmp":                "dtrwxrwxrwx",
		"root":               "drwx------",
		"dev/console":        "Dcrw-------",
		"etc/hosts":          "-rw-r--r-- 127.0.0.1 localhost\n::1 localhost\n",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["init"]; ok {
		t.Error("the archive has an /init; the agent is volantd's to supply")
	}
	if i := r.Manifest.Initramfs; i.Agent != api.AgentHost || i.URL != filepath.Base(r.Artifact) || i.Checksum != r.Digest {
		t.Errorf("manifest's initramfs = %+v", i)
	}
	if want := []string{"recipe", "mappings", "libraries", "archive", "manifest"}; !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	v, err := build.Verify(r.ManifestPath)
	if err != nil || v.Digest != r.Digest || v.Size != r.Size || v.Entries != r.Entries {
		t.Errorf("Verify = %+v, %v; want as %+v", v, err, r)
	}
	data, err := os.ReadFile(r.ManifestPath)
	if err != nil {
		t.Fatal(err)
	}
	var m api.Manifest
	if err := api.DecodeStrict(data, &m); err != nil || m.Validate() != nil {
		t.Errorf("the manifest is not installable: %v, %v", err, m.Validate())
	}
	entries, err := os.ReadDir(filepath.Dir(r.Artifact))
	if err != nil || len(entries) != 2 {
		t.Errorf("output directory holds %v, %v; want two files", entries, err)
	}
}

// TestReproducible builds the same tree twice from folders with other names,
// times, modes as another umask would leave them, and order of creation.
func TestReproducible(t *testing.T) {
	need.File(t, "/bin/ls")
	files := map[string]string{
		"fledge.toml": recipe + "\"tree\" = \"/srv\"\n\"/bin/ls\" = \"/bin/ls\"\n[output]\ncompression = \"COMPRESSION\"\n" + manifest,
		"app":         "static", "tree/b": "b", "tree/a/c": "c", "tree/l": "-> b", "tree/z/": "",
	}
	for _, c := range []string{"none", "gzip", "zstd", "lz4"} {
		t.Run(c, func(t *testing.T) {
			var archives, manifests [2][]byte
			for i, umask := range []int{0o022, 0o077} {
				dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", i), "x")
				old := syscall.Umask(umask)
				write(t, dir, map[string]string{"fledge.toml": strings.ReplaceAll(files["fledge.toml"], "COMPRESSION", c)})
				for name, content := range files {
					if name != "fledge.toml" {
						write(t, dir, map[string]string{name: content})
					}
				}
				out := filepath.Join(t.TempDir(), "out")
				when := time.Unix(int64(1e9*(i+1)), 0)
				if err := os.Chtimes(filepath.Join(dir, "tree/b"), when, when); err != nil {
					t.Fatal(err)
				}
				r, err := try(t, dir, build.Options{Output: out})
				syscall.Umask(old)
				if err != nil {
					t.Fatal(err)
				}
				if archives[i], err = os.ReadFile(r.Artifact); err != nil {
					t.Fatal(err)
				}
				if manifests[i], err = os.ReadFile(r.ManifestPath); err != nil {
					t.Fatal(err)
				}
				fi, err := os.Stat(r.Artifact)
				if err != nil || fi.Mode() != 0o644 {
					t.Errorf("artifact's mode is %v, %v, want 0644 under any umask", fi.Mode(), err)
				}
			}
			if !bytes.Equal(archives[0], archives[1]) {
				t.Error("the archives differ")
			}
			if !bytes.Equal(manifests[0], manifests[1]) {
				t.Errorf("the manifests differ:\n%s\n%s", manifests[0], manifests[1])
			}
		})
	}
}

func TestInitModes(t *testing.T) {
	app := "agent binary"
	sum := sha256.Sum256([]byte(app))
	digest := hex.EncodeToString(sum[:])
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/volant" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, app)
	}))
	defer srv.Close()
	const other = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for _, tt := range []struct {
		name, section string
		agent, init   string // init: content of /init, empty for none
		err           string
	}{
		{"default", "", api.AgentHost, "", ""},
		{"release", "[agent]\nsource_strategy = \"release\"\nversion = \"latest\"\n", api.AgentHost, "", ""},
		{"local", "[agent]\nsource_strategy = \"local\"\npath = \"./volant\"\n", api.AgentImage, app, ""},
		{"local pinned", "[agent]\nsource_strategy = \"local\"\npath = \"./volant\"\nchecksum = \"sha256:" + digest + "\"\n", api.AgentImage, app, ""},
		{"local other digest", "[agent]\nsource_strategy = \"local\"\npath = \"./volant\"\nchecksum = \"" + other + "\"\n", "", "", "fledge.toml:7: agent.path: "},
		{"http", "[agent]\nsource_strategy = \"http\"\nurl = \"" + srv.URL + "/volant\"\nchecksum = \"sha256:" + digest + "\"\n", api.AgentImage, app, ""},
		{"http other digest", "[agent]\nsource_strategy = \"http\"\nurl = \"" + srv.URL + "/volant\"\nchecksum = \"" + other + "\"\n", "", "", "fledge.toml:7: agent.url: get " + srv.URL + "/volant: its digest is sha256:" + digest},
		{"http missing", "[agent]\nsource_strategy = \"http\"\nurl = \"" + srv.URL + "/x\"\nchecksum = \"" + other + "\"\n", "", "", "404 Not Found"},
		{"custom", "[init]\npath = \"./my-init\"\n", api.AgentNone, "mine", ""},
		{"custom missing", "[init]\npath = \"./gone\"\n", "", "", "fledge.toml:6: init.path: stat "},
		{"none without a mapping", "[init]\nnone = true\n", "", "", "fledge.toml:5: init: no mapping gives an executable /init"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"fledge.toml": recipe + tt.section + manifest, "app": "x", "volant": app, "my-init": "mine"})
			r, err := try(t, dir, build.Options{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("Build = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			if tt.init != "" {
				want = "-rwxr-xr-x " + tt.init
			}
			if got := list(t, r.Artifact)["init"]; got != want || r.Manifest.Initramfs.Agent != tt.agent {
				t.Errorf("/init is %q, agent %q; want %q, %q", got, r.Manifest.Initramfs.Agent, want, tt.agent)
			}
			if _, err := build.Verify(r.ManifestPath); err != nil {
				t.Errorf("Verify: %v", err)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string]string{
			"fledge.toml": "version = \"1\"\n[init]\nnone = true\n[mappings]\n\"x\" = \"/init\"\n[manifest]\nname = \"bare\"\nversion = \"1\"\n",
			"x":           "mine",
		})
		r := mustBuild(t, dir, build.Options{})
		if got := list(t, r.Artifact)["init"]; got != "-rwxr-xr-x mine" || r.Manifest.Initramfs.Agent != api.AgentNone {
			t.Errorf("/init is %q, agent %q", got, r.Manifest.Initramfs.Agent)
		}
	})
}

func TestBusybox(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"app":         "x",
		"fledge.toml": recipe + "\"app2\" = \"/bin/ls\"\n[source]\nbusybox = \"bb\"\n" + manifest, "app2": "my ls", "bb": "busybox",
	})
	got := list(t, mustBuild(t, dir, build.Options{}).Artifact)
	for name, want := range map[string]string{"bin/busybox": "-rwxr-xr-x busybox", "bin/sh": "Lrwxrwxrwx busybox", "bin/ls": "-rwxr-xr-x my ls"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestManifestFiles(t *testing.T) {
	forms := map[string]string{
		"manifest.toml": strings.ReplaceAll(manifest, "manifest.", ""),
		"manifest.yaml": "name: app\nversion: \"1\"\nresources: {cpu_cores: 1, memory_mb: 128}\nworkload:\n  type: exec\n  entrypoint: [/usr/bin/app]\n",
		"manifest.json": `{"$schema": "x", "name": "app", "version": "1", "resources": {"cpu_cores": 1, "memory_mb": 128}, "workload": {"type": "exec", "entrypoint": ["/usr/bin/app"]}}`,
	}
	forms["manifest.toml"] = strings.Replace(forms["manifest.toml"], "[manifest]\n", "", 1)
	for name, text := range forms {
		for _, given := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s given %v", name, given), func(t *testing.T) {
				dir, o := t.TempDir(), build.Options{}
				at := name
				if given {
					at = "elsewhere/" + name
					o.Manifest = filepath.Join(dir, at)
				}
				write(t, dir, map[string]string{"fledge.toml": recipe, "app": "x", at: text})
				r := mustBuild(t, dir, o)
				if r.Manifest.Name != "app" || r.Manifest.Resources.MemoryMB != 128 || r.Manifest.Runtime != "app" {
					t.Errorf("manifest %+v", r.Manifest)
				}
			})
		}
	}
	for name, tt := range map[string]struct{ file, text, want string }{
		"toml unknown field": {"m.toml", "name = \"app\"\n[workload]\nentrypont = []\n", "m.toml:3: workload.entrypont: is not a known field; did you mean entrypoint?"},
		"yaml unknown field": {"m.yaml", "name: app\nworkload:\n  entrypont: []\n", "m.yaml:3: workload.entrypont: is not a known field"},
		"json unknown field": {"m.json", "{\"name\": \"app\",\n\"workload\": {\n\"entrypont\": []}}", "m.json:3: workload.entrypont: is not a known field"},
		"toml wrong type":    {"m.toml", "name = \"app\"\n[workload]\nentrypoint = \"/bin/app\"\n", "m.toml:3: workload.entrypoint: is a string; it must be a list"},
		"yaml wrong type":    {"m.yaml", "name: app\nversion: 1.0\n", "m.yaml:2: version: is a number; it must be a string"},
		"list element":       {"m.yaml", "disks:\n- name: a\n- sauce: b\n", "m.yaml:3: disks[1].sauce: is not a known field"},
		"array of tables":    {"m.toml", "[[disks]]\nname = \"a\"\n[[disks]]\nsauce = \"b\"\n", "m.toml:4: disks[1].sauce: is not a known field"},
		"invalid":            {"m.toml", "name = \"../x\"\nversion = \"1\"\n", "m.toml:1: name: plugin name"},
		"artifact given":     {"m.toml", "name = \"app\"\n[initramfs]\nurl = \"x\"\n", "m.toml:2: initramfs: is written by the build"},
		"toml syntax":        {"m.toml", "name = \n", "m.toml:1: "},
		"yaml syntax":        {"m.yaml", "name: app\n\tx: y\n", "m.yaml:2: "},
		"json syntax":        {"m.json", "{\"name\": ,}", "m.json: line 1, column 10"},
		"two documents":      {"m.yaml", "name: app\n---\nname: b\n", "m.yaml: more than one"},
		"empty yaml":         {"m.yaml", "", "m.yaml: "},
		"extension":          {"m.txt", "", `extension ".txt"`},
		"yaml keys":          {"m.yaml", "1: a\n", "m.yaml: "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"fledge.toml": recipe, "app": "x", tt.file: tt.text})
			_, err := try(t, dir, build.Options{Manifest: filepath.Join(dir, tt.file)})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBadRecipes(t *testing.T) {
	const pinned = "checksum = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"\n"
	for name, tt := range map[string]struct{ recipe, want string }{
		"empty":                   {"", `fledge.toml: version: is missing`},
		"version":                 {"version = \"2\"", `fledge.toml:1: version: "2" is not known`},
		"version number":          {"version = 1", "fledge.toml:1: version: is a number; it must be a string"},
		"syntax":                  {"version = \"1\"\nstrategy = ", "fledge.toml:2: "},
		"unknown key":             {"version = \"1\"\nstratgy = \"initramfs\"", "fledge.toml:2: stratgy: is not a known field; did you mean strategy?"},
		"unknown nested key":      {"version = \"1\"\n[agent]\nsource_stategy = \"local\"", "fledge.toml:3: agent.source_stategy: is not a known field; did you mean source_strategy?"},
		"unknown in manifest":     {recipe + "[manifest.workload]\ntype = \"exec\"\nentrypont = []", "fledge.toml:7: manifest.workload.entrypont: is not a known field; did you mean entrypoint?"},
		"invalid manifest":        {recipe + "[manifest]\nname = \"A\"\nversion = \"1\"", "fledge.toml:6: manifest.name: plugin name \"A\""},
		"no manifest":             {recipe, "manifest: is missing: add a [manifest]"},
		"strategy":                {"version = \"1\"\nstrategy = \"zip\"", `fledge.toml:2: strategy: "zip" is not known`},
		"oci without an image":    {"version = \"1\"\nstrategy = \"oci_rootfs\"\n[source]\nbusybox = \"b\"", "fledge.toml:3: source: is missing: strategy oci_rootfs makes a disk of an image"},
		"oci with init":           {"version = \"1\"\n[source]\nimage = \"nginx\"\n[init]\nnone = true", "fledge.toml:4: init: has no meaning with strategy oci_rootfs"},
		"image reference":         {"version = \"1\"\n[source]\nimage = \"Nginx\"", "fledge.toml:3: source.image: image reference \"Nginx\": names are lower case, write nginx"},
		"image path":              {"version = \"1\"\n[source]\nimage = \"./image.tar\"", "source.image: \"./image.tar\" is a path: write oci:FOLDER, oci-archive:FILE or docker-archive:FILE"},
		"image layout slashes":    {"version = \"1\"\n[source]\nimage = \"oci://image\"", "write oci:PATH without slashes"},
		"image without path":      {"version = \"1\"\n[source]\nimage = \"oci-archive:\"", "source.image: \"oci-archive:\" names no path"},
		"image without name":      {"version = \"1\"\n[source]\nimage = \"docker-daemon:\"", "source.image: \"docker-daemon:\" names no image"},
		"build argument":          {"version = \"1\"\n[source]\ndockerfile = \"D\"\nbuild_args = { \"A=B\" = \"c\" }", "fledge.toml:4: source.build_args: \"A=B\" is not the name of a build argument"},
		"image gone":              {"version = \"1\"\n[source]\nimage = \"oci:gone\"", "fledge.toml:3: source.image: "},
		"Dockerfile gone":         {"version = \"1\"\n[source]\ndockerfile = \"gone\"", "no such file"},
		"xfs":                     {"version = \"1\"\n[filesystem]\ntype = \"xfs\"", "fledge.toml:3: filesystem.type: \"xfs\" cannot be made without mounting it"},
		"overlay too small":       {"version = \"1\"\n[filesystem]\noverlay_size = \"1M\"", "fledge.toml:3: filesystem.overlay_size: is 1 MiB; give 16 to "},
		"two sources":             {"version = \"1\"\n[source]\nimage = \"a\"\ndockerfile = \"b\"", "source.dockerfile: stands beside image"},
		"context alone":           {"version = \"1\"\n[source]\ncontext = \".\"", "need dockerfile"},
		"busybox url unpinned":    {"version = \"1\"\n[source]\nbusybox_url = \"https://example.invalid/b\"", "fledge.toml:3: source.busybox_url: needs busybox_sha256"},
		"busybox digest":          {"version = \"1\"\n[source]\nbusybox = \"b\"\nbusybox_sha256 = \"1\"", "fledge.toml:4: source.busybox_sha256: "},
		"agent strategy":          {"version = \"1\"\n[agent]\nsource_strategy = \"git\"", `"git" is not known`},
		"agent local no path":     {"version = \"1\"\n[agent]\nsource_strategy = \"local\"", "agent.path: is missing"},
		"agent http unpinned":     {"version = \"1\"\n[agent]\nsource_strategy = \"http\"\nurl = \"http://example.invalid/\"", "agent.checksum: is missing"},
		"agent http scheme":       {"version = \"1\"\n[agent]\nsource_strategy = \"http\"\nurl = \"file:///x\"\n" + pinned, "is not an http or https URL"},
		"agent release with path": {"version = \"1\"\n[agent]\nsource_strategy = \"release\"\npath = \"x\"", "agent.path: has no meaning"},
		"agent and init":          {"version = \"1\"\n[agent]\n[init]\nnone = true", "agent: stands beside [init]"},
		"init both":               {"version = \"1\"\n[init]\nnone = true\npath = \"x\"", "init.none: stands beside path"},
		"init neither":            {"version = \"1\"\n[init]\nnone = false", "init: is empty"},
		"filesystem type":         {"version = \"1\"\n[filesystem]\ntype = \"ntfs\"", `filesystem.type: "ntfs" is not known`},
		"filesystem level":        {"version = \"1\"\n[filesystem]\ncompression_level = 23", "compression_level: is 23"},
		"filesystem overlay":      {"version = \"1\"\n[filesystem]\noverlay_size = \"1GB\"", "is not a size"},
		"compression":             {recipe + "[output]\ncompression = \"xz\"\n" + manifest, "fledge.toml:6: output.compression: unknown compression \"xz\""},
		"relative guest path":     {"version = \"1\"\n[mappings]\n\"a\" = \"b\"", `fledge.toml:3: mappings.a: guest path "b" is not absolute`},
		"climbing guest path":     {"version = \"1\"\n[mappings]\n\"a\" = \"/x/../../b\"", `holds ".."`},
		"mapping type":            {"version = \"1\"\n[mappings]\n\"./a\" = 3", "fledge.toml:3: mappings../a: is not a string"},
		"mapping to init":         {"version = \"1\"\n[mappings]\n\"a\" = \"/init\"", "/init is not for a mapping"},
		"two to one":              {"version = \"1\"\n[mappings]\n\"a\" = \"/x\"\n\"b\" = \"/x/\"", "fledge.toml:4: mappings.b: /x is mapped from a too"},
		"no such file":            {"version = \"1\"\n[mappings]\n\"./gone\" = \"/x\"\n" + manifest, "fledge.toml:3: mappings../gone: no such file or directory: "},
		"file into directory":     {"version = \"1\"\n[mappings]\n\"app\" = \"/usr/bin/\"\n" + manifest, "ends in / but app is a file"},
		"file as directory":       {recipe + "\"dir\" = \"/usr/bin/app/x\"\n" + manifest, "/usr/bin/app cannot hold /usr/bin/app/x"},
		"in the way":              {recipe + "\"dir\" = \"/usr/bin\"\n" + manifest, `/usr/bin/app is already there, from mapping "dir"`},
		"init in a directory":     {recipe + "\"withinit\" = \"/\"\n" + manifest, "would be /init"},
		"fifo":                    {recipe + "\"fifo\" = \"/x\"\n" + manifest, "is a fifo: only files"},
		"entrypoint not there":    {"version = \"1\"\n[mappings]\n\"app\" = \"/bin/other\"\n" + manifest, "fledge.toml:13: manifest.workload.entrypoint: /usr/bin/app is not in the image"},
		"entrypoint by name":      {"version = \"1\"\n[mappings]\n\"app\" = \"/bin/other\"\n" + strings.ReplaceAll(manifest, "/usr/bin/app", "app"), `"app" is not in the image`},
		"entrypoint script":       {"version = \"1\"\n[mappings]\n\"script\" = \"/usr/bin/app\"\n" + manifest, "/usr/bin/app (mapping \"script\") is a script of /bin/sh, which is not in the image"},
		"output in a mapping":     {recipe + "\"out\" = \"/srv\"\n" + manifest, "holds the build's output"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{
				"fledge.toml": tt.recipe, "app": "x", "dir/app": "y", "withinit/init": "z", "script": "#!/bin/sh\n", "out/": "",
			})
			if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := try(t, dir, build.Options{Output: filepath.Join(dir, "out", "image")})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v, want %q", err, tt.want)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "out")); err != nil || len(left) > 0 {
				t.Errorf("a failed build left %v, %v", left, err)
			}
		})
	}
	t.Run("not there", func(t *testing.T) {
		if _, err := try(t, t.TempDir(), build.Options{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Build = %v, want ErrNotExist", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"fledge.toml": recipe + manifest, "app": "x"})
		ctx, cancel := context.WithCancel(t.Context())
		_, err := build.Build(ctx, build.Options{
			Recipe: filepath.Join(dir, "fledge.toml"), Output: filepath.Join(dir, "o"),
			Progress: func(s build.Step) {
				if s.Name == "archive" && s.Done {
					cancel()
				}
			},
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Build = %v, want Canceled", err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 2 { // app, fledge.toml
			t.Errorf("left %v, %v", left, err)
		}
	})
	t.Run("no output directory", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"fledge.toml": recipe + manifest, "app": "x"})
		if _, err := try(t, dir, build.Options{Output: filepath.Join(dir, "a/b")}); err == nil || !strings.Contains(err.Error(), "its directory does not exist") {
			t.Errorf("Build = %v", err)
		}
	})
}

func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"fledge.toml": "version = \"1\"\n[agent]\nversion = \"v9\"\n[filesystem]\ntype = \"ext4\"\n[mappings]\n\"app\" = \"/usr/bin/app\"\n\"s\" = \"/bin/s\"\n" + manifest,
		"app":         "x", "s": "#!/usr/bin/env python3\n",
	})
	got := strings.Join(mustBuild(t, dir, build.Options{}).Warnings, "\n")
	for _, want := range []string{`agent.version "v9" has no effect`, "[filesystem] has no effect", "/bin/s (mapping \"s\") is a script of /usr/bin/env"} {
		if !strings.Contains(got, want) {
			t.Errorf("warnings lack %q:\n%s", want, got)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"fledge.toml": recipe + manifest, "app": "x"})
	for name, tt := range map[string]struct {
		change func(t *testing.T, r *build.Result)
		want   string
	}{
		"changed artifact": {func(t *testing.T, r *build.Result) {
			b, err := os.ReadFile(r.Artifact)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(r.Artifact, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "initramfs.checksum: "},
		"no artifact":  {func(t *testing.T, r *build.Result) { os.Remove(r.Artifact) }, "initramfs.url: "},
		"climbing url": {replace(`"url": "out.cpio"`, `"url": "../out.cpio"`), "is not a file beside the manifest"},
		"remote url":   {replace(`"url": "out.cpio"`, `"url": "https://example.invalid/x"`), "is not a file beside the manifest"},
		"agent":        {replace(`"agent": "host"`, `"agent": "image"`), "has no /init"},
		"field":        {replace(`"name"`, `"nam"`), "nam: is not a known field; did you mean name?"},
		"no checksum":  {dropChecksum, "there is nothing to verify against"},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustBuild(t, dir, build.Options{})
			tt.change(t, r)
			if _, err := build.Verify(r.ManifestPath); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify = %v, want %q", err, tt.want)
			}
		})
	}
}

func dropChecksum(t *testing.T, r *build.Result) {
	t.Helper()
	replace(fmt.Sprintf("\"checksum\": %q,\n", r.Digest), "")(t, r)
}

// replace edits the manifest a build wrote.
func replace(old, with string) func(*testing.T, *build.Result) {
	return func(t *testing.T, r *build.Result) {
		t.Helper()
		b, err := os.ReadFile(r.ManifestPath)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte(old)) {
			t.Fatalf("%s is not in the manifest:\n%s", old, b)
		}
		if err := os.WriteFile(r.ManifestPath, bytes.Replace(b, []byte(old), []byte(with), 1), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
