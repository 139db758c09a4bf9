package volar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// tarOf makes an archive of files, whose content is their name.
func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = io.WriteString(tw, h.Name)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestCopyOutOfHostileVM has a VM send other than what was asked for: only what
// the user named may come to be, and only where the user said.
func TestCopyOutOfHostileVM(t *testing.T) {
	for name, tc := range map[string]struct {
		path, dest string
		sent       []byte
		cut        error // in place of the end
		want       string
		status     int
	}{
		"as asked":                 {"/etc/hosts", "", tarOf(t, tar.Header{Name: "hosts"}), nil, "", exitOK},
		"another name":             {"/etc/hosts", "", tarOf(t, tar.Header{Name: ".bashrc"}), nil, `".bashrc" is not part of "hosts"`, exitFailed},
		"one more":                 {"/etc/hosts", "", tarOf(t, tar.Header{Name: "hosts"}, tar.Header{Name: ".bashrc"}), nil, `".bashrc" is not part`, exitFailed},
		"contents for a file":      {"/etc/hosts", "", tarOf(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "./.bashrc"}), nil, "is not part", exitFailed},
		"dots":                     {"/etc", "", tarOf(t, tar.Header{Name: "etc/../../f"}), nil, "leads out", exitFailed},
		"dots in contents":         {"/etc/.", "", tarOf(t, tar.Header{Name: "../f"}), nil, "leads out", exitFailed},
		"through a link":           {"/etc", "", tarOf(t, tar.Header{Name: "etc/l", Typeflag: tar.TypeSymlink, Linkname: "/"}, tar.Header{Name: "etc/l/f"}), nil, "in the way", exitFailed},
		"a link to elsewhere":      {"/etc", "", tarOf(t, tar.Header{Name: "etc/f", Typeflag: tar.TypeLink, Linkname: "/victim"}), nil, "absolute", exitFailed},
		"garbage":                  {"/etc", "", bytes.Repeat([]byte("garbage"), 1000), nil, "malformed", exitFailed},
		"nothing":                  {"/etc", "", nil, nil, "cut short", exitFailed},
		"without an end":           {"/etc/hosts", "", tarOf(t, tar.Header{Name: "hosts"})[:1024], nil, "cut short", exitFailed},
		"too much":                 {"/etc/hosts", "", append(tarOf(t, tar.Header{Name: "hosts"}), make([]byte, 4<<20)...), nil, "goes on after its end", exitFailed},
		"and then a reason":        {"/etc/hosts", "", tarOf(t, tar.Header{Name: "hosts"})[:600], api.Errorf(api.CodeConflict, "VM web: it became shorter"), "it became shorter", exitConflict},
		"whole, and then a reason": {"/etc/hosts", "", tarOf(t, tar.Header{Name: "hosts"}), api.Errorf(api.CodeConflict, "VM web: it became shorter"), "it became shorter", exitConflict},
		"and then nothing":         {"/etc/hosts", "", tarOf(t, tar.Header{Name: "hosts"})[:600], errors.New("gone"), "cut short", exitUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			svc := &httpapitest.Service{Files: t.TempDir()}
			if err := errors.Join(os.Mkdir(svc.Files+"/etc", 0o755), os.WriteFile(svc.Files+"/etc/hosts", nil, 0o644)); err != nil {
				t.Fatal(err)
			}
			svc.CopyFrom = func(api.File) io.ReadCloser {
				return io.NopCloser(io.MultiReader(bytes.NewReader(tc.sent), readerFunc(func([]byte) (int, error) {
					if tc.cut != nil {
						return 0, tc.cut
					}
					return 0, io.EOF
				})))
			}
			host := withVM(t, svc, false)
			base := t.TempDir()
			here := filepath.Join(base, "here")
			if err := os.Mkdir(here, 0o755); err != nil {
				t.Fatal(err)
			}
			status, _, stderr := run(t, "--host", host, "cp", "web:"+tc.path, here)
			if status != tc.status || !strings.Contains(stderr, tc.want) {
				t.Errorf("volar cp = %d, %q; want %d, %q", status, stderr, tc.status, tc.want)
			}
			if outside, err := os.ReadDir(base); err != nil || len(outside) != 1 {
				t.Errorf("beside the destination: %v, %v", outside, err)
			}
			entries, err := os.ReadDir(here)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != filepath.Base(strings.TrimSuffix(tc.path, "/.")) {
					t.Errorf("the folder holds %s", e.Name())
				}
			}
		})
	}
}

// TestCopyContentsOfHere copies ".", of which docker means what is in it.
func TestCopyContentsOfHere(t *testing.T) {
	svc := &httpapitest.Service{Files: t.TempDir()}
	host := withVM(t, svc, false)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, src := range []string{".", "./", "./."} {
		dst := "/" + strings.ReplaceAll(src, "/", "-")
		if status, _, stderr := run(t, "--host", host, "cp", src, "web:/new"+dst[1:]); status != exitOK {
			t.Fatalf("volar cp %s = %d, %s", src, status, stderr)
		}
		if info, err := os.Stat(svc.Files + "/new" + dst[1:] + "/f"); err != nil || info.Mode() != 0o640 {
			t.Errorf("volar cp %s: %v, %v", src, info, err)
		}
	}
}

// TestCopyTimes checks what is kept of files and links.
func TestCopyTimes(t *testing.T) {
	svc := &httpapitest.Service{Files: t.TempDir()}
	host := withVM(t, svc, false)
	when := unix.NsecToTimespec(time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC).UnixNano())
	if err := errors.Join(os.Mkdir(svc.Files+"/d", 0o751), os.WriteFile(svc.Files+"/d/f", nil, 0o604), os.Symlink("f", svc.Files+"/d/l"), os.Chmod(svc.Files+"/d/f", 0o604|os.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/d/f", "/d/l", "/d"} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, svc.Files+name, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	for _, keep := range []bool{false, true} {
		dst := filepath.Join(t.TempDir(), "d")
		args := []string{"--host", host, "cp", "web:/d", dst}
		want := map[string]os.FileMode{"": 0o751 | os.ModeDir, "/f": 0o604, "/l": 0o777 | os.ModeSymlink}
		if keep {
			args = append(args, "-a")
			want["/f"] |= os.ModeSetuid
		}
		if status, _, stderr := run(t, args...); status != exitOK {
			t.Fatalf("volar cp = %d, %s", status, stderr)
		}
		for name, mode := range want {
			info, err := os.Lstat(dst + name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != mode || info.ModTime().UnixNano() != when.Nano() {
				t.Errorf("keep %v: %s has %v and %v, want %v and %v", keep, name, info.Mode(), info.ModTime(), mode, when)
			}
		}
	}
}

// TestCopyInterrupted ends a copy in the middle of a file: nothing of it is left,
// at either end.
func TestCopyInterrupted(t *testing.T) {
	svc := &httpapitest.Service{Files: t.TempDir()}
	if err := os.WriteFile(svc.Files+"/f", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{}, 1)
	svc.CopyFrom = func(api.File) io.ReadCloser {
		var b bytes.Buffer
		_ = tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: 1 << 30})
		b.Write(make([]byte, 100<<10))
		r, w := io.Pipe()
		t.Cleanup(func() { w.Close() }) // before the server is to end
		go func() {
			_, _ = b.WriteTo(w)
			begun <- struct{}{}
		}()
		return r
	}
	host := withVM(t, svc, false)
	here := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	status := make(chan int, 1)
	copy := func(stdin io.Reader, args ...string) {
		status <- Main(ctx, append([]string{"--host", host, "cp"}, args...), stdin, io.Discard, io.Discard, "1.2.3")
	}
	go copy(nil, "web:/f", here)
	<-begun
	cancel()
	if got := <-status; got != exitInterrupted {
		t.Errorf("volar cp = %d, want %d", got, exitInterrupted)
	}
	if entries, err := os.ReadDir(here); err != nil || len(entries) != 0 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	defer w.Close()
	go copy(r, "-", "web:/")
	data := tarOf(t, tar.Header{Name: strings.Repeat("long", 20), Typeflag: tar.TypeReg, Size: 80})
	if _, err := w.Write(data[:550]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := <-status; got != exitInterrupted {
		t.Errorf("volar cp = %d, want %d", got, exitInterrupted)
	}
	for range 100 {
		if entries, err := os.ReadDir(svc.Files); err != nil || len(entries) == 1 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a half file is left in the VM")
}

// TestCopyProgress tells on a terminal how far it is, and clears the line.
func TestCopyProgress(t *testing.T) {
	svc := &httpapitest.Service{Files: t.TempDir()}
	host := withVM(t, svc, false)
	near, far := openTerminal(t)
	src := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(src, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	var stderr syncWriter
	go io.Copy(&stderr, near) //nolint:errcheck // ends with the terminal
	c := &cli{ctx: t.Context(), stdin: strings.NewReader(""), stdout: io.Discard, stderr: far, version: "1.2.3", now: noon, lookupEnv: os.LookupEnv}
	if status := c.run([]string{"--host", host, "cp", src, "web:/"}); status != exitOK {
		t.Fatalf("volar cp = %d", status)
	}
	for range 200 {
		if got := stderr.String(); strings.Contains(got, "copying "+src+": ") && strings.HasSuffix(got, eraseLine) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the terminal shows %q", stderr.String())
}
