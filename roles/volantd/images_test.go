package volantd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/build/superblock"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// The daemon's interface is met.
var _ daemon.Images = images{}

func testImage(t *testing.T, content string) ocitest.Image {
	t.Helper()
	img, err := ocitest.FromFiles("docker.io/library/app:1", []ocitest.File{ocitest.Regular("bin/app", 0o755, content)})
	if err != nil {
		t.Fatal(err)
	}
	img.Config = api.ImageConfig{Entrypoint: []string{"/bin/app"}, ExposedPorts: []string{"80/tcp"}}
	return img
}

// push puts an image into a registry with skopeo.
func push(t *testing.T, img ocitest.Image, to string) {
	t.Helper()
	need.Tool(t, "skopeo")
	dir := t.TempDir()
	img.Reference = ""
	if _, err := ocitest.WriteLayout(dir, img); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false", "oci:"+dir, "docker://"+to).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
}

// work is a place to make images in, with room.
func work(t *testing.T) (daemon.ImageWork, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var steps []string
	dir := t.TempDir()
	return daemon.ImageWork{
			Dir: filepath.Join(dir, "work"), Out: filepath.Join(dir, "out"),
			Progress: func(p api.ImageProgress) {
				mu.Lock()
				defer mu.Unlock()
				if len(steps) == 0 || steps[len(steps)-1] != p.Step {
					steps = append(steps, p.Step)
				}
			},
			Free: func() (int64, error) { return 1 << 40, nil },
		}, func() []string {
			mu.Lock()
			defer mu.Unlock()
			return steps
		}
}

func TestImagesPull(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	push(t, testImage(t, "first"), host+"/team/app:1")
	i := images{&oci.Registry{PlainHTTP: []string{host}}}
	ctx, pull := t.Context(), api.ImagePull{Reference: "docker://" + host + "/team/app:1"}

	id, ref, err := i.Resolve(ctx, pull)
	if err != nil || ref != host+"/team/app:1" {
		t.Fatalf("Resolve = %q, %q, %v", id, ref, err)
	}
	// The tag moves on; what was resolved is what is pulled.
	push(t, testImage(t, "second"), host+"/team/app:1")
	if moved, _, err := i.Resolve(ctx, pull); err != nil || moved == id {
		t.Fatalf("Resolve = %s, %v; want another than before", moved, err)
	}
	w, steps := work(t)
	w.ID = id
	r, err := i.Pull(ctx, w, pull)
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != id || r.References != nil || r.Platform != oci.ThisPlatform().String() || r.Layers != 1 ||
		strings.Join(r.Config.Entrypoint, " ") != "/bin/app" || r.CreatedAt.Year() != 2024 || !strings.HasPrefix(r.File, w.Out) {
		t.Errorf("Pull = %+v", r)
	}
	data, err := os.ReadFile(r.File)
	if err != nil || int64(len(data)) != r.Size {
		t.Fatalf("the disk has %d bytes, %v; want %d", len(data), err, r.Size)
	}
	if s, err := superblock.Read(bytes.NewReader(data), r.Size); err != nil || s.Type != superblock.Erofs {
		t.Errorf("the disk is %+v, %v; want erofs", s, err)
	}
	if !bytes.Contains(data, []byte("first")) {
		t.Error("the disk lacks the content of the image that was resolved")
	}
	if got := strings.Join(steps(), " "); !strings.HasPrefix(got, "resolve download") || !strings.HasSuffix(got, "flatten write") {
		t.Errorf("progress %q", got)
	}

	pull.Form = api.FormInitramfs
	w, _ = work(t)
	w.ID = id
	if r, err = i.Pull(ctx, w, pull); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(r.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if h, err := initramfs.NewReader(f, initramfs.Limits{}).Next(); err != nil || h.Name == "" {
		t.Errorf("the archive's first entry is %+v, %v", h, err)
	}
}

func TestImagesLoad(t *testing.T) {
	archive := func(list ...ocitest.Image) *bytes.Buffer {
		var b bytes.Buffer
		if _, err := ocitest.WriteArchive(&b, list...); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	one, two, bare := testImage(t, "one"), testImage(t, "two"), testImage(t, "bare")
	two.Reference, bare.Reference = "registry.example/two:2", ""
	i := images{new(oci.Registry)}

	w, _ := work(t)
	list, err := i.Load(t.Context(), w, archive(one, two), "", api.FormDisk)
	if err != nil || len(list) != 2 {
		t.Fatalf("Load = %d images, %v; want 2", len(list), err)
	}
	if list[0].File == list[1].File || list[0].ID == list[1].ID || list[0].Digest == list[1].Digest ||
		strings.Join(list[0].References, " ") != "docker.io/library/app:1" || strings.Join(list[1].References, " ") != "registry.example/two:2" {
		t.Errorf("Load = %+v", list)
	}
	w, _ = work(t)
	list, err = i.Load(t.Context(), w, archive(bare), "mine:3", api.FormDisk)
	if err != nil || len(list) != 1 || strings.Join(list[0].References, " ") != "docker.io/library/mine:3" {
		t.Errorf("Load with a name = %+v, %v", list, err)
	}
}

func TestImagesFail(t *testing.T) {
	denying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer denying.Close()
	empty := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer empty.Close()
	at := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	i := images{&oci.Registry{PlainHTTP: []string{at(denying), at(empty), "127.0.0.1:1"}}}
	resolve := func(ref, platform string) func(*testing.T) error {
		return func(t *testing.T) error {
			_, _, err := i.Resolve(t.Context(), api.ImagePull{Reference: ref, Platform: platform})
			return err
		}
	}
	load := func(name string, form api.ImageForm, free int64, archive []byte) func(*testing.T) error {
		return func(t *testing.T) error {
			w, _ := work(t)
			w.Free = func() (int64, error) { return free, nil }
			var r io.Reader = bytes.NewReader(archive)
			if free <= 0 {
				r = endless{} // only the lack of room ends it
			}
			_, err := i.Load(t.Context(), w, r, name, form)
			if left, _ := filepath.Glob(w.Out + "*"); err != nil && len(left) > 0 {
				t.Errorf("left %v", left)
			}
			return err
		}
	}
	archived := func(img ocitest.Image) []byte {
		var b bytes.Buffer
		if _, err := ocitest.WriteArchive(&b, img); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	escape, err := ocitest.FromFiles("", []ocitest.File{ocitest.Regular("../x", 0o644, "")})
	if err != nil {
		t.Fatal(err)
	}
	inited, err := ocitest.FromFiles("", []ocitest.File{ocitest.Regular("init", 0o755, "")})
	if err != nil {
		t.Fatal(err)
	}
	sound := archived(testImage(t, "x"))
	for name, tt := range map[string]struct {
		run  func(*testing.T) error
		code api.Code
		want string
	}{
		"reference":   {resolve("Nginx", ""), api.CodeInvalid, "names are lower case"},
		"platform":    {resolve("nginx", "a b"), api.CodeInvalid, "is not a platform"},
		"denied":      {resolve(at(denying)+"/app", ""), api.CodeDenied, at(denying)},
		"not there":   {resolve(at(empty)+"/app", ""), api.CodeNotFound, at(empty)},
		"unavailable": {resolve("127.0.0.1:1/app", ""), api.CodeUnavailable, "127.0.0.1:1"},
		"no archive":  {load("", "", 1<<40, []byte("not an archive at all, but a sentence of some length")), api.CodeInvalid, ""},
		"truncated":   {load("", "", 1<<40, sound[:len(sound)/2]), api.CodeInvalid, ""},
		"name":        {load("No", "", 1<<40, sound), api.CodeInvalid, "names are lower case"},
		"escape":      {load("", "", 1<<40, archived(escape)), api.CodeInvalid, "climbs"},
		"own init":    {load("", api.FormInitramfs, 1<<40, archived(inited)), api.CodeInvalid, "/init of its own"},
		"no room":     {load("", "", 0, sound), api.CodeExhausted, "too little room"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.run(t)
			if api.CodeOf(err) != tt.code || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v of code %q, want %q with %q", err, api.CodeOf(err), tt.code, tt.want)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w, _ := work(t)
		if _, err := i.Load(ctx, w, bytes.NewReader(sound), "", ""); !errors.Is(err, context.Canceled) {
			t.Errorf("Load = %v, want Canceled", err)
		}
	})
}

// endless is an upload that never ends: zeros, a few at a time.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	n := min(len(p), 512)
	clear(p[:n])
	return n, nil
}
