package roles_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// tarOf makes a tar archive of files, which are executable, and directories,
// whose names end in a slash.
func tarOf(t testing.TB, files map[string]string, order ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range order {
		h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), Typeflag: tar.TypeReg}
		switch {
		case strings.HasSuffix(name, "/"):
			h.Typeflag = tar.TypeDir
		case strings.HasPrefix(files[name], "-> "):
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, strings.TrimPrefix(files[name], "-> "), 0
		}
		if name == "data/" {
			h.Uid, h.Gid, h.Mode = 33, 33, 0o750
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// saveImage writes an archive as docker save does, of an image with busybox and
// these volumes, and returns its path.
func saveImage(t testing.TB, name string, volumes ...string) string {
	t.Helper()
	busybox, err := os.ReadFile(need.File(t, "/bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	layer := tarOf(t, map[string]string{
		"bin/busybox": string(busybox), "bin/sh": "-> busybox", "data/first": "of the image\n",
		"etc/passwd": "root:x:0:0::/:/bin/sh\nwww:x:33:33::/data:/bin/sh\n", "etc/group": "root:x:0:\nwww:x:33:\n",
	}, "bin/", "bin/busybox", "bin/sh", "etc/", "etc/passwd", "etc/group", "data/", "data/first")
	declared := map[string]any{}
	for _, v := range volumes {
		declared[v] = struct{}{}
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
		"config": map[string]any{
			"Entrypoint": []string{"/bin/sh", "-c"}, "Cmd": []string{"echo nothing to do"}, "Env": []string{"PATH=/bin", "GREETING=hello"}, "WorkingDir": "/data",
			"Volumes": declared,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf(`[{"Config":"config.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, name)
	path := filepath.Join(t.TempDir(), "image.tar")
	archive := tarOf(t, map[string]string{"config.json": string(config), "layer.tar": string(layer), "manifest.json": manifest}, "config.json", "layer.tar", "manifest.json")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// fetch gets the body at a URL.
func fetch(url string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(body), err
}

// TestImageVM is the life of VMs made from an image: root, writable layer,
// volumes, ports, and what is left when they go.
func TestImageVM(t *testing.T) {
	h := newHost(t)
	h.start()
	h.volar("kernels", "import", os.Getenv("VOLANT_TEST_KERNEL"), "--name", "generic")
	h.volar("images", "load", saveImage(t, "busy:1", "/data"))
	if out := h.volar("images", "list", "-o", "name"); strings.TrimSpace(out) != "docker.io/library/busy:1" {
		t.Errorf("images list = %q", out)
	}

	t.Run("run to the end", func(t *testing.T) {
		r := h.try("run", "--rm", "-e", "WHO=world", "busy:1", `echo "$GREETING $WHO from $(pwd)"; cat first; exit 7`)
		if r.code != 7 || r.stdout != "hello world from /data\nof the image\n" {
			t.Errorf("run = status %d, %q, %q", r.code, r.stdout, r.stderr)
		}
		h.eventually(20*time.Second, "the VM's removal", func() error {
			if out := h.volar("vms", "list", "-o", "name"); out != "" {
				return fmt.Errorf("VMs %q", out)
			}
			return nil
		})
	})

	const server = `test -e /kept && echo again >>/kept || echo once >/kept; stat -c %u:%g:%a /data >/kept.data; exec busybox httpd -f -p 8080 -h /`
	t.Run("a disk of its own, a volume and a port", func(t *testing.T) {
		h.volar("run", "-d", "--name", "web", "-p", "8081:8080", "-v", "store:/data", "busy:1", server)
		vm := h.vm("web")
		if vm.Kernel != "generic" || len(vm.Ports) == 0 || vm.Image != "docker.io/library/busy:1" {
			t.Errorf("VM %+v", vm)
		}
		file := func(addr, path, want string) {
			t.Helper()
			h.eventually(30*time.Second, path+" from "+addr, func() error {
				body, err := fetch("http://" + addr + path)
				if err == nil && body != want {
					err = fmt.Errorf("%q, want %q", body, want)
				}
				return err
			})
		}
		file(vm.IPAddress+":8080", "/kept", "once\n")
		file("127.0.0.1:8081", "/data/first", "of the image\n") // the volume begins with what the image has
		file(vm.IPAddress+":8080", "/kept.data", "33:33:750\n")
		h.volar("vms", "restart", "web", "--wait=running")
		file(vm.IPAddress+":8080", "/kept", "once\nagain\n")

		if r := h.try("run", "--rm", "-v", "store:/data", "busy:1", "true"); r.code == 0 || !strings.Contains(r.stderr, "volume store is in use by VM web") {
			t.Errorf("second user of the volume = status %d, %q", r.code, r.stderr)
		}
		if r := h.try("images", "rm", "busy:1"); r.code == 0 || !strings.Contains(r.stderr, "web") {
			t.Errorf("removal of an image in use = status %d, %q", r.code, r.stderr)
		}
		h.volar("vms", "delete", "web", "--force")
		if r := h.try("run", "--rm", "-v", "store:/data", "busy:1", "cat first; echo more >second"); r.code != 0 || r.stdout != "of the image\n" {
			t.Errorf("volume after its VM = status %d, %q, %q", r.code, r.stdout, r.stderr)
		}
		if r := h.try("run", "--rm", "--read-only", "-v", "store:/data", "busy:1", "cat second; touch /x"); r.code == 0 || r.stdout != "more\n" || !strings.Contains(r.stderr, "ead-only") {
			t.Errorf("read-only root = status %d, %q, %q", r.code, r.stdout, r.stderr)
		}
		h.volar("volumes", "rm", "store")
	})

	t.Run("as an initramfs", func(t *testing.T) {
		h.volar("images", "load", saveImage(t, "busy:1", "/data"), "--initramfs")
		r := h.try("run", "--rm", "--initramfs", "busy:1", "cat first; busybox hostname")
		if r.code != 0 || r.stdout != "of the image\nbusy-1\n" {
			t.Errorf("run = status %d, %q, %q", r.code, r.stdout, r.stderr)
		}
	})

	h.eventually(20*time.Second, "the VMs' removal", func() error {
		if out := h.volar("vms", "list", "-o", "name"); out != "" {
			return fmt.Errorf("VMs %q", out)
		}
		return nil
	})
	h.volar("images", "rm", "busy:1")
	var left []api.Image
	if err := json.Unmarshal([]byte(h.volar("images", "list", "-o", "json")), &left); err != nil || len(left) != 0 {
		t.Errorf("images left: %+v, %v", left, err)
	}
	h.noLeaks()
}
