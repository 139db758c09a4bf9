package dockerfile_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/build/dockerfile"
	"github.com/volantvm/volant/testdata/need"
)

// fake puts a script named name in front of PATH. It notes its argv, one word a
// line, in the file "argv" beside it, and then runs body.
func fake(t *testing.T, dir, name, body string) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\n{ printf '%%s\\n' %s \"$@\"; echo; } >>'%s/argv'\n%s\n", name, dir, body)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// onlyFakes makes PATH a new folder that holds what a script needs, so that the
// machine's own builders are not found.
func onlyFakes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, tool := range []string{"sh", "sleep"} {
		p, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(p, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return dir
}

// calls returns the command lines that the fakes were given.
func calls(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "argv"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for call := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n\n"), "\n\n") {
		out = append(out, strings.ReplaceAll(call, "\n", " "))
	}
	return out
}

// contextDir returns a build context with a Dockerfile.
func contextDir(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestArgv holds the command lines that each builder is given.
func TestArgv(t *testing.T) {
	const write = `case "$*" in *image.tar*) echo archive >image.tar;; esac`
	for _, tt := range []struct {
		builder string
		want    []string // {ctx}, {file} and {tag} stand for what differs
	}{
		{"buildctl", []string{
			"buildctl debug workers",
			"buildctl build --progress=plain --frontend=dockerfile.v0 --local=context={ctx} --local=dockerfile={dir} --opt=filename=Dockerfile" +
				" --opt=target=final --opt=build-arg:A=1 --opt=build-arg:B=two words --output=type=docker,dest=image.tar",
		}},
		{"docker", []string{
			"docker version --format={{.Server.Version}}",
			"docker buildx version",
			"docker buildx build --progress=plain --load --tag={tag} --file={file} --target=final --build-arg=A=1 --build-arg=B=two words {ctx}",
			"docker image save --output=image.tar {tag}",
			"docker image rm {tag}",
		}},
		{"podman", []string{
			"podman info",
			"podman build --format=docker --tag={tag} --file={file} --target=final --build-arg=A=1 --build-arg=B=two words {ctx}",
			"podman save --format=docker-archive --output=image.tar {tag}",
			"podman rmi {tag}",
		}},
		{"buildah", []string{
			"buildah info",
			"buildah build --format=docker --tag=docker-archive:image.tar --file={file} --target=final --build-arg=A=1 --build-arg=B=two words {ctx}",
		}},
	} {
		t.Run(tt.builder, func(t *testing.T) {
			bin, src, ctx, stage := onlyFakes(t), contextDir(t, "FROM scratch\n"), t.TempDir(), t.TempDir()
			fake(t, bin, tt.builder, write)
			spec := dockerfile.Spec{File: filepath.Join(src, "Dockerfile"), Context: ctx, Target: "final", Args: map[string]string{"B": "two words", "A": "1"}}
			archive, name, err := dockerfile.Build(t.Context(), spec, stage, dockerfile.Options{})
			if err != nil || name != tt.builder || archive != filepath.Join(stage, "image.tar") {
				t.Fatalf("Build = %q, %q, %v; want the archive in %s by %s", archive, name, err, stage, tt.builder)
			}
			got := calls(t, bin)
			tag := ""
			for i, call := range got {
				if at := strings.Index(call, "localhost/fledge:"); at >= 0 {
					if words := strings.Fields(call[at:])[0]; tag == "" {
						tag = words
					}
					call = strings.ReplaceAll(call, tag, "{tag}")
				}
				call = strings.ReplaceAll(call, filepath.Join(src, "Dockerfile"), "{file}")
				got[i] = strings.ReplaceAll(strings.ReplaceAll(call, ctx, "{ctx}"), src, "{dir}")
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("ran\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestChoice(t *testing.T) {
	const works = `case "$*" in *image.tar*) echo archive >image.tar;; esac`
	broken := func(why string) string { return "echo " + why + " >&2; exit 3" }
	for _, tt := range []struct {
		name   string
		fakes  map[string]string
		forced string
		want   string // the builder; empty: an error
		passed []string
		err    []string
	}{
		{"the first", map[string]string{"buildctl": works, "docker": works, "podman": works, "buildah": works}, "", "buildctl", nil, nil},
		{"the last", map[string]string{"buildah": works}, "", "buildah", nil, nil},
		{"no daemon", map[string]string{"docker": broken("Cannot connect"), "podman": works}, "", "podman", []string{"docker: exit status 3: Cannot connect"}, nil},
		{"no buildx", map[string]string{"docker": `[ "$1" = version ] || { echo "no such command: buildx"; exit 1; }`, "buildah": works}, "",
			"buildah", []string{"docker: exit status 1: no such command: buildx"}, nil},
		{"forced", map[string]string{"buildctl": works, "buildah": works}, "buildah", "buildah", nil, nil},
		{"forced and broken", map[string]string{"docker": broken("gone"), "buildah": works}, "docker", "", nil, []string{"no builder of Dockerfiles works here: docker: exit status 3: gone"}},
		{"forced and unknown", nil, "kaniko", "", nil, []string{`builder "kaniko" is not known; give one of buildctl, docker, podman, buildah`}},
		{"none", nil, "", "", nil, []string{"buildctl is not in PATH; docker is not in PATH; podman is not in PATH; buildah is not in PATH"}},
		{"fails", map[string]string{"buildah": `[ "$1" = info ] || { echo STEP 1; echo "COPY: no such file"; exit 125; }`}, "", "", nil, []string{"buildah: exit status 125: COPY: no such file"}},
		{"writes nothing", map[string]string{"buildah": "true"}, "", "", nil, []string{"buildah ended well but wrote no image"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bin, src := onlyFakes(t), contextDir(t, "FROM scratch\n")
			for name, body := range tt.fakes {
				fake(t, bin, name, body)
			}
			var passed []string
			_, got, err := dockerfile.Build(t.Context(), dockerfile.Spec{File: filepath.Join(src, "Dockerfile")}, t.TempDir(),
				dockerfile.Options{Builder: tt.forced, Passed: func(s string) { passed = append(passed, s) }})
			if got != tt.want || (err == nil) != (tt.want != "") || !slices.Equal(passed, tt.passed) {
				t.Errorf("Build = %q, %v, passed over %q; want %q, passed over %q", got, err, passed, tt.want, tt.passed)
			}
			for _, part := range tt.err {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("Build = %v, want %q", err, part)
				}
			}
			if tt.name == "none" && !errors.Is(err, dockerfile.ErrNoBuilder) {
				t.Errorf("Build = %v, want ErrNoBuilder", err)
			}
		})
	}
}

// TestUndoneAfterFailure wants the builder's store emptied when saving failed.
func TestUndoneAfterFailure(t *testing.T) {
	bin, src := onlyFakes(t), contextDir(t, "FROM scratch\n")
	fake(t, bin, "podman", `[ "$1" != save ] || { echo "no space left on device"; exit 1; }`)
	_, _, err := dockerfile.Build(t.Context(), dockerfile.Spec{File: filepath.Join(src, "Dockerfile")}, t.TempDir(), dockerfile.Options{})
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("Build = %v, want what save said", err)
	}
	if got := calls(t, bin); !strings.HasPrefix(got[len(got)-1], "podman rmi localhost/fledge:") {
		t.Errorf("the last command is %q, want the image's removal", got[len(got)-1])
	}
}

func TestBadSpecs(t *testing.T) {
	dir := contextDir(t, "FROM scratch\n")
	file := filepath.Join(dir, "Dockerfile")
	for name, tt := range map[string]struct {
		spec dockerfile.Spec
		want string
	}{
		"no file":        {dockerfile.Spec{File: filepath.Join(dir, "gone")}, "no such file"},
		"a folder":       {dockerfile.Spec{File: dir}, "is not a file: name the Dockerfile"},
		"no context":     {dockerfile.Spec{File: file, Context: filepath.Join(dir, "gone")}, "build context: "},
		"context a file": {dockerfile.Spec{File: file, Context: file}, "is not a directory"},
		"argument name":  {dockerfile.Spec{File: file, Args: map[string]string{"A=B": "x"}}, `build argument "A=B" is not a name`},
		"argument value": {dockerfile.Spec{File: file, Args: map[string]string{"A": "\x00"}}, `build argument "A"`},
		"target":         {dockerfile.Spec{File: file, Target: "a\x00b"}, "holds a NUL byte"},
	} {
		if _, _, err := dockerfile.Build(t.Context(), tt.spec, t.TempDir(), dockerfile.Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Build = %v, want %q", name, err, tt.want)
		}
	}
}

// TestCancel wants the builder and what it started to end with the context.
func TestCancel(t *testing.T) {
	bin, src := onlyFakes(t), contextDir(t, "FROM scratch\n")
	// The child ignores the polite signal, as a build step may.
	fake(t, bin, "buildah", `[ "$1" = info ] && exit
sh -c 'trap "" TERM; echo "child $$"; exec sleep 600' &
wait`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	child := 0
	_, _, err := dockerfile.Build(ctx, dockerfile.Spec{File: filepath.Join(src, "Dockerfile")}, t.TempDir(), dockerfile.Options{
		Output: func(line string) {
			if pid, ok := strings.CutPrefix(line, "child "); ok {
				child, _ = strconv.Atoi(pid)
				cancel()
			}
		},
	})
	if !errors.Is(err, context.Canceled) || child == 0 {
		t.Fatalf("Build = %v, child %d; want Canceled", err, child)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(child, syscall.SIGKILL)
			t.Fatalf("process %d still runs: %s", child, state)
		}
	}
}

// TestOutput wants lines without what would act on a terminal, long ones in parts.
func TestOutput(t *testing.T) {
	bin, src := onlyFakes(t), contextDir(t, "FROM scratch\n")
	fake(t, bin, "buildah", `[ "$1" = info ] && exit
printf 'one\r\ntwo\033[2J\n\n\nthree'
i=0; while [ $i -lt 600 ]; do printf 0123456789; i=$((i+1)); done
echo archive >image.tar`)
	var lines []string
	_, _, err := dockerfile.Build(t.Context(), dockerfile.Spec{File: filepath.Join(src, "Dockerfile")}, t.TempDir(),
		dockerfile.Options{Output: func(l string) { lines = append(lines, l) }})
	if err != nil {
		t.Fatal(err)
	}
	long := "three" + strings.Repeat("0123456789", 600)
	want := []string{"one", "two[2J", long[:4096], long[4096:]}
	if !slices.Equal(lines, want) {
		t.Errorf("lines %q, want %q", lines, want)
	}
}

// TestBuildah builds two stages with the real buildah, in a store of the test's
// own, and without network.
func TestBuildah(t *testing.T) {
	need.Tool(t, "buildah")
	need.Root(t, "for buildah")
	store := t.TempDir()
	conf := filepath.Join(store, "storage.conf")
	text := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(store, "root"), filepath.Join(store, "run"))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", conf)
	t.Setenv("BUILDAH_ISOLATION", "chroot")
	dir := contextDir(t, "FROM scratch AS base\nARG WHO=nobody\nCOPY file /etc/file\nENV WHO=$WHO\n"+
		"FROM base AS final\nHEALTHCHECK CMD [\"/bin/probe\"]\nENTRYPOINT [\"/bin/app\"]\nFROM base\n")
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	stage := t.TempDir()
	spec := dockerfile.Spec{File: filepath.Join(dir, "Dockerfile"), Target: "final", Args: map[string]string{"WHO": "a reader"}}
	archive, _, err := dockerfile.Build(t.Context(), spec, stage, dockerfile.Options{Builder: "buildah", Output: func(l string) { t.Log(l) }})
	if err != nil {
		t.Fatal(err)
	}
	var manifest []struct {
		Config string
		Layers []string
	}
	readJSON(t, archive, "manifest.json", &manifest)
	if len(manifest) != 1 || len(manifest[0].Layers) == 0 {
		t.Fatalf("manifest.json = %+v, want one image with layers", manifest)
	}
	var image struct {
		Config struct {
			Env, Entrypoint []string
			Healthcheck     struct{ Test []string }
		} `json:"config"`
	}
	readJSON(t, archive, manifest[0].Config, &image)
	c := image.Config
	if !slices.Contains(c.Env, "WHO=a reader") || !slices.Equal(c.Entrypoint, []string{"/bin/app"}) || !slices.Equal(c.Healthcheck.Test, []string{"CMD", "/bin/probe"}) {
		t.Errorf("the image's configuration is %+v", c)
	}
	if left, err := os.ReadDir(stage); err != nil || len(left) != 1 {
		t.Errorf("the folder holds %v, %v; want the archive alone", left, err)
	}
}

// readJSON decodes a member of a tar archive.
func readJSON(t *testing.T, archive, name string, v any) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			t.Fatalf("%s has no %s", archive, name)
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != name {
			continue
		}
		if err := json.NewDecoder(r).Decode(v); err != nil {
			t.Fatal(err)
		}
		return
	}
}
