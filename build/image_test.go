package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/dockerfile"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// web is an image of two layers: its program was replaced by the second, a
// directory belongs to another user, /bin is a link.
func web(t *testing.T) ocitest.Image {
	t.Helper()
	owned := ocitest.Dir("srv/www", 0o750)
	owned.Uid, owned.Gid = 33, 33
	img, err := ocitest.FromFiles("docker.io/library/web:1.2",
		[]ocitest.File{
			ocitest.Dir("usr", 0o755), ocitest.Dir("usr/bin", 0o755), ocitest.Symlink("bin", "usr/bin"),
			ocitest.Regular("usr/bin/web", 0o755, "first"), ocitest.Regular("etc/old", 0o644, "old"),
			ocitest.Dir("tmp", 0o1777), owned,
		},
		[]ocitest.File{ocitest.Regular("usr/bin/web", 0o4755, "second"), ocitest.Whiteout("etc/old"), ocitest.Regular("srv/www/index.html", 0o644, "<p>")},
	)
	if err != nil {
		t.Fatal(err)
	}
	img.Config = api.ImageConfig{
		Entrypoint: []string{"web"}, Cmd: []string{"-g", "daemon off;"}, Env: []string{"PATH=/bin", "MODE=image", "LANG=C"},
		WorkingDir: "/srv/www", User: "33:33", StopSignal: "SIGQUIT", Volumes: []string{"/data"}, ExposedPorts: []string{"80/tcp", "53/udp"},
		Healthcheck: &api.ImageHealthcheck{Test: []string{"CMD", "/bin/web", "check"}, Interval: 5 * time.Second},
		Labels:      map[string]string{"org.opencontainers.image.version": "1.2.3", "team": "a"},
	}
	return img
}

// layout writes images as an OCI layout folder and returns it.
func layout(t *testing.T, images ...ocitest.Image) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := ocitest.WriteLayout(dir, images...); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fromImage is a recipe of an image.
func fromImage(source, more string) string {
	return fmt.Sprintf("version = \"1\"\n%s\n[source]\nimage = %q\n", more, source)
}

// extract unpacks an erofs disk with the tool of its authors.
func extract(t *testing.T, disk string) string {
	t.Helper()
	need.Tool(t, "fsck.erofs")
	need.Root(t, "to give files to other owners")
	dir := filepath.Join(t.TempDir(), "root")
	if out, err := exec.CommandContext(t.Context(), "fsck.erofs", "--extract="+dir, "--preserve", disk).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
	return dir
}

// describe returns mode, owner and content or target of a file.
func describe(t *testing.T, name string) string {
	t.Helper()
	fi, err := os.Lstat(name)
	if err != nil {
		return err.Error()
	}
	st := fi.Sys().(*syscall.Stat_t)
	content := ""
	switch {
	case fi.Mode()&os.ModeSymlink != 0:
		content, err = os.Readlink(name)
	case fi.Mode().IsRegular():
		var b []byte
		b, err = os.ReadFile(name)
		content = string(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(fmt.Sprintf("%v %d:%d %s", fi.Mode(), st.Uid, st.Gid, content))
}

func TestImageDisk(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"fledge.toml": fromImage("oci:"+layout(t, web(t))+":web:1.2", "") + `
[filesystem]
overlay_size = "1G"
[mappings]
"site" = "/srv/www"
"tool" = "/bin/tool"
"extra" = "/opt/extra"
[agent]
`,
		"site/index.html": "mapped", "site/css/a.css": "a{}", "tool": "#!/bin/sh\n", "extra/x/y": "1",
	})
	var steps []string
	r := mustBuild(t, dir, build.Options{Output: filepath.Join(t.TempDir(), "web.img"), TempDir: t.TempDir(), Progress: func(s build.Step) {
		if s.Done {
			steps = append(steps, s.Name)
		}
	}})
	if want := []string{"recipe", "image", "flatten", "mappings", "disk", "manifest"}; !reflect.DeepEqual(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	if len(r.Warnings) > 0 {
		t.Errorf("warnings %q", r.Warnings)
	}
	m := r.Manifest
	want := &api.Manifest{
		SchemaVersion: "1", Name: "web", Version: "1.2.3", Runtime: "web", Image: "docker.io/library/web:1.2", ImageDigest: m.ImageDigest,
		Rootfs: &api.Rootfs{URL: "web.img", Checksum: r.Digest, Format: "raw"}, Root: &api.Root{SizeMB: 1024},
		Ports:     []api.Port{{Port: 53, Protocol: "udp"}, {Port: 80, Protocol: "tcp"}},
		Resources: api.Resources{CPUCores: 1, MemoryMB: 256},
		Workload: &api.Workload{
			Type: "exec", Entrypoint: []string{"web", "-g", "daemon off;"}, Workdir: "/srv/www", User: "33:33", StopSignal: "SIGQUIT",
			Env: map[string]string{"PATH": "/bin", "MODE": "image", "LANG": "C"},
		},
		HealthCheck: &api.HealthCheck{Exec: []string{"/bin/web", "check"}, IntervalMS: 5000, TimeoutMS: 30000, Retries: 3},
		Labels:      map[string]string{"org.opencontainers.image.version": "1.2.3", "team": "a"},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("manifest %+v\nwant %+v", m, want)
	}
	if _, err := api.ParseDigest(m.ImageDigest); err != nil {
		t.Error(err)
	}
	v, err := build.Verify(r.ManifestPath)
	if err != nil || v.Filesystem == nil || v.Filesystem.Type != "erofs" || v.Digest != r.Digest || v.Size != r.Size {
		t.Errorf("Verify = %+v, %v", v, err)
	}
	root := extract(t, r.Artifact)
	for name, want := range map[string]string{
		"usr/bin/web":        "-rwxr-xr-x 0:0 second", // extracting drops setuid
		"bin":                "Lrwxrwxrwx 0:0 usr/bin",
		"usr/bin/tool":       "-rwxr-xr-x 0:0 #!/bin/sh",
		"srv/www":            "drwxr-x--- 33:33", // the image's, not the mapping's
		"srv/www/index.html": "-rwxr-xr-x 0:0 mapped",
		"srv/www/css":        "drwxr-xr-x 0:0",
		"opt/extra/x/y":      "-rwxr-xr-x 0:0 1",
		"tmp":                "dtrwxrwxrwx 0:0",
		"proc":               "drwxr-xr-x 0:0",
		"root":               "drwx------ 0:0",
	} {
		if got := describe(t, filepath.Join(root, name)); got != want {
			t.Errorf("/%s is %q, want %q", name, got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "etc/old")); err == nil {
		t.Error("/etc/old is there, which the second layer took away")
	}
}

// TestImageSources wants the same disk of one image, wherever it is.
func TestImageSources(t *testing.T) {
	img := web(t)
	dir := t.TempDir()
	archive := func(name string, write func(io.Writer, ...ocitest.Image) ([]string, error), wrap func(io.Writer) io.WriteCloser) string {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := io.Writer(f)
		if wrap != nil {
			c := wrap(f)
			defer c.Close()
			w = c
		}
		if _, err := write(w, img); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	folder := layout(t, img)
	need.Tool(t, "skopeo")
	if out, err := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false",
		"oci:"+folder+":docker.io/library/web:1.2", "docker://"+host+"/team/web:1.2").CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	digest, idOfConfig, id := "", "", ""
	for _, source := range []string{
		"oci:" + folder,
		"oci:" + folder + ":docker.io/library/web:1.2",
		"oci:" + folder + ":web:1.2",
		"oci-archive:" + archive("web.tar", ocitest.WriteArchive, nil),
		"oci-archive:" + archive("other.tar.gz", ocitest.WriteArchive, gz) + ":web:1.2",
		"docker-archive:" + archive("docker/web.tar", ocitest.WriteDocker, nil),
		host + "/team/web:1.2",
		"docker://" + host + "/team/web:1.2",
	} {
		t.Run(source, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"fledge.toml": fromImage(source, "")})
			r := mustBuild(t, dir, build.Options{Registry: oci.Registry{PlainHTTP: []string{host}}})
			if digest == "" {
				digest, id = r.Digest, r.Manifest.ImageDigest
			}
			if r.Digest != digest {
				t.Errorf("the disk has digest %s, want %s", r.Digest, digest)
			}
			if strings.HasPrefix(source, "docker-archive") {
				idOfConfig = r.Manifest.ImageDigest // has no manifest
			} else if r.Manifest.ImageDigest != id {
				t.Errorf("image_digest is %s, want %s", r.Manifest.ImageDigest, id)
			}
		})
	}
	if idOfConfig == id {
		t.Error("the docker archive has the layout's identity")
	}
}

// TestImageReproducible builds from two copies of an image, under two umasks
// and from folders of other names and times.
func TestImageReproducible(t *testing.T) {
	for _, tt := range []struct{ name, more string }{
		{"erofs", "[filesystem]\ntype = \"erofs\"\n"},
		{"ext4", "[filesystem]\ntype = \"ext4\"\nsize_buffer_mb = 8\n"},
		{"squashfs", "[filesystem]\ntype = \"squashfs\"\n"},
		{"initramfs", "[output]\ncompression = \"zstd\"\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var disks, manifests [2][]byte
			for i, umask := range []int{0o022, 0o077} {
				dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", i), "x")
				old := syscall.Umask(umask)
				strategy := "strategy = \"oci_rootfs\""
				if tt.name == "initramfs" {
					strategy = "strategy = \"initramfs\""
				}
				write(t, dir, map[string]string{
					"fledge.toml": fromImage("oci:"+layout(t, web(t)), strategy) + tt.more + "[mappings]\n\"tree\" = \"/opt\"\n", "tree/b": "b", "tree/a/c": "c",
				})
				when := time.Unix(int64(1e9*(i+1)), 0)
				if err := os.Chtimes(filepath.Join(dir, "tree/b"), when, when); err != nil {
					t.Fatal(err)
				}
				r, err := try(t, dir, build.Options{Output: filepath.Join(t.TempDir(), "out")})
				syscall.Umask(old)
				if err != nil {
					t.Fatal(err)
				}
				if disks[i], err = os.ReadFile(r.Artifact); err != nil {
					t.Fatal(err)
				}
				if manifests[i], err = os.ReadFile(r.ManifestPath); err != nil {
					t.Fatal(err)
				}
				if v, err := build.Verify(r.ManifestPath); err != nil {
					t.Errorf("Verify: %v", err)
				} else if v.Filesystem != nil && v.Filesystem.Type != tt.name {
					t.Errorf("the disk is %s, want %s", v.Filesystem.Type, tt.name)
				}
			}
			if !bytes.Equal(disks[0], disks[1]) {
				t.Error("the artifacts differ")
			}
			if !bytes.Equal(manifests[0], manifests[1]) {
				t.Errorf("the manifests differ:\n%s\n%s", manifests[0], manifests[1])
			}
		})
	}
}

func TestImageInitramfs(t *testing.T) {
	read := func(t *testing.T, file string) map[string]string {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out := make(map[string]string)
		for r := initramfs.NewReader(f, initramfs.Limits{}); ; {
			h, err := r.Next()
			if err == io.EOF {
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			out[h.Name] = strings.TrimSpace(fmt.Sprintf("%v %d:%d %s%s", h.Mode, h.UID, h.GID, h.Linkname, b))
		}
	}
	for _, tt := range []struct {
		name, more  string
		agent, init string
	}{
		{"agent of the host", "", api.AgentHost, ""},
		{"agent in the image", "[agent]\nsource_strategy = \"local\"\npath = \"volant\"\n", api.AgentImage, "-rwxr-xr-x 0:0 agent"},
		{"own init", "[init]\npath = \"my-init\"\n", api.AgentNone, "-rwxr-xr-x 0:0 mine"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{
				"fledge.toml": fromImage("oci:"+layout(t, web(t)), "strategy = \"initramfs\"") + tt.more, "volant": "agent", "my-init": "mine",
			})
			r := mustBuild(t, dir, build.Options{})
			if filepath.Base(r.Artifact) != "out.cpio" || r.Manifest.Rootfs != nil || r.Manifest.Initramfs.Agent != tt.agent {
				t.Errorf("%s, manifest %+v; want an archive with agent %s", r.Artifact, r.Manifest, tt.agent)
			}
			got := read(t, r.Artifact)
			for name, want := range map[string]string{
				"usr/bin/web": "urwxr-xr-x 0:0 second",
				"bin":         "Lrwxrwxrwx 0:0 usr/bin",
				"srv/www":     "drwxr-x--- 33:33",
				"dev/console": "Dcrw------- 0:0",
				"dev/null":    "Dcrw-rw-rw- 0:0",
				"proc":        "drwxr-xr-x 0:0",
				"init":        tt.init,
				"etc/old":     "",
			} {
				if got[name] != want {
					t.Errorf("%s is %q, want %q", name, got[name], want)
				}
			}
			if _, err := build.Verify(r.ManifestPath); err != nil {
				t.Errorf("Verify: %v", err)
			}
		})
	}
}

// TestManifestOverImage lays a manifest over what the image says.
func TestManifestOverImage(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"fledge.toml": fromImage("oci:"+layout(t, web(t)), "") + "[filesystem]\noverlay_size = \"1G\"\n",
		"manifest.toml": `name = "site"
version = "9"
[root]
mode = "read-only"
[resources]
cpu_cores = 2
memory_mb = 512
[workload]
type = "http"
entrypoint = ["/usr/bin/web", "serve"]
base_url = "http://127.0.0.1:80"
[workload.env]
MODE = "manifest"
EXTRA = "1"
[health_check]
endpoint = "/"
[[ports]]
port = 8080
[labels]
team = "b"
`,
	})
	m := mustBuild(t, dir, build.Options{}).Manifest
	w := m.Workload
	if m.Name != "site" || m.Version != "9" || m.Runtime != "site" || m.Root.Mode != "read-only" || m.Root.SizeMB != 0 || m.Resources.MemoryMB != 512 {
		t.Errorf("manifest %+v", m)
	}
	// The image's volume stays writable under a root that is not.
	if targets := len(m.Volumes) + len(m.Tmpfs); targets != 1 {
		t.Errorf("volumes %+v, tmpfs %+v; want one for /data", m.Volumes, m.Tmpfs)
	}
	if w.Type != "http" || strings.Join(w.Entrypoint, " ") != "/usr/bin/web serve" || w.User != "33:33" || w.Workdir != "/srv/www" {
		t.Errorf("workload %+v", w)
	}
	if want := map[string]string{"PATH": "/bin", "LANG": "C", "MODE": "manifest", "EXTRA": "1"}; !reflect.DeepEqual(w.Env, want) {
		t.Errorf("env %v, want %v", w.Env, want)
	}
	if m.HealthCheck.Endpoint != "/" || m.HealthCheck.Exec != nil || len(m.Ports) != 1 || m.Ports[0].Port != 8080 {
		t.Errorf("health check %+v, ports %+v", m.HealthCheck, m.Ports)
	}
	if want := map[string]string{"org.opencontainers.image.version": "1.2.3", "team": "b"}; !reflect.DeepEqual(m.Labels, want) {
		t.Errorf("labels %v, want %v", m.Labels, want)
	}
}

func TestBadImages(t *testing.T) {
	plain := web(t)
	other := web(t)
	other.Reference = "docker.io/library/other:1"
	other.Config.WorkingDir = "/"
	foreign := web(t)
	foreign.Platform = "linux/s390x"
	silent := web(t)
	silent.Config.Entrypoint, silent.Config.Cmd = nil, nil
	inited, err := ocitest.FromFiles("docker.io/library/s6:1", []ocitest.File{ocitest.Regular("init", 0o755, "own")})
	if err != nil {
		t.Fatal(err)
	}
	inited.Config.Entrypoint = []string{"/init"}
	escape, err := ocitest.FromFiles("", []ocitest.File{ocitest.Regular("../../etc/passwd", 0o644, "x")})
	if err != nil {
		t.Fatal(err)
	}
	escape.Config.Cmd = []string{"/x"}
	truncated := filepath.Join(t.TempDir(), "short.tar")
	var whole bytes.Buffer
	if _, err := ocitest.WriteArchive(&whole, plain); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(truncated, whole.Bytes()[:whole.Len()/2], 0o644); err != nil {
		t.Fatal(err)
	}
	program := func(p string) string { return "[manifest.workload]\nentrypoint = [\"" + p + "\"]\n" }
	for name, tt := range map[string]struct{ recipe, want string }{
		"several":              {fromImage("oci:"+layout(t, plain, other), ""), "fledge.toml:4: source.image: it holds 2 images: name one behind the path and a colon; it has docker.io/library/web:1.2, docker.io/library/other:1"},
		"not among them":       {fromImage("oci:"+layout(t, plain, other)+":web:9", ""), `has no image "web:9"`},
		"foreign":              {fromImage("oci:"+layout(t, foreign), ""), "s390x"},
		"no layout":            {fromImage("oci:"+t.TempDir(), ""), "fledge.toml:4: source.image: "},
		"truncated":            {fromImage("oci-archive:"+truncated, ""), "fledge.toml:4: source.image: "},
		"escape":               {fromImage("oci:"+layout(t, escape), ""), "climbs"},
		"nothing to run":       {fromImage("oci:"+layout(t, silent), ""), "workload.entrypoint: is missing"},
		"program not there":    {fromImage("oci:"+layout(t, plain), "") + program("/usr/bin/gone"), "fledge.toml:6: manifest.workload.entrypoint: /usr/bin/gone is not in the image, or cannot be executed"},
		"program not in PATH":  {fromImage("oci:"+layout(t, plain), "") + program("gone"), `"gone" is not in the image: no executable of that name in /bin`},
		"program is a file":    {fromImage("oci:"+layout(t, plain), "") + program("/srv/www/index.html"), "or cannot be executed"},
		"own init":             {fromImage("oci:"+layout(t, inited), "strategy = \"initramfs\""), "the image has an /init of its own, which would replace the agent"},
		"no init":              {fromImage("oci:"+layout(t, plain), "strategy = \"initramfs\"") + "[init]\nnone = true\n", "fledge.toml:5: init: neither the image nor a mapping gives an executable /init"},
		"file over directory":  {fromImage("oci:"+layout(t, plain), "") + "[mappings]\n\"app\" = \"/srv/www\"\n", "fledge.toml:6: mappings.app: /srv/www is a directory in the image"},
		"directory over file":  {fromImage("oci:"+layout(t, plain), "") + "[mappings]\n\"dir\" = \"/usr/bin/web\"\n", "fledge.toml:6: mappings.dir: /usr/bin/web is a file in the image"},
		"below a file":         {fromImage("oci:"+layout(t, plain), "") + "[mappings]\n\"app\" = \"/usr/bin/web/app\"\n", "fledge.toml:6: mappings.app: "},
		"wrong agent digest":   {fromImage("oci:"+layout(t, plain), "strategy = \"initramfs\"") + "[agent]\nsource_strategy = \"local\"\npath = \"app\"\nchecksum = \"sha256:" + strings.Repeat("0", 64) + "\"\n", "agent.path: "},
		"manifest field":       {fromImage("oci:"+layout(t, plain), "") + "[manifest]\nrootfs = { url = \"x\" }\n", "manifest.rootfs: is written by the build"},
		"manifest before work": {fromImage("oci:"+t.TempDir(), "") + "[manifest]\nname = \"A\"\n", "fledge.toml:6: manifest.name: plugin name \"A\""},
		"registry unreachable": {fromImage("127.0.0.1:1/team/app", ""), "fledge.toml:4: source.image: "},
	} {
		t.Run(name, func(t *testing.T) {
			dir, temp := t.TempDir(), t.TempDir()
			write(t, dir, map[string]string{"fledge.toml": tt.recipe, "app": "x", "dir/x": "y", "out/": ""})
			_, err := try(t, dir, build.Options{Output: filepath.Join(dir, "out/image"), TempDir: temp})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v, want %q", err, tt.want)
			}
			for _, d := range []string{filepath.Join(dir, "out"), temp} {
				if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
					t.Errorf("a failed build left %v in %s, %v", left, d, err)
				}
			}
		})
	}
	t.Run("program of the image not there", func(t *testing.T) {
		img := web(t)
		img.Config.Entrypoint = []string{"/data/start"} // a volume may bring it
		dir := t.TempDir()
		write(t, dir, map[string]string{"fledge.toml": fromImage("oci:"+layout(t, img), "")})
		if got := strings.Join(mustBuild(t, dir, build.Options{}).Warnings, "\n"); !strings.Contains(got, "the image's entrypoint /data/start is not in the image") {
			t.Errorf("warnings %q", got)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		dir, temp := t.TempDir(), t.TempDir()
		write(t, dir, map[string]string{"fledge.toml": fromImage("oci:"+layout(t, plain), "")})
		ctx, cancel := context.WithCancel(t.Context())
		_, err := build.Build(ctx, build.Options{Recipe: filepath.Join(dir, "fledge.toml"), Output: filepath.Join(dir, "o"), TempDir: temp,
			Progress: func(s build.Step) {
				if s.Name == "disk" && s.Done {
					cancel()
				}
			},
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Build = %v, want Canceled", err)
		}
		for d, want := range map[string]int{dir: 1, temp: 0} {
			if left, err := os.ReadDir(d); err != nil || len(left) != want {
				t.Errorf("%s holds %v, %v; want %d files", d, left, err, want)
			}
		}
	})
}

// TestDockerfile builds an image with buildah and a disk of it.
func TestDockerfile(t *testing.T) {
	need.Tool(t, "buildah")
	need.Root(t, "to give files to other owners")
	store := t.TempDir()
	conf := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(store, "root"), filepath.Join(store, "run"))
	write(t, store, map[string]string{"storage.conf": conf})
	t.Setenv("CONTAINERS_STORAGE_CONF", filepath.Join(store, "storage.conf"))
	t.Setenv("BUILDAH_ISOLATION", "chroot")

	dir := filepath.Join(t.TempDir(), "shop")
	write(t, dir, map[string]string{
		"Dockerfile": "FROM scratch AS base\nARG GREETING=hello\nCOPY --chown=7:7 app /usr/bin/app\nENV GREETING=$GREETING\n" +
			"FROM base AS final\nHEALTHCHECK CMD [\"/usr/bin/app\", \"check\"]\nCMD [\"/usr/bin/app\"]\nFROM base AS other\n",
		"app":         "program",
		"fledge.toml": "version = \"1\"\n[source]\ndockerfile = \"Dockerfile\"\ntarget = \"final\"\nbuild_args = { GREETING = \"good day\" }\n",
		"other.toml":  "version = \"1\"\nstrategy = \"oci_rootfs\"\n[manifest]\nname = \"out\"\n",
		"static.toml": "version = \"1\"\n[mappings]\n\"app\" = \"/app\"\n[manifest]\nname = \"static\"\nversion = \"1\"\n",
	})
	spec := dockerfile.Spec{File: filepath.Join(dir, "Dockerfile"), Target: "final", Args: map[string]string{"GREETING": "good day"}}
	for _, tt := range []struct {
		name     string
		opts     build.Options
		artifact string
	}{
		{"recipe", build.Options{Recipe: filepath.Join(dir, "fledge.toml")}, "out.img"},
		{"Dockerfile", build.Options{Dockerfile: &spec}, "out.img"},
		{"initramfs", build.Options{Dockerfile: &spec, Initramfs: true}, "out.cpio"},
		{"in the place of a source", build.Options{Recipe: filepath.Join(dir, "other.toml"), Dockerfile: &spec}, "out.img"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, told := tt.opts, false
			o.Output, o.Builder, o.TempDir = filepath.Join(t.TempDir(), "out"), "buildah", t.TempDir()
			o.Progress = func(s build.Step) {
				told = told || s.Name == "dockerfile" && !s.Done && strings.Contains(s.Detail, "COPY --chown=7:7 app /usr/bin/app")
			}
			r, err := build.Build(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			m := r.Manifest
			if m.Image != "" || m.ImageDigest == "" {
				t.Errorf("image %q, digest %q; want a digest and no name, which would be the builder's", m.Image, m.ImageDigest)
			}
			if filepath.Base(r.Artifact) != tt.artifact || m.Name != "out" || strings.Join(m.Workload.Entrypoint, " ") != "/usr/bin/app" ||
				m.Workload.Env["GREETING"] != "good day" || strings.Join(m.HealthCheck.Exec, " ") != "/usr/bin/app check" {
				t.Errorf("%s, manifest %+v, workload %+v, health check %+v", r.Artifact, m, m.Workload, m.HealthCheck)
			}
			if !told {
				t.Error("the builder's output was not told")
			}
			if _, err := build.Verify(r.ManifestPath); err != nil {
				t.Error(err)
			}
			if tt.artifact == "out.img" {
				if got, want := describe(t, filepath.Join(extract(t, r.Artifact), "usr/bin/app")), "-rwxr-xr-x 7:7 program"; got != want {
					t.Errorf("/usr/bin/app is %q, want %q", got, want)
				}
			}
			if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
				t.Errorf("the build left %v, %v", left, err)
			}
		})
	}
	t.Run("fails", func(t *testing.T) {
		write(t, dir, map[string]string{"Broken": "FROM scratch\nCOPY gone /\n"})
		_, err := build.Build(t.Context(), build.Options{Dockerfile: &dockerfile.Spec{File: filepath.Join(dir, "Broken")}, Builder: "buildah", Output: filepath.Join(t.TempDir(), "o")})
		if err == nil || !strings.Contains(err.Error(), "Broken: buildah: exit status") || !strings.Contains(err.Error(), "gone") {
			t.Errorf("Build = %v, want what buildah said", err)
		}
	})
	t.Run("mappings as initramfs", func(t *testing.T) {
		_, err := build.Build(t.Context(), build.Options{Recipe: filepath.Join(dir, "static.toml"), Initramfs: true})
		if err == nil || !strings.Contains(err.Error(), "is for images") {
			t.Errorf("Build = %v", err)
		}
	})
}

// TestConvertImage makes the daemon's forms of an image.
func TestConvertImage(t *testing.T) {
	ctx := t.Context()
	load := func(t *testing.T, img ocitest.Image) *oci.Image {
		t.Helper()
		images, err := oci.LoadPath(ctx, layout(t, img), oci.Options{Staging: t.TempDir()})
		if err != nil || len(images) != 1 {
			t.Fatalf("LoadLayout = %d images, %v", len(images), err)
		}
		return images[0]
	}
	img := load(t, web(t))
	dir := t.TempDir()
	write(t, dir, map[string]string{"fledge.toml": fromImage("oci:"+layout(t, web(t)), "")})
	fledged := mustBuild(t, dir, build.Options{})

	out := filepath.Join(t.TempDir(), "disk")
	var steps []string
	c, err := build.ConvertImage(ctx, img, "", out, func(p api.ImageProgress) { steps = append(steps, p.Step) })
	if err != nil {
		t.Fatal(err)
	}
	if c.Digest != fledged.Digest || c.Size != fledged.Size {
		t.Errorf("ConvertImage = %+v, want fledge's disk %s", c, fledged.Digest)
	}
	if len(steps) == 0 || steps[0] != "flatten" || steps[len(steps)-1] != "write" {
		t.Errorf("steps %v, want flatten, then write", steps)
	}
	if again, err := build.ConvertImage(ctx, img, api.FormDisk, out, nil); err != nil || again != c {
		t.Errorf("ConvertImage over a file = %+v, %v; want %+v", again, err, c)
	}
	cpio := filepath.Join(t.TempDir(), "cpio")
	if _, err := build.ConvertImage(ctx, img, api.FormInitramfs, cpio, nil); err != nil {
		t.Error(err)
	}

	inited := web(t)
	inited.Layers = append(inited.Layers, ocitest.Layer{Tar: mustTar(t, ocitest.Regular("init", 0o755, "own"))})
	broken := web(t)
	broken.Layers = append(broken.Layers, ocitest.Layer{Tar: mustTar(t, ocitest.Regular("../x", 0o644, ""))})
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for name, tt := range map[string]struct {
		ctx  context.Context
		img  *oci.Image
		form api.ImageForm
		want string
	}{
		"own init": {ctx, load(t, inited), api.FormInitramfs, build.ErrOwnInit.Error()},
		"escape":   {ctx, load(t, broken), api.FormDisk, "climbs"},
		"form":     {ctx, img, "iso", `image form "iso" is not known`},
		"canceled": {canceled, img, api.FormDisk, "context canceled"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		if _, err := build.ConvertImage(tt.ctx, tt.img, tt.form, out, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: ConvertImage = %v, want %q", name, err, tt.want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: a file was left", name)
		}
	}
}

func mustTar(t *testing.T, files ...ocitest.File) []byte {
	t.Helper()
	b, err := ocitest.Tar(files...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tar.NewReader(bytes.NewReader(b)).Next(); err != nil {
		t.Fatal(err)
	}
	return b
}
