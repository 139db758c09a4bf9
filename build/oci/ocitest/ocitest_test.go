package ocitest_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// skopeo runs the stock tool, the judge of what this package writes.
func skopeo(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(need.Tool(t, "skopeo"), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out
}

func sample(t *testing.T) ocitest.Image {
	t.Helper()
	img, err := ocitest.FromFiles("docker.io/library/sample:1",
		[]ocitest.File{ocitest.Dir("etc", 0o755), ocitest.Regular("etc/motd", 0o644, "hello\n"), ocitest.Symlink("motd", "etc/motd")},
		[]ocitest.File{ocitest.Whiteout("etc/motd"), ocitest.Regular("etc/new", 0o600, "new\n"), ocitest.Link("new", "etc/new")})
	if err != nil {
		t.Fatal(err)
	}
	img.Layers[1].Compression = ocitest.Zstd
	img.Config = api.ImageConfig{Entrypoint: []string{"/bin/sh"}, Env: []string{"A=b"}, ExposedPorts: []string{"80/tcp"}}
	return img
}

// TestForms has the stock tool read and check each form: it verifies every
// digest, and converts, on copying.
func TestForms(t *testing.T) {
	dir := t.TempDir()
	img := sample(t)
	layout := filepath.Join(dir, "layout")
	digests, err := ocitest.WriteLayout(layout, img)
	if err != nil {
		t.Fatal(err)
	}
	archive, docker := filepath.Join(dir, "oci.tar"), filepath.Join(dir, "docker.tar")
	for path, write := range map[string]func(*bytes.Buffer) ([]string, error){
		archive: func(b *bytes.Buffer) ([]string, error) { return ocitest.WriteArchive(b, img) },
		docker:  func(b *bytes.Buffer) ([]string, error) { return ocitest.WriteDocker(b, img) },
	} {
		var first, second bytes.Buffer
		if _, err := write(&first); err != nil {
			t.Fatal(err)
		}
		if _, err := write(&second); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("%s: two writes of one image differ", filepath.Base(path))
		}
		if err := os.WriteFile(path, first.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range []string{"oci:" + layout, "oci-archive:" + archive, "docker-archive:" + docker} {
		t.Run(strings.SplitN(from, ":", 2)[0], func(t *testing.T) {
			var got struct {
				Digest string
				Layers []string
				Env    []string
			}
			if err := json.Unmarshal(skopeo(t, "inspect", from), &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Layers) != 2 || len(got.Env) != 1 || got.Env[0] != "A=b" {
				t.Errorf("skopeo reads %+v, want two layers and the environment A=b", got)
			}
			if !strings.HasPrefix(from, "docker") && got.Digest != digests[0] {
				t.Errorf("skopeo says digest %s, WriteLayout said %s", got.Digest, digests[0])
			}
			// This skopeo cannot rewrite zstd layers, so copy without change.
			skopeo(t, "--insecure-policy", "copy", "-q", from, "dir:"+filepath.Join(t.TempDir(), "copy"))
		})
	}
}

func TestMultiPlatform(t *testing.T) {
	arm, amd := sample(t), sample(t)
	arm.Platform, amd.Platform = "linux/arm64", "linux/amd64"
	layout := filepath.Join(t.TempDir(), "layout")
	digests, err := ocitest.WriteLayout(layout, arm, amd)
	if err != nil {
		t.Fatal(err)
	}
	for i, arch := range []string{"arm64", "amd64"} {
		var got struct{ Architecture string }
		if err := json.Unmarshal(skopeo(t, "--override-arch", arch, "inspect", "oci:"+layout), &got); err != nil {
			t.Fatal(err)
		}
		if got.Architecture != arch {
			t.Errorf("image %s has architecture %q, want %q", digests[i], got.Architecture, arch)
		}
	}
}
