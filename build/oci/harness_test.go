package oci_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, need.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Credentials of a registry with login; the hash is bcrypt's, of the password.
const (
	testUser     = "tester"
	testPassword = "open-sesame"
	testHash     = "$2y$05$MxyrBfmP0H02qJdCucq4mOZVqLPzu3EqFcqFAaUDVElQLlldPCstO"
)

type registryConfig struct {
	login bool
	tls   bool
}

// startRegistry starts Debian's docker-registry on a loopback port and returns
// its address and, with TLS, the certificate it has.
func startRegistry(t *testing.T, c registryConfig) (addr string, roots *x509.CertPool) {
	t.Helper()
	bin := need.Tool(t, "docker-registry")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: %s/data\nhttp:\n  addr: %s\n", dir, addr)
	client := &http.Client{Timeout: time.Second}
	scheme := "http"
	if c.tls {
		cert, key := certificate(t)
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(cert)
		writeFile(t, filepath.Join(dir, "cert.pem"), cert)
		writeFile(t, filepath.Join(dir, "key.pem"), key)
		config += fmt.Sprintf("  tls:\n    certificate: %s/cert.pem\n    key: %s/key.pem\n", dir, dir)
		scheme = "https"
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	}
	if c.login {
		writeFile(t, filepath.Join(dir, "htpasswd"), []byte(testUser+":"+testHash+"\n"))
		config += fmt.Sprintf("auth:\n  htpasswd:\n    realm: test\n    path: %s/htpasswd\n", dir)
	}
	writeFile(t, filepath.Join(dir, "config.yml"), []byte(config))
	var log bytes.Buffer
	cmd := exec.Command(bin, "serve", filepath.Join(dir, "config.yml"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none", "PATH=" + os.Getenv("PATH")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("docker-registry: %s", log.String())
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get(scheme + "://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return addr, roots
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("docker-registry ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer: %v", err)
		}
	}
}

func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// sample is an image of three layers, each compressed in its own way.
func sample(t *testing.T) ocitest.Image {
	t.Helper()
	noise := make([]byte, 300<<10) // does not compress, and is the same each time
	mathrand.NewChaCha8([32]byte{1}).Read(noise)
	img, err := ocitest.FromFiles("docker.io/library/sample:1",
		[]ocitest.File{ocitest.Dir("etc", 0o755), ocitest.Regular("etc/motd", 0o644, "hello\n")},
		[]ocitest.File{ocitest.Regular("noise", 0o644, string(noise))},
		[]ocitest.File{ocitest.Whiteout("etc/motd"), ocitest.Symlink("motd", "noise")})
	if err != nil {
		t.Fatal(err)
	}
	img.Layers[1].Compression = ocitest.Zstd
	img.Layers[2].Compression = ocitest.None
	img.Config = api.ImageConfig{
		Entrypoint: []string{"/bin/server"}, Cmd: []string{"-v"}, Env: []string{"PATH=/bin", "A=b"}, WorkingDir: "/srv", User: "app:app",
		StopSignal: "SIGQUIT", Volumes: []string{"/data", "/cache"}, ExposedPorts: []string{"80/tcp", "443/tcp"}, Labels: map[string]string{"k": "v"},
		Healthcheck: &api.ImageHealthcheck{Test: []string{"CMD", "true"}, Interval: time.Second, Retries: 2},
	}
	return img
}

// layout writes images to a layout folder.
func layout(t *testing.T, images ...ocitest.Image) (dir string, digests []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "layout")
	digests, err := ocitest.WriteLayout(dir, images...)
	if err != nil {
		t.Fatal(err)
	}
	return dir, digests
}

// push copies an image of a layout to a registry with the stock tool.
func push(t *testing.T, dir, ref, to string) {
	t.Helper()
	run(t, "skopeo", "--insecure-policy", "copy", "-q", "--all", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds="+testUser+":"+testPassword,
		"oci:"+dir+":"+ref, "docker://"+to)
}

func parse(t *testing.T, s string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// checkImage compares what was got with what was made.
func checkImage(t *testing.T, got *oci.Image, want ocitest.Image) {
	t.Helper()
	if len(got.Layers) != len(want.Layers) {
		t.Fatalf("got %d layers, want %d", len(got.Layers), len(want.Layers))
	}
	for i, l := range got.Layers {
		r, err := l.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(data, want.Layers[i].Tar) {
			t.Errorf("layer %d has %d bytes, %v; want the %d that were made", i, len(data), err, len(want.Layers[i].Tar))
		}
	}
	if got.ConfigDigest == "" || got.Created.Year() != 2024 {
		t.Errorf("got config digest %q, created %v; want a digest and 2024", got.ConfigDigest, got.Created)
	}
}

// noParts checks that nothing half done is left in a staging folder.
func noParts(t *testing.T, staging string) {
	t.Helper()
	left, _ := filepath.Glob(filepath.Join(staging, "*.part"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// fake serves a layout folder as a registry, with faults. It is for what the
// real one cannot be made to do.
type fake struct {
	dir   string
	addr  string
	fault func(w http.ResponseWriter, r *http.Request) bool // true when it answered itself
	bytes atomic.Int64                                      // of blobs sent

	mu       sync.Mutex
	requests []string // method, path and range, in order
}

func startFake(t *testing.T, dir string) *fake {
	t.Helper()
	f := &fake{dir: dir}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.addr = s.Listener.Addr().String()
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
	f.mu.Unlock()
	if f.fault != nil && f.fault(w, r) {
		return
	}
	parts := strings.Split(r.URL.Path, "/")
	last := parts[len(parts)-1]
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/manifests/") && !strings.HasPrefix(last, "sha256:"):
		f.serveFile(w, r, "index.json", "application/vnd.oci.image.index.v1+json")
	case strings.Contains(r.URL.Path, "/manifests/"):
		f.serveFile(w, r, "blobs/sha256/"+strings.TrimPrefix(last, "sha256:"), "application/vnd.oci.image.manifest.v1+json")
	case strings.Contains(r.URL.Path, "/blobs/"):
		f.serveFile(&counter{w, f}, r, "blobs/sha256/"+strings.TrimPrefix(last, "sha256:"), "application/octet-stream")
	default:
		http.NotFound(w, r)
	}
}

func (f *fake) serveFile(w http.ResponseWriter, r *http.Request, name, mediaType string) {
	data, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// log returns the requests so far whose path contains s.
func (f *fake) log(s string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []string
	for _, r := range f.requests {
		if strings.Contains(r, s) {
			found = append(found, r)
		}
	}
	return found
}

type counter struct {
	http.ResponseWriter
	f *fake
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.f.bytes.Add(int64(n))
	return n, err
}

// smallDisk mounts a file system of size bytes, which only root can.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	need.Root(t, "to mount a small file system")
	dir := t.TempDir()
	if err := unix.Mount("volant-test", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// checkDiffID reads a layer and compares its digest with its name.
func checkDiffID(t *testing.T, l oci.LayerFile) {
	t.Helper()
	r, err := l.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		t.Fatal(err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != l.DiffID {
		t.Errorf("layer %s has digest %s", l.DiffID, got)
	}
}
