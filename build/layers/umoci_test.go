package layers_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/layers/layertest"
	"github.com/volantvm/volant/testdata/need"
)

// layout writes an OCI image layout of uncompressed layers, tagged "t".
func layout(t *testing.T, dir string, stack [][]byte) {
	t.Helper()
	type m map[string]any
	blob := func(b []byte) (digest string, size int) {
		digest = fmt.Sprintf("%x", sha256.Sum256(b))
		write(t, filepath.Join(dir, "blobs/sha256", digest), b)
		return "sha256:" + digest, len(b)
	}
	object := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var diffIDs []string
	var descs []m
	for _, l := range stack {
		d, n := blob(l)
		diffIDs = append(diffIDs, d)
		descs = append(descs, m{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d, "size": n})
	}
	d, n := blob(object(m{"architecture": "amd64", "os": "linux", "config": m{}, "rootfs": m{"type": "layers", "diff_ids": diffIDs}}))
	d, n = blob(object(m{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": m{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": d, "size": n}, "layers": descs}))
	write(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write(t, filepath.Join(dir, "index.json"), object(m{"schemaVersion": 2, "manifests": []m{{
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": d, "size": n,
		"annotations": m{"org.opencontainers.image.ref.name": "t"}}}}))
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestLikeUmoci flattens random stacks of layers and compares every name and
// attribute with what umoci unpacks of the same image.
func TestLikeUmoci(t *testing.T) {
	need.Root(t, "to unpack owners and devices")
	need.Tool(t, "umoci")
	const seeds = 100
	entries := 0
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var tars [][]byte
			var stack []layers.Layer
			for _, l := range layertest.Random(seed) {
				b := layertest.Tar(t, l...)
				tars, stack = append(tars, b), append(stack, layertest.Layer(b))
			}
			tree, err := layers.Flatten(context.Background(), stack, layers.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			layout(t, filepath.Join(dir, "oci"), tars)
			unpacked := filepath.Join(dir, "rootfs")
			if out, err := exec.Command("umoci", "raw", "unpack", "--image", filepath.Join(dir, "oci")+":t", unpacked).CombinedOutput(); err != nil {
				t.Fatalf("umoci: %v\n%s", err, out)
			}
			host, err := layers.FromDir(context.Background(), unpacked, layers.HostOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			got, want := layertest.Dump(t, tree), layertest.Dump(t, host)
			if d := layertest.Diff(got, want); d != "" {
				t.Errorf("want as umoci has it:\n%s", d)
			}
			entries += strings.Count(got, "\n")
		})
	}
	t.Logf("%d files compared", entries)
}
