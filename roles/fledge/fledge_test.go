package fledge_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/roles/fledge"
	"github.com/volantvm/volant/testdata/need"
)

type outcome struct {
	status         int
	stdout, stderr string
}

func run(t *testing.T, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := fledge.Main(t.Context(), args, strings.NewReader(""), &stdout, &stderr, "1.2.3")
	return outcome{status, stdout.String(), stderr.String()}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

const recipe = `version = "1"
[mappings]
"app" = "/usr/bin/app"
[manifest]
name = "demo"
version = "7"
workload = { type = "exec", entrypoint = ["/usr/bin/app"] }
`

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args           []string
		status         int
		stdout, stderr string // parts
	}{
		{nil, 0, "Usage: fledge <command>", ""},
		{[]string{"--help"}, 0, "Usage: fledge <command>", ""},
		{[]string{"build", "--help"}, 0, "--config=FILE", ""},
		{[]string{"--version"}, 0, "fledge 1.2.3\n", ""},
		{[]string{"version"}, 0, "fledge 1.2.3\n", ""},
		{[]string{"build", "--version"}, 0, "fledge 1.2.3\n", ""},
		{[]string{"buld"}, 2, "", `did you mean "build"?`},
		{[]string{"build", "--nope"}, 2, "", "unknown flag --nope"},
		{[]string{"inspect"}, 2, "", "fledge: expected \"<file>\""},
		{[]string{"inspect", "x", "-o", "xml"}, 2, "", "must be one of"},
		{[]string{"build", "-c", "gone.toml"}, 1, "", "fledge: open gone.toml: no such file or directory\n"},
		{[]string{"build", "--help"}, 0, "--output-initramfs", ""},
		{[]string{"build", "--context", "."}, 2, "", "need a DOCKERFILE"},
		{[]string{"build", "other.toml"}, 2, "", "other.toml is a recipe: give it with -c"},
		{[]string{"build", "--build-arg", "A"}, 2, "", "--build-arg"},
		{[]string{"build", "--registry-mirror", "docker.io"}, 2, "", `registry mirror "docker.io" is not REGISTRY=MIRROR`},
		{[]string{"build", "--registry-mirror", "docker.io=http://x"}, 2, "", "write it without http://"},
		{[]string{"build", "--plain-http", "http://x"}, 2, "", "plain-HTTP registry"},
		{[]string{"build", "gone/Dockerfile"}, 1, "", "no such file"},
		{[]string{"inspect", "gone.cpio"}, 1, "", "no such file"},
		{[]string{"verify", "gone.json"}, 1, "", "no such file"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Chdir(t.TempDir())
			got := run(t, tt.args...)
			if got.status != tt.status || !strings.Contains(got.stdout, tt.stdout) || !strings.Contains(got.stderr, tt.stderr) {
				t.Errorf("fledge %q = %+v, want %+v", tt.args, got, tt)
			}
			if (tt.status == 0) != (got.stderr == "") || (tt.status == 0) != (got.stdout != "") {
				t.Errorf("fledge %q wrote to the wrong stream: %+v", tt.args, got)
			}
		})
	}
}

func TestBuildInspectVerify(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "fledge.toml", recipe)
	write(t, "app", "static")

	got := run(t, "build")
	if got.status != 0 {
		t.Fatalf("build = %+v", got)
	}
	lines := strings.Split(got.stdout, "\n")
	file, digest, _ := strings.Cut(lines[0], " ")
	if file != "demo.cpio" || !strings.HasPrefix(digest, "sha256:") || lines[1] != "demo.manifest.json" {
		t.Errorf("build printed %q", got.stdout)
	}
	for _, step := range []string{"recipe", "mappings", "libraries", "archive", "manifest"} {
		if !strings.Contains(got.stderr, step) {
			t.Errorf("progress lacks %s:\n%s", step, got.stderr)
		}
	}
	if quiet := run(t, "build", "-q", "-o", "other"); quiet.status != 0 || quiet.stderr != "" || !strings.HasPrefix(quiet.stdout, "other.cpio "+digest) {
		t.Errorf("build -q -o other = %+v, want the same digest and no progress", quiet)
	}

	got = run(t, "inspect", "demo.cpio")
	for _, want := range []string{
		"-rwxr-xr-x  1     0     0    6 usr/bin/app\n", "crw-------  1     0     0  5,1 dev/console\n", "drwxrwxrwt ",
		"segment 0: at byte 0, ", " none, ", digest,
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("inspect lacks %q:\n%s", want, got.stdout)
		}
	}

	got = run(t, "inspect", "-o", "json", "demo.cpio")
	var in struct {
		Digest   string `json:"digest"`
		Size     int64  `json:"size_bytes"`
		Segments []struct {
			Length      int64  `json:"length_bytes"`
			Compression string `json:"compression"`
			Entries     int    `json:"entries"`
		} `json:"segments"`
		Entries []struct{ Name, Mode, Device string } `json:"entries"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &in); err != nil {
		t.Fatalf("inspect -o json: %v\n%s", err, got.stdout)
	}
	if in.Digest != digest || len(in.Segments) != 1 || in.Segments[0].Length != in.Size || in.Segments[0].Entries != len(in.Entries) {
		t.Errorf("inspect -o json = %+v", in)
	}

	if got = run(t, "verify", "demo.manifest.json"); got.status != 0 || !strings.HasSuffix(got.stdout, digest+": ok\n") {
		t.Errorf("verify = %+v", got)
	}
	write(t, "demo.cpio", "changed")
	if got = run(t, "verify", "demo.manifest.json"); got.status != 1 || !strings.Contains(got.stderr, "demo.manifest.json:8: initramfs.checksum: demo.cpio has digest") {
		t.Errorf("verify of a changed artifact = %+v", got)
	}
	if got = run(t, "inspect", "demo.cpio"); got.status != 1 || !strings.Contains(got.stderr, "not a newc cpio archive") {
		t.Errorf("inspect of no archive = %+v", got)
	}
}

// TestInspectVerifyDisk reads a disk that another program made.
func TestInspectVerifyDisk(t *testing.T) {
	need.Tool(t, "mkfs.erofs")
	t.Chdir(t.TempDir())
	if err := os.Mkdir("tree", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "tree/app", "static")
	const uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	if out, err := exec.CommandContext(t.Context(), "mkfs.erofs", "-U", uuid, "app.img", "tree").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	disk, err := os.ReadFile("app.img")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(disk)
	digest := "sha256:" + hex.EncodeToString(sum[:])

	got := run(t, "inspect", "app.img")
	for _, want := range []string{"type         erofs\n", "block size   4096\n", "inodes       2\n", "uuid         " + uuid + "\n", digest} {
		if got.status != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("inspect lacks %q: %+v", want, got)
		}
	}
	got = run(t, "inspect", "-o", "json", "app.img")
	var in struct {
		Digest     string `json:"digest"`
		Size       int64  `json:"size_bytes"`
		Filesystem struct {
			Type   string `json:"type"`
			Inodes uint64 `json:"inodes"`
			UUID   string `json:"uuid"`
		} `json:"filesystem"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &in); err != nil || in.Digest != digest || in.Size != int64(len(disk)) || in.Filesystem.Type != "erofs" || in.Filesystem.UUID != uuid {
		t.Errorf("inspect -o json = %+v, %v", in, err)
	}

	manifest := func(digest string) {
		write(t, "app.manifest.json", `{"name": "app", "version": "1",
"rootfs": {
"url": "app.img",
"checksum": "`+digest+`"},
"resources": {"cpu_cores": 1, "memory_mb": 128}, "workload": {"type": "exec", "entrypoint": ["/app"]}}`)
	}
	manifest(digest)
	if got = run(t, "verify", "app.manifest.json"); got.status != 0 || !strings.Contains(got.stdout, "erofs of 2 inodes, "+digest+": ok\n") {
		t.Errorf("verify = %+v", got)
	}
	for _, tt := range []struct {
		name, content, want string
	}{
		{"truncated", string(disk[:len(disk)-1]), "fledge: app.manifest.json:3: rootfs.url: app.img: truncated: the erofs file system has "},
		{"no disk", "content", "fledge: app.manifest.json:3: rootfs.url: app.img: no erofs, ext4 or squashfs\n"},
	} {
		write(t, "app.img", tt.content)
		sum := sha256.Sum256([]byte(tt.content))
		manifest("sha256:" + hex.EncodeToString(sum[:]))
		if got = run(t, "verify", "app.manifest.json"); got.status != 1 || !strings.HasPrefix(got.stderr, tt.want) {
			t.Errorf("verify of a %s disk = %+v, want %q", tt.name, got, tt.want)
		}
	}
}

// TestBuildImage goes from a layout's image to a disk, and reads it.
func TestBuildImage(t *testing.T) {
	t.Chdir(t.TempDir())
	img, err := ocitest.FromFiles("docker.io/library/shop:2", []ocitest.File{ocitest.Regular("bin/shop", 0o755, "program")})
	if err != nil {
		t.Fatal(err)
	}
	img.Config.Cmd = []string{"/bin/shop"}
	digests, err := ocitest.WriteLayout("layout", img)
	if err != nil {
		t.Fatal(err)
	}
	write(t, "fledge.toml", "version = \"1\"\nstrategy = \"oci_rootfs\"\n[source]\nimage = \"oci:layout:shop:2\"\n")
	got := run(t, "build")
	first, _, _ := strings.Cut(got.stdout, "\n")
	file, digest, _ := strings.Cut(first, " ")
	if got.status != 0 || file != "shop.img" || !strings.HasSuffix(got.stdout, "\nshop.manifest.json\n") {
		t.Fatalf("build = %+v", got)
	}
	for _, want := range []string{"image ", digests[0], "disk ", "shop.img, 10 inodes"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("progress lacks %q:\n%s", want, got.stderr)
		}
	}
	if got = run(t, "inspect", file); got.status != 0 || !strings.Contains(got.stdout, "type         erofs\n") || !strings.Contains(got.stdout, digest) {
		t.Errorf("inspect = %+v", got)
	}
	if got = run(t, "verify", "shop.manifest.json"); got.status != 0 || !strings.HasSuffix(got.stdout, digest+": ok\n") {
		t.Errorf("verify = %+v", got)
	}
}

// TestBuildDockerfile builds as the documentation says, with buildah in a store
// of the test's own.
func TestBuildDockerfile(t *testing.T) {
	need.Tool(t, "buildah")
	need.Root(t, "for buildah")
	store := t.TempDir()
	write(t, filepath.Join(store, "storage.conf"), "[storage]\ndriver = \"vfs\"\ngraphroot = \""+store+"/root\"\nrunroot = \""+store+"/run\"\n")
	t.Setenv("CONTAINERS_STORAGE_CONF", filepath.Join(store, "storage.conf"))
	t.Setenv("BUILDAH_ISOLATION", "chroot")
	t.Chdir(t.TempDir())
	write(t, "app", "program")
	write(t, "Dockerfile", "FROM scratch AS base\nARG VERSION\nCOPY app /app\nENV VERSION=$VERSION\nCMD [\"/app\"]\nFROM base AS other\nCMD [\"/other\"]\n")

	got := run(t, "build", "./Dockerfile", "--context", ".", "--target", "base", "--build-arg", "VERSION=a=b;c", "--builder", "buildah", "-o", "web")
	if got.status != 0 || !strings.HasPrefix(got.stdout, "web.img sha256:") || !strings.Contains(got.stderr, "COPY app /app") || !strings.Contains(got.stderr, "built by buildah") {
		t.Fatalf("build = %+v", got)
	}
	b, err := os.ReadFile("web.manifest.json")
	if err != nil || !bytes.Contains(b, []byte(`"VERSION": "a=b;c"`)) || !bytes.Contains(b, []byte(`"/app"`)) {
		t.Errorf("manifest %s, %v", b, err)
	}
	got = run(t, "build", "Dockerfile", "--builder", "buildah", "--output-initramfs", "-q", "-o", "web", "--target", "base")
	if got.status != 0 || !strings.HasPrefix(got.stdout, "web.cpio sha256:") || got.stderr != "" {
		t.Errorf("build --output-initramfs = %+v", got)
	}
	if got = run(t, "inspect", "web.cpio"); !strings.Contains(got.stdout, " app\n") || !strings.Contains(got.stdout, " dev/console\n") {
		t.Errorf("inspect = %+v", got)
	}
	t.Setenv("PATH", t.TempDir())
	got = run(t, "build", "Dockerfile", "-q", "-o", "none")
	want := "fledge: Dockerfile: no builder of Dockerfiles works here: buildctl is not in PATH; docker is not in PATH; podman is not in PATH; buildah is not in PATH\nhint: install one of buildctl, docker, podman, buildah"
	if got.status != 1 || !strings.HasPrefix(got.stderr, want) {
		t.Errorf("build without a builder = %+v, want %q", got, want)
	}
}

func TestBuildErrors(t *testing.T) {
	t.Chdir(t.TempDir())
	if got := run(t, "build"); got.status != 1 || !strings.Contains(got.stderr, "fledge.toml: no such file or directory\nhint: run fledge build in the folder") {
		t.Errorf("build without a recipe = %+v", got)
	}
	write(t, "app", "static")
	for _, tt := range []struct{ name, recipe, want string }{
		{"unknown key", strings.Replace(recipe, "[mappings]", "[mapings]", 1), "fledge: fledge.toml:2: mapings: is not a known field; did you mean mappings?\n"},
		{"no image", "version = \"1\"\nstrategy = \"oci_rootfs\"\n", "fledge: fledge.toml: source: is missing: strategy oci_rootfs makes a disk of an image"},
		{"missing file", strings.Replace(recipe, `"app" =`, `"gone" =`, 1), "fledge: fledge.toml:3: mappings.gone: no such file or directory: gone\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(t, "fledge.toml", tt.recipe)
			if got := run(t, "build", "-q"); got.status != 1 || !strings.HasPrefix(got.stderr, tt.want) || got.stdout != "" {
				t.Errorf("build = %+v, want %q", got, tt.want)
			}
		})
	}
}

// TestHello builds the example appliance as the documentation says.
func TestHello(t *testing.T) {
	src, err := filepath.Abs("../../testdata/hello")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "hello"), ".")
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(src, "fledge.toml"))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	write(t, "fledge.toml", string(b))
	if got := run(t, "build"); got.status != 0 || !strings.HasPrefix(got.stdout, "hello.cpio sha256:") {
		t.Fatalf("build = %+v", got)
	}
	if got := run(t, "verify", "hello.manifest.json"); got.status != 0 {
		t.Errorf("verify = %+v", got)
	}
}

// TestProgressOfLongSteps waits for the line that says a step is still at it:
// the agent's download hangs until it has been printed.
func TestProgressOfLongSteps(t *testing.T) {
	t.Chdir(t.TempDir())
	announced := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-announced:
		case <-time.After(30 * time.Second):
		}
		http.NotFound(w, r)
	}))
	defer srv.Close()
	write(t, "app", "static")
	write(t, "fledge.toml", recipe+"[agent]\nsource_strategy = \"http\"\nurl = \""+srv.URL+"\"\nchecksum = \"sha256:"+strings.Repeat("0", 64)+"\"\n")
	pr, pw := io.Pipe()
	status := make(chan int, 1)
	go func() {
		status <- fledge.Main(t.Context(), []string{"build"}, strings.NewReader(""), io.Discard, pw, "1.2.3")
		pw.Close()
	}()
	var lines []string
	for sc := bufio.NewScanner(pr); sc.Scan(); {
		lines = append(lines, sc.Text())
		if strings.HasPrefix(sc.Text(), "agent") && strings.HasSuffix(sc.Text(), "working ...") {
			close(announced)
		}
	}
	if got := <-status; got != 1 || len(lines) != 3 || !strings.Contains(lines[2], "404 Not Found") {
		t.Errorf("status %d, stderr:\n%s", got, strings.Join(lines, "\n"))
	}
}
