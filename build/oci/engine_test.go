package oci_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/testdata/need"
)

// startEngine answers as Docker's API does, at a Unix socket. It holds one
// image, under name.
func startEngine(t *testing.T, name string, archive []byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "volant-engine-*") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/images/", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/images/" + name + "/get":
			w.Header().Set("Content-Type", "application/x-tar")
			w.Write(archive)
		case "/images/broken/get":
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, `{"message":"no storage"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message":"No such image: `+r.URL.Path+`"}`)
		}
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return socket
}

func TestEngine(t *testing.T) {
	img := sample(t)
	data := forms(t, img)["docker"]
	const name = "localhost:5000/team/app@" + digest
	empty := startEngine(t, "none", nil)
	full := startEngine(t, name, data)
	nobody := filepath.Join(t.TempDir(), "s")
	ctx := context.Background()

	body, err := oci.Engine(ctx, []string{nobody, empty, full}, "docker://"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	images, err := oci.Load(ctx, body, oci.Options{Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, images[0], img)

	_, err = oci.Engine(ctx, []string{nobody, empty}, name)
	wantError(t, err, oci.ErrNotFound, "does not hold it", empty)
	_, err = oci.Engine(ctx, []string{nobody, empty}, "broken")
	wantError(t, err, oci.ErrInvalid, `"no storage"`)
	_, err = oci.Engine(ctx, []string{nobody}, name)
	wantError(t, err, oci.ErrUnavailable, "no Docker or Podman is running", nobody)
	for _, bad := range []string{"", "a/../../containers", "a b", "a?x=y", "a\n"} {
		_, err = oci.Engine(ctx, []string{full}, bad)
		wantError(t, err, oci.ErrReference)
	}

	cut := startEngine(t, "cut", data[:len(data)/2])
	body, err = oci.Engine(ctx, []string{cut}, "cut")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	_, err = oci.Load(ctx, body, oci.Options{Staging: t.TempDir()})
	wantError(t, err, oci.ErrTruncated)

	ctx, cancel := context.WithCancel(ctx)
	body, err = oci.Engine(ctx, []string{startEngine(t, "slow", bytes.Repeat(data, 10))}, "slow")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	cancel()
	if _, err := io.Copy(io.Discard, body); err == nil {
		t.Error("the stream went on after its context ended")
	}
}

func TestEngineSockets(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///my/docker.sock")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	want := []string{"/my/docker.sock", "/var/run/docker.sock", "/run/user/7/docker.sock", "/run/user/7/podman/podman.sock", "/run/podman/podman.sock"}
	if got := oci.EngineSockets(); !slices.Equal(got, want) {
		t.Errorf("EngineSockets() = %v, want %v", got, want)
	}
	t.Setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
	t.Setenv("XDG_RUNTIME_DIR", "")
	if got := oci.EngineSockets(); !slices.Equal(got, []string{"/var/run/docker.sock", "/run/podman/podman.sock"}) {
		t.Errorf("EngineSockets() = %v, want the system's two", got)
	}
}

// TestEnginePodman asks a real engine, which serves a store of the test's own
// and starts no container.
func TestEnginePodman(t *testing.T) {
	bin := need.Tool(t, "podman")
	need.Root(t, "without it podman wants a user namespace")
	dir, err := os.MkdirTemp("", "volant-podman-*") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("HOME", dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	global := []string{"--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	img := sample(t)
	img.Reference = "localhost/sample:1"
	img.Layers = img.Layers[1:2] // podman unpacks, and packs again by its own taste: one file is the same
	writeFile(t, dir+"/archive", forms(t, img)["docker"])
	run(t, "podman", append(global, "load", "-q", "-i", dir+"/archive")...)

	var log bytes.Buffer
	socket := dir + "/s"
	cmd := exec.Command(bin, append(global, "system", "service", "--time", "0", "unix://"+socket)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		if t.Failed() {
			t.Logf("podman: %s", log.String())
		}
	})
	ctx := context.Background()
	var body io.ReadCloser
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		body, err = oci.Engine(ctx, []string{socket}, "localhost/sample:1")
		if !errors.Is(err, oci.ErrUnavailable) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	images, err := oci.Load(ctx, body, oci.Options{Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, images[0], img)
	if got := images[0]; !slices.Equal(got.References, []string{img.Reference}) || !slices.Equal(got.Config.Env, img.Config.Env) || got.Config.User != img.Config.User {
		t.Errorf("got %v %+v, want %s as it was loaded", got.References, got.Config, img.Reference)
	}
	_, err = oci.Engine(ctx, []string{socket}, "localhost/other:1")
	wantError(t, err, oci.ErrNotFound, "does not hold it")
}
