package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/client/api"
)

func TestPull(t *testing.T) {
	addr, _ := startRegistry(t, registryConfig{})
	img := sample(t)
	dir, digests := layout(t, img)
	push(t, dir, img.Reference, addr+"/team/sample:1")
	reg := &oci.Registry{PlainHTTP: []string{addr}, UserAgent: "volant-test"}
	ctx := context.Background()

	t.Run("ok", func(t *testing.T) {
		ref := parse(t, addr+"/team/sample:1")
		staging := filepath.Join(t.TempDir(), "new")
		var steps []api.ImageProgress
		got, err := reg.Pull(ctx, ref, nil, oci.Options{Staging: staging, Progress: func(p api.ImageProgress) { steps = append(steps, p) }})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
		if got.ManifestDigest != digests[0] || got.ID() != digests[0] || !slices.Equal(got.References, []string{ref.String()}) {
			t.Errorf("Pull = %s %v, want %s [%s]", got.ManifestDigest, got.References, digests[0], ref)
		}
		if want := []string{"/cache", "/data"}; !slices.Equal(got.Config.Volumes, want) {
			t.Errorf("volumes = %v, want %v", got.Config.Volumes, want)
		}
		if want := []string{"443/tcp", "80/tcp"}; !slices.Equal(got.Config.ExposedPorts, want) {
			t.Errorf("ports = %v, want %v", got.Config.ExposedPorts, want)
		}
		if h := got.Config.Healthcheck; h == nil || h.Interval != time.Second || h.Retries != 2 || got.Config.StopSignal != "SIGQUIT" || got.Config.User != "app:app" {
			t.Errorf("config = %+v, want the one that was pushed", got.Config)
		}
		if len(steps) < 4 || steps[0].Step != "resolve" || steps[len(steps)-1].Done != steps[len(steps)-1].Total {
			t.Errorf("progress = %+v, want resolve, then layers to their end", steps)
		}
		noParts(t, staging)
		left, _ := filepath.Glob(filepath.Join(staging, "*"))
		if len(left) != 3 {
			t.Errorf("staging holds %v, want the three layers", left)
		}
	})

	t.Run("by digest", func(t *testing.T) {
		got, err := reg.Pull(ctx, parse(t, addr+"/team/sample@"+digests[0]), nil, oci.Options{Staging: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
	})

	t.Run("resolve", func(t *testing.T) {
		got, err := reg.Resolve(ctx, parse(t, addr+"/team/sample:1"), oci.Platform{}, nil)
		if err != nil || got.Digest != digests[0] || got.Size == 0 || !strings.Contains(got.MediaType, "manifest.v1") {
			t.Errorf("Resolve = %+v, %v; want %s", got, err, digests[0])
		}
	})

	t.Run("no tag", func(t *testing.T) {
		_, err := reg.Pull(ctx, parse(t, addr+"/team/sample:2"), nil, oci.Options{Staging: t.TempDir()})
		wantError(t, err, oci.ErrNotFound, "team/sample:2", "does not have it")
	})

	t.Run("no repository", func(t *testing.T) {
		_, err := reg.Resolve(ctx, parse(t, addr+"/nobody/nothing"), oci.Platform{}, nil)
		wantError(t, err, oci.ErrNotFound, "nobody/nothing")
	})

	t.Run("plain HTTP not named", func(t *testing.T) {
		_, err := new(oci.Registry).Resolve(ctx, parse(t, addr+"/team/sample:1"), oci.Platform{}, nil)
		wantError(t, err, oci.ErrUnavailable, "speaks plain HTTP", "plain-HTTP registries")
	})

	t.Run("staging in use", func(t *testing.T) {
		staging := t.TempDir()
		opts := oci.Options{Staging: staging}
		var inner error
		opts.Progress = func(p api.ImageProgress) {
			if p.Step == "resolve" {
				_, inner = reg.Pull(ctx, parse(t, addr+"/team/sample:1"), nil, oci.Options{Staging: staging})
			}
		}
		if _, err := reg.Pull(ctx, parse(t, addr+"/team/sample:1"), nil, opts); err != nil {
			t.Error(err)
		}
		wantError(t, inner, oci.ErrBusy, staging)
	})

	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		opts := oci.Options{Staging: t.TempDir(), Progress: func(api.ImageProgress) { cancel() }}
		if _, err := reg.Pull(ctx, parse(t, addr+"/team/sample:1"), nil, opts); !errors.Is(err, context.Canceled) {
			t.Errorf("Pull = %v, want context.Canceled", err)
		}
	})

	t.Run("mirror first, then the registry", func(t *testing.T) {
		mirror := startFake(t, dir)
		r := &oci.Registry{PlainHTTP: []string{addr, mirror.addr}, Mirrors: map[string][]string{addr: {mirror.addr + "/cache"}}}
		got, err := r.Pull(ctx, parse(t, addr+"/team/sample:1"), nil, oci.Options{Staging: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
		if n := len(mirror.log("/v2/cache/team/sample/blobs/")); n != 4 {
			t.Errorf("the mirror was asked for %d blobs, want 4: %v", n, mirror.log(""))
		}
	})

	t.Run("a mirror that lies", func(t *testing.T) {
		mirror := startFake(t, dir)
		mirror.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "sha256:") {
				w.Write([]byte(`{"schemaVersion":2}`))
				return true
			}
			return false
		}
		r := &oci.Registry{PlainHTTP: []string{addr, mirror.addr}, Mirrors: map[string][]string{addr: {mirror.addr}}}
		staging := t.TempDir()
		got, err := r.Pull(ctx, parse(t, addr+"/team/sample@"+digests[0]), nil, oci.Options{Staging: staging})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
		if len(mirror.log("manifests/sha256:")) != 1 {
			t.Errorf("the mirror was asked %v, want the manifest once", mirror.log(""))
		}
	})

	t.Run("a mirror that lies about layers", func(t *testing.T) {
		mirror := startFake(t, dir)
		mirror.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				w.Write(bytes.Repeat([]byte("x"), 100))
				return true
			}
			return false
		}
		r := &oci.Registry{PlainHTTP: []string{addr, mirror.addr}, Mirrors: map[string][]string{addr: {mirror.addr}}}
		r.Hurry(time.Millisecond)
		got, err := r.Pull(ctx, parse(t, addr+"/team/sample:1"), nil, oci.Options{Staging: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
	})

	t.Run("a mirror that is down", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		down := l.Addr().String()
		l.Close()
		r := &oci.Registry{PlainHTTP: []string{addr, down}, Mirrors: map[string][]string{addr: {down}}}
		if _, err := r.Pull(ctx, parse(t, addr+"/team/sample:1"), nil, oci.Options{Staging: t.TempDir()}); err != nil {
			t.Error(err)
		}
		_, err = r.Pull(ctx, parse(t, addr+"/team/nothing:1"), nil, oci.Options{Staging: t.TempDir()})
		wantError(t, err, oci.ErrNotFound, "mirror "+down, "connection refused")
		_, err = r.Resolve(ctx, parse(t, down+"/team/sample:1"), oci.Platform{}, nil)
		wantError(t, err, oci.ErrUnavailable, "connection refused")
	})
}

// wantError checks an error's kind and what it says.
func wantError(t *testing.T, err error, kind error, says ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error = %v, want one that is %q", err, kind)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error = %q, want it to say %q", err, s)
		}
	}
}

func TestPullLogin(t *testing.T) {
	addr, roots := startRegistry(t, registryConfig{login: true, tls: true})
	img := sample(t)
	dir, _ := layout(t, img)
	push(t, dir, img.Reference, addr+"/private:1")
	reg := &oci.Registry{RootCAs: roots}
	ref := parse(t, addr+"/private:1")
	ctx := context.Background()

	got, err := reg.Pull(ctx, ref, &api.RegistryAuth{Username: testUser, Password: testPassword}, oci.Options{Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, got, img)

	// A mirror is asked first, and never shown the credentials.
	mirror := startFake(t, t.TempDir())
	mirror.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("the mirror was sent credentials with %s", r.URL.Path)
		}
		if r.URL.Path == "/v2/" {
			w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
		return r.URL.Path == "/v2/"
	}
	mirrored := &oci.Registry{RootCAs: roots, PlainHTTP: []string{mirror.addr}, Mirrors: map[string][]string{addr: {mirror.addr}}}
	if _, err := mirrored.Resolve(ctx, ref, oci.Platform{}, &api.RegistryAuth{Username: testUser, Password: testPassword}); err != nil {
		t.Error(err)
	}
	if len(mirror.log("/manifests/")) != 1 {
		t.Errorf("the mirror was asked %v, want the manifest once", mirror.log(""))
	}

	_, err = reg.Resolve(ctx, ref, oci.Platform{}, &api.RegistryAuth{Username: testUser, Password: "wrong"})
	wantError(t, err, oci.ErrUnauthorized, "refuses these credentials", "docker login "+addr)
	if strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %q shows the password", err)
	}
	_, err = reg.Resolve(ctx, ref, oci.Platform{}, nil)
	wantError(t, err, oci.ErrUnauthorized, "docker login "+addr, "private or does not exist")
	_, err = new(oci.Registry).Resolve(ctx, ref, oci.Platform{}, nil)
	wantError(t, err, oci.ErrUnavailable, "certificate", "not trusted")
	_, err = (&oci.Registry{PlainHTTP: []string{addr}}).Resolve(ctx, ref, oci.Platform{}, nil)
	wantError(t, err, oci.ErrUnavailable)
}

// TestPullToken: a registry that sends us to a token server, with the scope of
// the repository, and credentials that go there and nowhere else.
func TestPullToken(t *testing.T) {
	img := sample(t)
	dir, _ := layout(t, img)
	f := startFake(t, dir)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			user, pass, _ := r.BasicAuth()
			if user != testUser || pass != testPassword || r.URL.Query().Get("scope") != "repository:team/app:pull" {
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"the-token"}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer the-token" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, f.addr))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	reg := &oci.Registry{PlainHTTP: []string{f.addr}}
	ref := parse(t, f.addr+"/team/app:1")
	got, err := reg.Pull(context.Background(), ref, &api.RegistryAuth{Username: testUser, Password: testPassword}, oci.Options{Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, got, img)
	_, err = reg.Resolve(context.Background(), ref, oci.Platform{}, nil)
	wantError(t, err, oci.ErrUnauthorized, "docker login")
}

func TestPullPlatform(t *testing.T) {
	addr, _ := startRegistry(t, registryConfig{})
	arm, ppc, own := sample(t), sample(t), sample(t)
	arm.Platform, ppc.Platform = "linux/arm/v6", "linux/ppc64le"
	own.Config.Cmd = []string{"own"}
	dir, digests := layout(t, arm, ppc, own)
	push(t, dir, own.Reference, addr+"/multi:1")
	foreign, _ := layout(t, arm, ppc)
	push(t, foreign, own.Reference, addr+"/foreign:1")
	single, _ := layout(t, ppc)
	push(t, single, own.Reference, addr+"/single:1")
	reg := &oci.Registry{PlainHTTP: []string{addr}}
	ctx := context.Background()

	got, err := reg.Pull(ctx, parse(t, addr+"/multi:1"), nil, oci.Options{Staging: t.TempDir()})
	if err != nil || got.ManifestDigest != digests[2] || got.Config.Cmd[0] != "own" || got.Platform != oci.ThisPlatform() {
		t.Fatalf("Pull = %+v, %v; want this machine's image, %s", got, err, digests[2])
	}
	want, err := oci.ParsePlatform("linux/arm/v7") // runs v6
	if err != nil {
		t.Fatal(err)
	}
	got, err = reg.Pull(ctx, parse(t, addr+"/multi:1"), nil, oci.Options{Staging: t.TempDir(), Platform: want})
	if err != nil || got.ManifestDigest != digests[0] {
		t.Errorf("Pull for %s = %+v, %v; want %s", want, got, err, digests[0])
	}
	if d, err := reg.Resolve(ctx, parse(t, addr+"/multi:1"), want, nil); err != nil || d.Digest != digests[0] {
		t.Errorf("Resolve for %s = %+v, %v; want %s", want, d, err, digests[0])
	}
	_, err = reg.Resolve(ctx, parse(t, addr+"/foreign:1"), oci.Platform{}, nil)
	wantError(t, err, oci.ErrPlatform, "this machine, "+oci.ThisPlatform().String(), "linux/arm/v6, linux/ppc64le")
	_, err = reg.Pull(ctx, parse(t, addr+"/single:1"), nil, oci.Options{Staging: t.TempDir()})
	wantError(t, err, oci.ErrPlatform, "linux/ppc64le")
}

// TestPullResumes: what was got before an interruption is not got again.
func TestPullResumes(t *testing.T) {
	img := sample(t)
	dir, _ := layout(t, img)
	f := startFake(t, dir)
	reg := &oci.Registry{PlainHTTP: []string{f.addr}}
	reg.Hurry(time.Millisecond)
	ref := parse(t, f.addr+"/app:1")
	var total int64
	for _, l := range blobSizes(t, dir) {
		total += l
	}

	// The connection breaks after 64 KiB of each answer.
	const piece = 64 << 10
	cut := func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		data, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", r.URL.Path[strings.LastIndex(r.URL.Path, ":")+1:]))
		if err != nil || len(data) <= piece {
			return false
		}
		var from int
		if s := r.Header.Get("Range"); s != "" {
			fmt.Sscanf(s, "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		n, _ := w.Write(data[from:min(len(data), from+piece)])
		f.bytes.Add(int64(n))
		return true
	}

	t.Run("in one pull", func(t *testing.T) {
		f.fault = cut
		f.bytes.Store(0)
		got, err := reg.Pull(context.Background(), ref, nil, oci.Options{Staging: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
		if n := f.bytes.Load(); n != total {
			t.Errorf("the registry sent %d bytes of blobs, want %d: each once", n, total)
		}
	})

	t.Run("in the next pull", func(t *testing.T) {
		staging := t.TempDir()
		f.bytes.Store(0)
		ctx, cancel := context.WithCancel(context.Background())
		f.fault = cut
		opts := oci.Options{Staging: staging, Progress: func(p api.ImageProgress) {
			if p.Step == "download" && p.Total > piece && p.Done > 0 && p.Done < p.Total {
				cancel()
			}
		}}
		if _, err := reg.Pull(ctx, ref, nil, opts); !errors.Is(err, context.Canceled) {
			t.Fatalf("Pull = %v, want it cancelled", err)
		}
		parts, _ := filepath.Glob(filepath.Join(staging, "*.blob.part"))
		var kept int64
		for _, name := range parts {
			if fi, err := os.Stat(name); err == nil {
				kept += fi.Size()
			}
		}
		if kept == 0 {
			t.Fatal("nothing was kept of the interrupted download")
		}
		f.fault = nil
		f.bytes.Store(0)
		got, err := reg.Pull(context.Background(), ref, nil, oci.Options{Staging: staging})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
		noParts(t, staging)
		if n := f.bytes.Load(); n > total-kept {
			t.Errorf("the second pull got %d bytes of %d, %d of which were there", n, total, kept)
		}
		if len(f.log("bytes=")) == 0 {
			t.Error("no range was asked for")
		}
	})

	t.Run("finished layers are not got again", func(t *testing.T) {
		staging := t.TempDir()
		f.fault = nil
		if _, err := reg.Pull(context.Background(), ref, nil, oci.Options{Staging: staging}); err != nil {
			t.Fatal(err)
		}
		before := len(f.log("/blobs/"))
		got, err := reg.Pull(context.Background(), ref, nil, oci.Options{Staging: staging})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
		if n := len(f.log("/blobs/")) - before; n != 1 {
			t.Errorf("the second pull asked for %d blobs, want the configuration alone", n)
		}
		// One that rotted on disk is.
		if err := os.WriteFile(got.Layers[0].Path, []byte("rot"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err = reg.Pull(context.Background(), ref, nil, oci.Options{Staging: staging}); err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
	})

	t.Run("a damaged beginning", func(t *testing.T) {
		staging := t.TempDir()
		for digest, size := range blobSizes(t, dir) {
			writeFile(t, filepath.Join(staging, digest+".blob.part"), bytes.Repeat([]byte("x"), int(size/2)))
		}
		got, err := reg.Pull(context.Background(), ref, nil, oci.Options{Staging: staging})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, got, img)
	})
}

// blobSizes lists the blobs of a layout that are layers or the configuration.
func blobSizes(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	sizes := map[string]int64{}
	entries, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data, []byte(`"schemaVersion"`)) {
			sizes[e.Name()] = int64(len(data))
		}
	}
	return sizes
}

func TestPullFaults(t *testing.T) {
	img := sample(t)
	dir, digests := layout(t, img)
	blob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	big := func(w http.ResponseWriter, r *http.Request) []byte { // the layer of noise, or nil
		data, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", r.URL.Path[strings.LastIndex(r.URL.Path, ":")+1:]))
		if !blob(r) || err != nil || len(data) < 64<<10 {
			return nil
		}
		return data
	}
	broken := 0
	for _, tt := range []struct {
		name  string
		ref   string // default "app:1"
		fault func(w http.ResponseWriter, r *http.Request) bool
		limit oci.Limits
		kind  error // nil: it succeeds all the same
		says  string
	}{
		{name: "truncated layer", kind: oci.ErrTruncated, says: "try again", fault: func(w http.ResponseWriter, r *http.Request) bool {
			data := big(w, r)
			if data != nil {
				w.Write(data[:len(data)/2]) // without saying how long it should be, and ranges ignored
			}
			return data != nil
		}},
		{name: "short layer", kind: oci.ErrTruncated, says: "damaged there", fault: func(w http.ResponseWriter, r *http.Request) bool {
			data := big(w, r)
			if data != nil {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)-1))
				w.Write(data[:len(data)-1])
			}
			return data != nil
		}},
		{name: "broken ranges", fault: func(w http.ResponseWriter, r *http.Request) bool {
			data := big(w, r)
			switch {
			case data == nil:
				return false
			case r.Header.Get("Range") != "":
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(data[5:])
			case broken == 0:
				broken++
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				w.Write(data[:1000])
			default:
				w.Write(data)
			}
			return true
		}},
		{name: "too long a layer", kind: oci.ErrDigest, says: "do not trust it", fault: func(w http.ResponseWriter, r *http.Request) bool {
			data := big(w, r)
			if data != nil {
				w.Write(append(slices.Clip(data), "more"...))
			}
			return data != nil
		}},
		{name: "another layer", kind: oci.ErrDigest, says: "do not trust it", fault: func(w http.ResponseWriter, r *http.Request) bool {
			data := big(w, r)
			if data != nil {
				w.Write(bytes.Repeat([]byte("x"), len(data)))
			}
			return data != nil
		}},
		{name: "another manifest", ref: "app@" + digests[0], kind: oci.ErrDigest, says: "do not trust it", fault: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Write([]byte(`{"schemaVersion":2,"manifests":[]}`))
				return true
			}
			return false
		}},
		{name: "errors that pass", fault: func() func(w http.ResponseWriter, r *http.Request) bool {
			seen := make(chan struct{}, 4)
			return func(w http.ResponseWriter, r *http.Request) bool {
				select {
				case seen <- struct{}{}:
					w.WriteHeader(http.StatusServiceUnavailable)
					return true
				default:
					return false
				}
			}
		}()},
		{name: "errors that stay", kind: oci.ErrUnavailable, says: "status 500", fault: func(w http.ResponseWriter, r *http.Request) bool {
			if blob(r) {
				w.WriteHeader(http.StatusInternalServerError)
			}
			return blob(r)
		}},
		{name: "too many requests", kind: oci.ErrUnavailable, says: "try again later", fault: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}},
		{name: "redirect without TLS", kind: oci.ErrUnavailable, says: "without TLS", fault: func(w http.ResponseWriter, r *http.Request) bool {
			if blob(r) {
				http.Redirect(w, r, "http://elsewhere.invalid/x", http.StatusTemporaryRedirect)
			}
			return blob(r)
		}},
		{name: "huge manifest", kind: oci.ErrLimit, says: "more than 1000 bytes", limit: oci.Limits{ManifestBytes: 1000}, fault: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Write(bytes.Repeat([]byte(" "), 5000))
				return true
			}
			return false
		}},
		{name: "hostile message", kind: oci.ErrNotFound, says: `\x1b[2J`, fault: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"\u001b[2J"}]}`)
				return true
			}
			return false
		}},
		{name: "layers over the limit", limit: oci.Limits{LayerBytes: 10000}, kind: oci.ErrLimit, says: "more than 10000 bytes"},
		{name: "image over the limit", limit: oci.Limits{TotalBytes: 200000}, kind: oci.ErrLimit, says: "more than 200000 bytes"},
		{name: "too many layers", limit: oci.Limits{Layers: 2}, kind: oci.ErrLimit, says: "3 layers"},
		{name: "configuration over the limit", limit: oci.Limits{ConfigBytes: 10}, kind: oci.ErrLimit, says: "configuration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := startFake(t, dir)
			f.fault = tt.fault
			reg := &oci.Registry{PlainHTTP: []string{f.addr}}
			reg.Hurry(time.Millisecond)
			if tt.ref == "" {
				tt.ref = "app:1"
			}
			staging := t.TempDir()
			got, err := reg.Pull(context.Background(), parse(t, f.addr+"/"+tt.ref), nil, oci.Options{Staging: staging, Limits: tt.limit})
			if tt.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				checkImage(t, got, img)
				return
			}
			wantError(t, err, tt.kind, tt.says)
			if parts, _ := filepath.Glob(filepath.Join(staging, "*.tar.part")); len(parts) > 0 {
				t.Errorf("left behind: %v", parts)
			}
			if tt.kind == oci.ErrDigest {
				noParts(t, staging)
			}
		})
	}
}

func TestPullBadImages(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*ocitest.Image)
		kind   error
		says   string
	}{
		{"wrong diff ID", func(i *ocitest.Image) { i.Layers[0].DiffID = digest }, oci.ErrDigest, "damaged"},
		{"foreign layer", func(i *ocitest.Image) {
			i.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}, oci.ErrInvalid, "not distributable"},
		{"encrypted layer", func(i *ocitest.Image) {
			i.Layers[0].MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
		}, oci.ErrInvalid, "not a layer of a container image"},
		{"bomb", func(i *ocitest.Image) {
			i.Layers[0].Tar = make([]byte, 80<<20)
			i.Layers[0].Compression = ocitest.Zstd
		}, oci.ErrLimit, "taken for a bomb"},
		{"damaged gzip", func(i *ocitest.Image) {
			i.Layers[0] = ocitest.Layer{Tar: []byte("\x1f\x8b\x08 this is not gzip data"), Compression: ocitest.None}
			i.Layers[0].DiffID = digest
		}, oci.ErrInvalid, "cannot be unpacked"},
		{"cut gzip", func(i *ocitest.Image) {
			i.Layers[0] = ocitest.Layer{Tar: []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01"), Compression: ocitest.None, DiffID: digest}
		}, oci.ErrTruncated, "ends too early"},
		{"xz", func(i *ocitest.Image) {
			i.Layers[0] = ocitest.Layer{Tar: []byte("\xfd7zXZ\x00\x00\x04"), Compression: ocitest.None, DiffID: digest}
		}, oci.ErrInvalid, "xz compression is not supported"},
		{"NUL in the environment", func(i *ocitest.Image) { i.Config.Env = []string{"A=\x00"} }, oci.ErrInvalid, "NUL byte"},
		{"creation time", func(i *ocitest.Image) { i.Created = "yesterday" }, oci.ErrInvalid, "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := sample(t)
			tt.change(&img)
			dir, _ := layout(t, img)
			f := startFake(t, dir)
			reg := &oci.Registry{PlainHTTP: []string{f.addr}}
			staging := t.TempDir()
			_, err := reg.Pull(context.Background(), parse(t, f.addr+"/app:1"), nil, oci.Options{Staging: staging})
			wantError(t, err, tt.kind, tt.says)
			if parts, _ := filepath.Glob(filepath.Join(staging, "*.tar.part")); len(parts) > 0 {
				t.Errorf("left behind: %v", parts)
			}
		})
	}
}

// TestPullDiskFull pulls onto a full disk: the error says which, and nothing
// half written is left on it.
func TestPullDiskFull(t *testing.T) {
	staging := smallDisk(t, 128<<10)
	img := sample(t)
	dir, _ := layout(t, img)
	f := startFake(t, dir)
	reg := &oci.Registry{PlainHTTP: []string{f.addr}}
	_, err := reg.Pull(context.Background(), parse(t, f.addr+"/app:1"), nil, oci.Options{Staging: staging})
	wantError(t, err, oci.ErrNoSpace, staging, "make room")
	noParts(t, staging)
}

func TestRegistryCheck(t *testing.T) {
	ok := oci.Registry{PlainHTTP: []string{"127.0.0.1:5000", "host"}, Mirrors: map[string][]string{"docker.io": {"mirror.example", "https://m.example:1/path/to"}}}
	if err := ok.Check(); err != nil {
		t.Errorf("Check = %v, want nil", err)
	}
	for _, bad := range []oci.Registry{
		{PlainHTTP: []string{"http://host"}},
		{Mirrors: map[string][]string{"docker.io": {"http://mirror.example"}}},
		{Mirrors: map[string][]string{"docker.io": {"mirror.example/../x"}}},
		{Mirrors: map[string][]string{"docker.io/x": nil}},
	} {
		if err := bad.Check(); err == nil {
			t.Errorf("Check of %+v = nil, want an error", bad)
		}
	}
}
