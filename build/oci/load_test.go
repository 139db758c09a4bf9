package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// forms are the ways in which an archive comes.
func forms(t *testing.T, images ...ocitest.Image) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for name, write := range map[string]func(io.Writer, ...ocitest.Image) ([]string, error){"oci": ocitest.WriteArchive, "docker": ocitest.WriteDocker} {
		var plain, zipped, zst bytes.Buffer
		if _, err := write(&plain, images...); err != nil {
			t.Fatal(err)
		}
		gw := gzip.NewWriter(&zipped)
		gw.Write(plain.Bytes())
		gw.Close()
		zw, err := zstd.NewWriter(&zst)
		if err != nil {
			t.Fatal(err)
		}
		zw.Write(plain.Bytes())
		zw.Close()
		all[name], all[name+".gz"], all[name+".zst"] = plain.Bytes(), zipped.Bytes(), zst.Bytes()
	}
	return all
}

func TestLoad(t *testing.T) {
	img := sample(t)
	img.Layers = append(img.Layers, img.Layers[0]) // the same twice
	dir, digests := layout(t, img)
	ctx := context.Background()

	check := func(t *testing.T, staging string, images []*oci.Image, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if len(images) != 1 {
			t.Fatalf("got %d images, want one", len(images))
		}
		checkImage(t, images[0], img)
		if want := []string{img.Reference}; !slices.Equal(images[0].References, want) {
			t.Errorf("references = %v, want %v", images[0].References, want)
		}
		if images[0].Layers[0] != images[0].Layers[3] {
			t.Errorf("one layer lies at %+v and %+v, want one place", images[0].Layers[0], images[0].Layers[3])
		}
		noParts(t, staging)
	}
	for name, data := range forms(t, img) {
		t.Run(name, func(t *testing.T) {
			staging := t.TempDir()
			var last api.ImageProgress
			images, err := oci.Load(ctx, bytes.NewReader(data), oci.Options{Staging: staging, Progress: func(p api.ImageProgress) { last = p }})
			check(t, staging, images, err)
			if strings.HasPrefix(name, "oci") && images[0].ManifestDigest != digests[0] {
				t.Errorf("manifest digest = %s, want %s", images[0].ManifestDigest, digests[0])
			}
			if last.Step != "download" || last.Done == 0 {
				t.Errorf("last progress = %+v, want a download's", last)
			}
		})
		t.Run(name+" as a file", func(t *testing.T) {
			staging, path := t.TempDir(), filepath.Join(t.TempDir(), "any.name")
			writeFile(t, path, data)
			images, err := oci.LoadPath(ctx, path, oci.Options{Staging: staging})
			check(t, staging, images, err)
			// Uncompressed layers of an uncompressed archive are read where they are.
			if in := images[0].Layers[2].Path == path; in != !strings.Contains(name, ".") {
				t.Errorf("layer 2 is read from %s", images[0].Layers[2].Path)
			}
			if left, _ := os.ReadDir(staging); name == "docker" && len(left) > 0 {
				t.Errorf("staging holds %v, want nothing: every layer lies in the archive", left)
			}
		})
	}
	t.Run("folder", func(t *testing.T) {
		staging := t.TempDir()
		images, err := oci.LoadPath(ctx, dir, oci.Options{Staging: staging})
		check(t, staging, images, err)
		if images[0].ManifestDigest != digests[0] {
			t.Errorf("manifest digest = %s, want %s", images[0].ManifestDigest, digests[0])
		}
	})
	t.Run("folder as a stream", func(t *testing.T) {
		var a, b bytes.Buffer
		if err := errors.Join(oci.ArchiveLayout(ctx, &a, dir, oci.Options{}), oci.ArchiveLayout(ctx, &b, dir, oci.Options{})); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Error("two archives of one layout differ")
		}
		staging := t.TempDir()
		images, err := oci.Load(ctx, &a, oci.Options{Staging: staging})
		check(t, staging, images, err)
		if images[0].ManifestDigest != digests[0] {
			t.Errorf("manifest digest = %s, want %s", images[0].ManifestDigest, digests[0])
		}
	})
}

// TestLoadStock loads what the stock tools make: umoci's layouts, and skopeo's
// conversions of them.
func TestLoadStock(t *testing.T) {
	work := t.TempDir()
	layout := filepath.Join(work, "layout")
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", layout+":v1")
	file := filepath.Join(work, "hello")
	writeFile(t, file, []byte("hello\n"))
	run(t, "umoci", "insert", "--image", layout+":v1", "--rootless", file, "/etc/hello")
	run(t, "umoci", "config", "--image", layout+":v1", "--config.entrypoint", "/bin/hello", "--config.exposedports", "8080/tcp", "--config.user", "1000:1000")
	for _, to := range []string{"oci:" + work + "/skopeo:example.com/app:v1", "oci-archive:" + work + "/app.oci:example.com/app:v1", "docker-archive:" + work + "/app.docker:example.com/app:v1"} {
		run(t, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+layout+":v1", to)
	}
	for _, tt := range []struct{ name, path, ref string }{
		{"umoci", layout, ""}, // a tag alone names no image
		{"skopeo layout", work + "/skopeo", "example.com/app:v1"},
		{"skopeo OCI archive", work + "/app.oci", "example.com/app:v1"},
		{"skopeo docker archive", work + "/app.docker", "example.com/app:v1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			images, err := oci.LoadPath(context.Background(), tt.path, oci.Options{Staging: t.TempDir()})
			if err != nil || len(images) != 1 {
				t.Fatalf("LoadPath = %v, %v; want one image", images, err)
			}
			img := images[0]
			if got := strings.Join(img.References, ","); got != tt.ref {
				t.Errorf("references = %q, want %q", got, tt.ref)
			}
			if c := img.Config; len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/bin/hello" || c.User != "1000:1000" || !slices.Equal(c.ExposedPorts, []string{"8080/tcp"}) {
				t.Errorf("config = %+v, want what umoci was told", c)
			}
			if len(img.Layers) != 1 {
				t.Fatalf("%d layers, want one", len(img.Layers))
			}
			r, err := img.Layers[0].Open()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for tr := tar.NewReader(r); ; {
				h, err := tr.Next()
				if err != nil {
					t.Fatalf("etc/hello is not in the layer: %v", err)
				}
				if h.Name == "etc/hello" {
					break
				}
			}
		})
	}
}

func TestLoadSelect(t *testing.T) {
	a, b := sample(t), sample(t)
	a.Reference, b.Reference = "docker.io/library/a:1", "example.com/b:2"
	b.Config.Cmd = []string{"b"}
	ctx := context.Background()
	name := parse(t, "mine:3")
	dir, digests := layout(t, a, b)
	data := forms(t, a, b)
	load := map[string]func(opts oci.Options) ([]*oci.Image, error){
		"oci": func(opts oci.Options) ([]*oci.Image, error) { return oci.Load(ctx, bytes.NewReader(data["oci"]), opts) },
		"docker": func(opts oci.Options) ([]*oci.Image, error) {
			return oci.Load(ctx, bytes.NewReader(data["docker"]), opts)
		},
		"folder": func(opts oci.Options) ([]*oci.Image, error) { return oci.LoadPath(ctx, dir, opts) },
	}
	for form, load := range load {
		for _, tt := range []struct {
			name string
			opts oci.Options
			want []string // references, an empty one for none
			kind error
			says string
		}{
			{name: "all", want: []string{a.Reference, b.Reference}},
			{name: "by full name", opts: oci.Options{Select: b.Reference}, want: []string{b.Reference}},
			{name: "by short name", opts: oci.Options{Select: "a:1"}, want: []string{a.Reference}},
			{name: "renamed", opts: oci.Options{Select: "a:1", Name: name}, want: []string{name.String()}},
			{name: "one name for two", opts: oci.Options{Name: name}, kind: oci.ErrInvalid, says: "select one of"},
			{name: "not there", opts: oci.Options{Select: "c"}, kind: oci.ErrNotFound, says: "example.com/b:2"},
			{name: "another platform", opts: oci.Options{Platform: oci.Platform{OS: "linux", Architecture: "s390x"}}, kind: oci.ErrPlatform, says: "linux/s390x"},
		} {
			t.Run(form+" "+tt.name, func(t *testing.T) {
				tt.opts.Staging = t.TempDir()
				images, err := load(tt.opts)
				if tt.kind != nil {
					wantError(t, err, tt.kind, tt.says)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, img := range images {
					got = append(got, img.References...)
				}
				slices.Sort(got)
				if !slices.Equal(got, tt.want) {
					t.Errorf("references = %v, want %v", got, tt.want)
				}
			})
		}
	}
	images, err := oci.LoadPath(ctx, dir, oci.Options{Staging: t.TempDir(), Select: digests[1]})
	if err != nil || len(images) != 1 || images[0].Config.Cmd[0] != "b" {
		t.Errorf("LoadPath of %s = %v, %v; want b", digests[1], images, err)
	}
	var one bytes.Buffer
	if err := oci.ArchiveLayout(ctx, &one, dir, oci.Options{Select: b.Reference}); err != nil {
		t.Fatal(err)
	}
	images, err = oci.Load(ctx, &one, oci.Options{Staging: t.TempDir()})
	if err != nil || len(images) != 1 || images[0].Config.Cmd[0] != "b" {
		t.Errorf("archive of b alone = %v, %v; want b", images, err)
	}
	err = oci.ArchiveLayout(ctx, io.Discard, dir, oci.Options{Select: "c"})
	wantError(t, err, oci.ErrNotFound, "example.com/b:2")
}

// TestLoadPlatforms chooses within a multi-platform image, and among the
// entries of a layout that is one itself.
func TestLoadPlatforms(t *testing.T) {
	for _, ref := range []string{"example.com/multi:1", ""} {
		arm, own := sample(t), sample(t)
		arm.Platform, arm.Reference, own.Reference = "linux/riscv64", ref, ref
		own.Config.Cmd = []string{"own"}
		dir, digests := layout(t, arm, own)
		for i, platform := range []oci.Platform{{OS: "linux", Architecture: "riscv64"}, {}} {
			images, err := oci.LoadPath(context.Background(), dir, oci.Options{Staging: t.TempDir(), Platform: platform})
			if err != nil || len(images) != 1 || images[0].ManifestDigest != digests[i] {
				t.Errorf("LoadPath of %q for %v = %v, %v; want %s", ref, platform, images, err, digests[i])
			}
		}
	}
}

// TestLoadLinkedLayers: an old docker save links a layer that two images share.
func TestLoadLinkedLayers(t *testing.T) {
	img := sample(t)
	var old bytes.Buffer
	if _, err := ocitest.WriteDocker(&old, img); err != nil {
		t.Fatal(err)
	}
	var linked bytes.Buffer
	tr, tw := tar.NewReader(&old), tar.NewWriter(&linked)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, "/layer.tar") {
			link := *h
			link.Typeflag, link.Size, link.Linkname = tar.TypeSymlink, 0, "../elsewhere/"+strings.ReplaceAll(h.Name, "/", "-")
			if err := tw.WriteHeader(&link); err != nil {
				t.Fatal(err)
			}
			h.Name = "./elsewhere/" + strings.ReplaceAll(h.Name, "/", "-")
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(tw, tr); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	images, err := oci.Load(context.Background(), &linked, oci.Options{Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, images[0], img)
}

func TestLoadErrors(t *testing.T) {
	img := sample(t)
	all := forms(t, img)
	member := func(name, data string) ocitest.File { return ocitest.Regular(name, 0o644, data) }
	archive := func(files ...ocitest.File) []byte {
		data, err := ocitest.Tar(files...)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	flip := func(data []byte, at string) []byte { // changes the first byte behind at
		i := bytes.Index(data, []byte(at))
		if i < 0 {
			t.Fatalf("%q is not in the archive", at)
		}
		data = slices.Clone(data)
		data[i+len(at)] ^= 1
		return data
	}
	bomb := func(size int) []byte {
		var b bytes.Buffer
		zw, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		zw.Write(make([]byte, size))
		zw.Close()
		return b.Bytes()
	}
	wrongDiff := sample(t)
	wrongDiff.Layers[1].DiffID = digest
	for _, tt := range []struct {
		name  string
		data  []byte
		limit oci.Limits
		kind  error
		says  string
	}{
		{name: "empty", data: nil, kind: oci.ErrInvalid, says: "holds no image"},
		{name: "no tar", data: []byte(strings.Repeat("no tar archive at all ", 100)), kind: oci.ErrInvalid, says: "is no tar archive"},
		{name: "zip", data: append([]byte("PK\x03\x04"), make([]byte, 2000)...), kind: oci.ErrInvalid, says: "is no tar archive"},
		{name: "xz", data: []byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F"), kind: oci.ErrInvalid, says: "xz compression is not supported"},
		{name: "truncated tar", data: all["docker"][:len(all["docker"])/2], kind: oci.ErrTruncated, says: "ends too early"},
		{name: "truncated gzip", data: all["oci.gz"][:len(all["oci.gz"])/2], kind: oci.ErrTruncated, says: "ends too early"},
		{name: "truncated zstd", data: all["oci.zst"][:len(all["oci.zst"])/2], kind: oci.ErrTruncated, says: "ends too early"},
		{name: "changed layer", data: flip(all["docker"], "hello"), kind: oci.ErrDigest, says: "tampered"},
		{name: "changed blob", data: flip(all["oci"], "\x28\xb5\x2f\xfd\x04"), kind: nil, says: ""},
		{name: "changed manifest", data: flip(all["oci"], `"config":{"mediaType":"application/`), kind: oci.ErrDigest, says: "tampered"},
		{name: "changed configuration", data: flip(all["oci"], `"/bin/`), kind: oci.ErrDigest, says: "tampered"},
		{name: "wrong diff ID", data: forms(t, wrongDiff)["docker"], kind: oci.ErrDigest, says: digest},
		{name: "docker export", data: archive(ocitest.Dir("etc", 0o755), member("etc/passwd", "root")), kind: oci.ErrInvalid, says: "docker save, not docker export"},
		{name: "no manifest", data: archive(member("readme", "x")), kind: oci.ErrInvalid, says: "neither index.json nor manifest.json"},
		{name: "manifest no JSON", data: archive(member("manifest.json", "{")), kind: oci.ErrInvalid, says: "cannot be read"},
		{name: "no images", data: archive(member("manifest.json", "[]")), kind: oci.ErrInvalid, says: "holds no image"},
		{name: "member outside", data: archive(member("manifest.json", `[{"Config":"../../etc/passwd","Layers":[]}]`)), kind: oci.ErrInvalid, says: `"../../etc/passwd" is missing`},
		{name: "absolute layer", data: archive(member("c.json", `{"rootfs":{"diff_ids":["`+digest+`"]}}`), member("manifest.json", `[{"Config":"c.json","Layers":["/etc/passwd"]}]`)), kind: oci.ErrInvalid, says: `"/etc/passwd" is missing`},
		{name: "index is an image", data: archive(member("index.json", `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+digest+`","size":1},"layers":[]}`)), kind: oci.ErrInvalid, says: "is no index"},
		{name: "both", data: archive(member("index.json", `{"schemaVersion":2,"manifests":[],"config":{}}`)), kind: oci.ErrInvalid, says: ""},
		{name: "schema 1", data: archive(member("index.json", `{"schemaVersion":1,"fsLayers":[]}`)), kind: oci.ErrInvalid, says: "schema 1"},
		{name: "blob missing", data: archive(member("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+digest+`","size":1}]}`)), kind: oci.ErrInvalid, says: "is missing"},
		{name: "sha512", data: archive(member("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha512:`+strings.Repeat("0", 128)+`","size":1}]}`)), kind: oci.ErrInvalid, says: "is no sha256"},
		{name: "artifact", data: archive(member("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","digest":"`+digest+`","size":1}]}`)), kind: oci.ErrInvalid, says: "no container image"},
		{name: "too many members", data: all["oci"], limit: oci.Limits{Members: 3}, kind: oci.ErrLimit, says: "more than 3 members"},
		{name: "too big", data: all["oci"], limit: oci.Limits{TotalBytes: 10000}, kind: oci.ErrLimit, says: "more than 10000 bytes"},
		{name: "layer too big", data: all["docker"], limit: oci.Limits{LayerBytes: 10000}, kind: oci.ErrLimit, says: "more than 10000 bytes"},
		{name: "manifest too big", data: all["docker"], limit: oci.Limits{ManifestBytes: 10}, kind: oci.ErrLimit, says: "the limit is 10"},
		{name: "bomb", data: bomb(80 << 20), kind: oci.ErrLimit, says: "taken for a bomb"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "changed blob" { // any byte of any blob
				for i := range 40 {
					data := slices.Clone(all["oci"])
					at := 512 + i*(len(data)-1536)/40
					data[at] ^= 0x55
					images, err := oci.Load(context.Background(), bytes.NewReader(data), oci.Options{Staging: t.TempDir()})
					if err == nil {
						checkImage(t, images[0], img) // it was padding, or a header's field without meaning
					}
				}
				return
			}
			for _, how := range []string{"stream", "file"} {
				staging := t.TempDir()
				opts := oci.Options{Staging: staging, Limits: tt.limit}
				var err error
				if how == "stream" {
					_, err = oci.Load(context.Background(), bytes.NewReader(tt.data), opts)
				} else {
					if tt.name == "too big" {
						continue // nothing is copied
					}
					path := filepath.Join(t.TempDir(), "archive")
					writeFile(t, path, tt.data)
					_, err = oci.LoadPath(context.Background(), path, opts)
				}
				wantError(t, err, tt.kind, tt.says)
				noParts(t, staging)
				if _, err := os.Stat(filepath.Join(staging, "archive")); err == nil {
					t.Error("the archive's copy was left behind")
				}
			}
		})
	}
	t.Run("no such file", func(t *testing.T) {
		_, err := oci.LoadPath(context.Background(), filepath.Join(t.TempDir(), "none"), oci.Options{Staging: t.TempDir()})
		wantError(t, err, oci.ErrNotFound, "does not exist")
	})
	t.Run("a folder that is no layout", func(t *testing.T) {
		_, err := oci.LoadPath(context.Background(), t.TempDir(), oci.Options{Staging: t.TempDir()})
		wantError(t, err, oci.ErrInvalid, "no OCI layout")
	})
	t.Run("disk full", func(t *testing.T) {
		staging := smallDisk(t, 128<<10)
		_, err := oci.Load(context.Background(), bytes.NewReader(all["oci"]), oci.Options{Staging: staging})
		wantError(t, err, oci.ErrNoSpace, staging)
		noParts(t, staging)
	})
	t.Run("the sender fails", func(t *testing.T) {
		broken := errors.New("line cut")
		_, err := oci.Load(context.Background(), io.MultiReader(bytes.NewReader(all["oci.gz"][:2000]), errReader{broken}), oci.Options{Staging: t.TempDir()})
		if !errors.Is(err, broken) {
			t.Errorf("error = %v, want the sender's", err)
		}
	})
}

// TestLoadSparesPull: what an interrupted pull left is for the next pull.
func TestLoadSparesPull(t *testing.T) {
	dir, _ := layout(t, sample(t))
	staging := t.TempDir()
	left := filepath.Join(staging, strings.TrimPrefix(digest, "sha256:")+".blob.part")
	writeFile(t, left, []byte("beginning"))
	if _, err := oci.LoadPath(context.Background(), dir, oci.Options{Staging: staging}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("the load removed a pull's download: %v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// TestLoadMemory loads an image that is far bigger than what may be kept of it.
func TestLoadMemory(t *testing.T) {
	const size = 256 << 20
	img := sample(t)
	img.Layers = append(img.Layers, ocitest.Layer{Compression: ocitest.None, Write: func(w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Size: size, Mode: 0o644}); err != nil {
			return err
		}
		for block := bytes.Repeat([]byte("0123456789abcdef"), 1<<16); ; {
			if _, err := tw.Write(block); err != nil {
				return tw.Close()
			}
		}
	}})
	path := filepath.Join(t.TempDir(), "big.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ocitest.WriteDocker(f, img); err != nil {
		t.Fatal(err)
	}
	f.Close()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // forget the peak so far: proc(5)
		need.Missing(t, "to write to its own clear_refs: %v", err)
	}
	before := peak(t)
	images, err := oci.LoadPath(context.Background(), path, oci.Options{Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if got := images[0].Layers[3].Size; got < size {
		t.Errorf("the layer has %d bytes, want more than %d", got, size)
	}
	grown := peak(t) - before
	t.Logf("%d MiB of layer took %d KiB of memory", size>>20, grown>>10)
	if grown > 32<<20 {
		t.Errorf("loading took %d MiB of memory, want at most 32", grown>>20)
	}
}

// peak is the most memory that this process had, in bytes: proc(5), VmHWM.
func peak(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// FuzzLoad: whatever the archive, there is an image whose layers are what their
// diff IDs say, or an error; and nothing outside the staging folder.
func FuzzLoad(f *testing.F) {
	img, err := ocitest.FromFiles("a:1", []ocitest.File{ocitest.Regular("a", 0o644, "a")}, []ocitest.File{ocitest.Regular("b", 0o644, "b")})
	if err != nil {
		f.Fatal(err)
	}
	for _, write := range []func(io.Writer, ...ocitest.Image) ([]string, error){ocitest.WriteArchive, ocitest.WriteDocker} {
		var b bytes.Buffer
		if _, err := write(&b, img); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := oci.Limits{TotalBytes: 8 << 20, LayerBytes: 4 << 20, ManifestBytes: 1 << 20, ConfigBytes: 1 << 20}
		images, err := oci.Load(context.Background(), bytes.NewReader(data), oci.Options{Staging: t.TempDir(), Limits: limits})
		if err != nil {
			return
		}
		for _, img := range images {
			for _, l := range img.Layers {
				checkDiffID(t, l)
			}
		}
	})
}
