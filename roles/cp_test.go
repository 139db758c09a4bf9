package roles_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
)

// bigCopy is how much is streamed through a VM, in bytes: more than its memory.
const bigCopy = 144 << 20

// TestCopy copies files into a real VM and out of it.
func TestCopy(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	h.volar("vms", "create", "web", "--plugin", "tools", "--wait=healthy")
	c := h.client()
	in := func(cmd string) string {
		t.Helper()
		out, exit, err := execIn(t, c, script(cmd), nil)
		if err != nil || exit.Code != 0 {
			t.Fatalf("%s = %+v, %v: %s", cmd, exit, err, out)
		}
		return out
	}
	when := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	src := filepath.Join(t.TempDir(), "tree")
	data := make([]byte, 3<<20+7)
	_, _ = rand.Read(data) // never fails
	if err := errors.Join(os.MkdirAll(src+"/sub/empty", 0o755), os.WriteFile(src+"/sub/data", data, 0o640), os.Link(src+"/sub/data", src+"/again"),
		os.Symlink("sub/data", src+"/link"), os.WriteFile(src+"/exe", []byte("#!/bin/sh\necho ran\n"), 0o750), os.Chmod(src+"/sub", 0o711),
		os.Chtimes(src+"/sub/data", when, when)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(src+"/exe", 7, 8); err != nil {
			t.Fatal(err)
		}
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(data))

	t.Run("there and back", func(t *testing.T) {
		h.volar("cp", src, "web:/run/new")
		if got := in("busybox sha256sum </run/new/link; /run/new/exe; busybox stat -c '%a %u:%g %Y %h' /run/new/sub/data /run/new/sub /run/new/exe"); !strings.HasPrefix(got, sum) ||
			!strings.Contains(got, "ran\n") || !strings.Contains(got, fmt.Sprintf("640 0:0 %d 2", when.Unix())) || !strings.Contains(got, "711 0:0") || !strings.Contains(got, "750 0:0") {
			t.Errorf("the guest has %s", got)
		}
		h.volar("cp", "-a", src, "web:/run/new")
		if got := in("busybox stat -c %u:%g /run/new/tree/exe"); os.Geteuid() == 0 && got != "7:8\n" {
			t.Errorf("with -a the owner is %s", got)
		}
		back := filepath.Join(t.TempDir(), "back")
		h.volar("cp", "web:/run/new/tree", back)
		if out, err := exec.Command("diff", "-r", "--no-dereference", src, back).CombinedOutput(); err != nil {
			t.Errorf("what came back differs: %v\n%s", err, out)
		}
		info, err := os.Stat(back + "/again")
		if err != nil || info.Mode() != 0o640 || !info.ModTime().Equal(when) || info.Sys().(*syscall.Stat_t).Nlink != 2 {
			t.Errorf("the file that came back is %+v, %v", info, err)
		}
	})

	t.Run("tar streams", func(t *testing.T) {
		in("busybox mkdir /run/piped")
		stream, err := exec.Command("tar", "-C", filepath.Dir(src), "-cf", "-", "tree").Output()
		if err != nil {
			t.Fatal(err)
		}
		volar := exec.Command(os.Getenv(envBinary), "volar", "cp", "-", "web:/run/piped")
		volar.Env, volar.Stdin = append(os.Environ(), "VOLANT_HOST=unix://"+h.socket()), bytes.NewReader(stream)
		if out, err := volar.CombinedOutput(); err != nil {
			t.Fatalf("volar cp -: %v\n%s", err, out)
		}
		dst := t.TempDir()
		got := h.try("cp", "web:/run/piped/tree/.", "-")
		tarOut := exec.Command("tar", "-C", dst, "-xf", "-")
		tarOut.Stdin = strings.NewReader(got.stdout)
		if out, err := tarOut.CombinedOutput(); err != nil || got.code != 0 {
			t.Fatalf("%+v: tar: %v\n%s", got.stderr, err, out)
		}
		if out, err := exec.Command("diff", "-r", "--no-dereference", src, dst).CombinedOutput(); err != nil {
			t.Errorf("what came back differs: %v\n%s", err, out)
		}
	})

	t.Run("more than fits into memory", func(t *testing.T) {
		// A hole on one side and numbers on the other: the guest has 128 MiB.
		big := filepath.Join(t.TempDir(), "big")
		f, err := os.Create(big)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("the end"), bigCopy-7)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		h.volar("cp", big, "web:/run/big")
		up := time.Since(start)
		if got := in("busybox stat -c %s /run/big; busybox tail -c 7 /run/big"); got != fmt.Sprintf("%d\nthe end", bigCopy) {
			t.Errorf("the guest has %q", got)
		}
		start = time.Now()
		r, err := c.CopyFrom(t.Context(), "web", "/run/big", false)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		n, err := io.Copy(io.Discard, r)
		if err != nil || n < bigCopy {
			t.Errorf("%d bytes came back, %v", n, err)
		}
		t.Logf("%d MiB in %v in, %v out", bigCopy>>20, up, time.Since(start))
		if kib := rss(t, h.daemon.Process.Pid); kib > 64<<10 {
			t.Errorf("volantd has %.0f KiB resident after it", kib)
		}
		in("busybox rm /run/big")
	})

	t.Run("a file that grows and shrinks", func(t *testing.T) {
		s, err := c.Exec(t.Context(), "web", script("while :; do busybox truncate -s 9000000 /run/busy; busybox truncate -s 100 /run/busy; done"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		h.eventually(time.Minute, "the file is there", func() error { _, err := c.StatPath(t.Context(), "web", "/run/busy", false); return err })
		for range 20 {
			dst := t.TempDir()
			got := h.try("cp", "web:/run/busy", dst)
			entries, err := os.ReadDir(dst)
			if err != nil {
				t.Fatal(err)
			}
			if (got.code == 0) != (len(entries) == 1) || got.code != 0 && !strings.Contains(got.stderr, "became shorter") {
				t.Errorf("volar cp = %+v, and left %v", got, entries)
			}
		}
	})

	t.Run("refusals", func(t *testing.T) {
		in("busybox mkdir -p /run/trap; busybox ln -s /proc/1 /run/trap/proc; busybox ln -s / /run/trap/root")
		for _, tc := range []struct {
			args   []string
			status int
			stderr string
		}{
			{[]string{"cp", src, "web:/proc"}, 4, "the kernel's own"},
			{[]string{"cp", src, "web:/run/trap/proc"}, 4, "the kernel's own"},
			{[]string{"cp", src, "web:/dev/"}, 4, "the kernel's own"},
			{[]string{"cp", "web:/sys/kernel", t.TempDir()}, 4, "the kernel's own"},
			{[]string{"cp", "web:/none", t.TempDir()}, 3, `"/none": no such file`},
			{[]string{"cp", src + "/exe", "web:/none/x"}, 3, "there is no folder"},
		} {
			if got := h.try(tc.args...); got.code != tc.status || !strings.Contains(got.stderr, tc.stderr) {
				t.Errorf("volar %q = %+v, want status %d, %s", tc.args, got, tc.status, tc.stderr)
			}
		}
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := errors.Join(tw.WriteHeader(&tar.Header{Name: "root/etc/planted", Mode: 0o644}), tw.Close()); err != nil {
			t.Fatal(err)
		}
		if err := c.CopyTo(t.Context(), "web", "/run/trap", false, &b); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("through a link of the guest: %v, want conflict", err)
		}
		in("[ ! -e /etc/planted ]")
	})

	t.Run("a VM that goes", func(t *testing.T) {
		stopped := make(chan error, 1)
		r := readerFunc(func(p []byte) (int, error) { return len(p), nil }) // zeros without end
		var b bytes.Buffer
		if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "endless", Mode: 0o644, Size: 1 << 39}); err != nil {
			t.Fatal(err)
		}
		go func() { stopped <- c.CopyTo(t.Context(), "web", "/run", false, io.MultiReader(&b, r)) }()
		time.Sleep(time.Second)
		start := time.Now()
		h.volar("vms", "stop", "web")
		took := time.Since(start)
		if took > 30*time.Second {
			t.Errorf("the VM went after %v", took)
		}
		select {
		case err := <-stopped:
			if err == nil {
				t.Error("half a copy is taken for whole")
			}
			t.Logf("the VM went after %v; %v", took, err)
		case <-time.After(time.Minute):
			t.Error("the copy goes on without its VM")
		}
	})
	h.volar("vms", "delete", "web")
	h.noLeaks()
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
