package volar

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/volantvm/volant/build/oci/ocitest"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
	"github.com/volantvm/volant/testdata/need"
)

var update = flag.Bool("update", false, "rewrite the expected output in scripts")

// noon is the time of volar in scripts, an hour after the daemon's.
func noon() time.Time { return time.Date(2026, 11, 1, 13, 0, 0, 0, time.UTC) }

// TestScripts runs testdata/script. Each script has a daemon of its own, whose
// VMs behave as their names say: a VM called slow never gets ready, one called
// bad crashes, one called weak never gets healthy, one called sick is unhealthy,
// one called doomed is in a crash loop, one called later waits for another. Its user is logged in to
// private.example. The files of every VM are those in root. Commands beyond testscript's:
//
//	volar ARGS...      run volar, with the file stdin ($WORK expanded) as input;
//	                   it must succeed unless ! stands in front
//	status N           the last volar's exit status was N
//	boot VM OUTCOME    let slow get on, see httpapitest.Service.Advance
//	request            print the last request for a VM, as JSON
//	image KIND PATH REFERENCE...
//	                   write images as a layout, archive or docker archive
//	pulls              print what was asked of registries
func TestScripts(t *testing.T) {
	login := t.TempDir()
	if err := os.WriteFile(filepath.Join(login, "config.json"), []byte(`{"auths": {"private.example": {"auth": "bWU6c2VjcmV0"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", login)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			svc := &httpapitest.Service{
				Files: filepath.Join(env.WorkDir, "root"), // of VMs
				Boot:  map[string]string{"slow": "starting", "bad": "the workload exited with status 3", "weak": "running", "sick": "unhealthy", "doomed": "loop", "later": "waiting"},
				Logs: []api.LogEntry{
					{Seq: 1, Time: noon(), Stream: "stdout", Line: "hello"}, {Seq: 2, Time: noon(), Stream: "stderr", Line: "<world>"},
					{Seq: 3, Time: noon(), Stream: "console", Line: "Linux version 6.12"},
				},
			}
			files := httpServer(env.WorkDir)
			env.Defer(files.close)
			env.Setenv("WEB", files.url)
			socket := filepath.Join(env.WorkDir, "v.sock")
			if len(socket) > 100 {
				dir, err := os.MkdirTemp("", "volar-test-*")
				if err != nil {
					return err
				}
				env.Defer(func() { os.RemoveAll(dir) })
				socket = filepath.Join(dir, "v.sock")
			}
			ctx, cancel := context.WithCancel(context.Background())
			ln, err := httpapi.Listen(ctx, socket)
			if err != nil {
				cancel()
				return err
			}
			done := make(chan error, 1)
			daemon := newFakeDaemon(svc)
			server := &http.Server{Handler: daemon, BaseContext: func(net.Listener) context.Context { return ctx }}
			go func() { done <- server.Serve(ln) }()
			env.Defer(func() { cancel(); server.Close(); <-done })
			env.Values["daemon"] = daemon
			env.Setenv("HOST", "unix://"+socket)
			env.Values["service"] = svc
			env.Values["status"] = new(int)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"volar": func(ts *testscript.TestScript, neg bool, args []string) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				c := &cli{
					ctx: ctx, stdin: strings.NewReader(strings.ReplaceAll(ts.ReadFile("stdin"), "$WORK", ts.Getenv("WORK"))), stdout: ts.Stdout(), stderr: ts.Stderr(),
					version: "1.2.3", now: noon, progressAfter: 300 * time.Millisecond,
					lookupEnv: func(name string) (string, bool) { v := ts.Getenv(name); return v, v != "" },
					notify:    func(chan<- os.Signal) func() { return func() {} },
				}
				status := c.run(append([]string{"--host", ts.Getenv("HOST")}, args...))
				*ts.Value("status").(*int) = status
				if (status != 0) != neg {
					ts.Fatalf("volar %q exits with %d", args, status)
				}
			},
			"status": func(ts *testscript.TestScript, neg bool, args []string) {
				if got := *ts.Value("status").(*int); strconv.Itoa(got) != args[0] {
					ts.Fatalf("exit status %d, want %s", got, args[0])
				}
			},
			"request": func(ts *testscript.TestScript, neg bool, args []string) {
				req := ts.Value("daemon").(*fakeDaemon).request()
				for i := range req.Volumes {
					if v := &req.Volumes[i]; v.Blob != "" {
						v.Blob = "DIGEST" // depends on when the script was unpacked
					}
				}
				ts.Check(writeJSON(ts.Stdout(), req))
			},
			"image": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(writeImages(ts, args[0], ts.MkAbs(args[1]), args[2:]))
			},
			"pulls": func(ts *testscript.TestScript, neg bool, args []string) {
				d := ts.Value("daemon").(*fakeDaemon)
				d.mu.Lock()
				defer d.mu.Unlock()
				for _, p := range d.pulls {
					ts.Check(writeJSON(ts.Stdout(), p))
				}
			},
			"boot": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("service").(*httpapitest.Service).Advance(args[0], args[1])
			},
		},
	})
}

// writeImages writes an image for each reference ("-" for one without).
func writeImages(ts *testscript.TestScript, kind, path string, references []string) error {
	var images []ocitest.Image
	for _, ref := range references {
		img, err := ocitest.FromFiles(strings.TrimSuffix(ref, "-"), []ocitest.File{ocitest.Regular("etc/name", 0o644, ref)})
		if err != nil {
			return err
		}
		images = append(images, img)
	}
	if kind == "layout" {
		_, err := ocitest.WriteLayout(path, images...)
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if kind == "docker" {
		_, err = ocitest.WriteDocker(f, images...)
	} else {
		_, err = ocitest.WriteArchive(f, images...)
	}
	return errors.Join(err, f.Close())
}

type fileServer struct {
	url   string
	close func()
}

// httpServer serves dir on the loopback interface.
func httpServer(dir string) fileServer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go func() { _ = srv.Serve(ln) }()
	return fileServer{"http://" + ln.Addr().String(), func() { srv.Close() }}
}

// run calls Main as a program would and returns its exit status and output.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = Main(t.Context(), args, strings.NewReader(""), &out, &errOut, "1.2.3")
	return status, out.String(), errOut.String()
}

// TestNothingElse checks that --version and --help do only that, with a host
// that would fail whatever spoke to it.
func TestNothingElse(t *testing.T) {
	t.Setenv("VOLANT_HOST", "http://not.an.address")
	for _, args := range [][]string{
		{"--version"}, {"vms", "--version"}, {"--help"}, {}, {"vms", "--help"}, {"vms", "create", "--help"}, {"plugins", "install", "x", "--help"},
		{"vms", "delete", "--help", "a"}, {"completion", "bash", "--help"}, {"version", "--help"},
	} {
		status, stdout, stderr := run(t, args...)
		if status != 0 || stdout == "" || stderr != "" {
			t.Errorf("volar %q = %d, stdout %q, stderr %q; want 0 and only stdout", args, status, stdout, stderr)
		}
	}
	if _, stdout, _ := run(t, "--version"); stdout != "volar 1.2.3\n" {
		t.Errorf("--version prints %q", stdout)
	}
}

// TestHost checks where the address comes from.
func TestHost(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ host, base, flag, want string }{
		{"", "", "", api.DefaultSocket},
		{"unix://" + dir + "/a", "", "", dir + "/a"},
		{"unix://" + dir + "/a", "unix://" + dir + "/b", "", dir + "/a"},
		{"", "unix://" + dir + "/b", "", dir + "/b"},
		{"unix://" + dir + "/a", "", dir + "/c", dir + "/c"},
	} {
		t.Setenv("VOLANT_HOST", c.host)
		t.Setenv("VOLANT_API_BASE", c.base)
		args := []string{"system", "info"}
		if c.flag != "" {
			args = append(args, "--host", c.flag)
		}
		if c.want == api.DefaultSocket {
			if _, err := os.Stat(c.want); err == nil {
				t.Logf("there is a daemon on %s; the default is not tried", c.want)
				continue
			}
		}
		status, _, stderr := run(t, args...)
		if status != exitUnavailable || !strings.Contains(stderr, c.want) {
			t.Errorf("%+v: status %d, stderr %q", c, status, stderr)
		}
	}
	t.Setenv("VOLANT_HOST", "")
	if status, _, stderr := run(t, "-a", dir+"/d", "ps"); status != exitUnavailable || !strings.Contains(stderr, dir+"/d") {
		t.Errorf("-a: status %d, stderr %q", status, stderr)
	}
	t.Setenv("VOLANT_HOST", "http://127.0.0.1:7777")
	if status, _, stderr := run(t, "ps"); status != exitUsage || !strings.Contains(stderr, "hint: give unix:///path") {
		t.Errorf("an http host: status %d, stderr %q", status, stderr)
	}
}

// TestInterrupt checks that following ends with the context, and its status.
func TestInterrupt(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := httpapi.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- httpapi.New(httpapi.Config{Service: &httpapitest.Service{}, Version: "2.0.0"}).Serve(ctx, ln)
	}()
	defer func() { cancel(); <-done }()
	followed, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	interrupted, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	context.AfterFunc(followed, interrupt)
	var out, errOut bytes.Buffer
	status := Main(interrupted, []string{"--host", socket, "events", "-f"}, strings.NewReader(""), &out, &errOut, "1.2.3")
	if status != exitInterrupted {
		t.Errorf("status %d, want %d", status, exitInterrupted)
	}
	if want := "volar: volantd is version 2.0.0, volar is 1.2.3\n"; errOut.String() != want {
		t.Errorf("stderr %q, want %q", errOut.String(), want)
	}
}

// TestExitCodes checks that every code of the API has exactly one status.
func TestExitCodes(t *testing.T) {
	for code, want := range map[api.Code]int{
		api.CodeInvalid: 2, api.CodeDenied: 1, api.CodeNotFound: 3, api.CodeExists: 4, api.CodeConflict: 4, api.CodeExhausted: 4,
		api.CodeTooLarge: 1, api.CodeUnsupported: 1, api.CodeUnavailable: 5, api.CodeTimeout: 6, api.CodeInternal: 1, "new": 1,
	} {
		if got := statusOf(code); got != want {
			t.Errorf("statusOf(%s) = %d, want %d", code, got, want)
		}
	}
}

// TestHelpTexts lints the help of every command.
func TestHelpTexts(t *testing.T) {
	status, help, _ := run(t, "--help")
	if status != 0 || !strings.Contains(help, "3 the named thing does not exist") {
		t.Errorf("--help does not tell the exit statuses:\n%s", help)
	}
	c := &cli{ctx: t.Context(), stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, version: "1"}
	if c.run([]string{"completion", "bash"}) != 0 {
		t.Fatal("completion failed")
	}
	for _, n := range c.model.Leaves(false) {
		if n.Help == "" || !strings.HasSuffix(n.Help, ".") && !strings.HasSuffix(n.Help, ").") {
			t.Errorf("%s: help %q does not end in a period", n.Path(), n.Help)
		}
		for _, f := range n.Flags {
			if f.Help == "" || !strings.HasSuffix(f.Help, ".") {
				t.Errorf("%s --%s: help %q does not end in a period", n.Path(), f.Name, f.Help)
			}
		}
	}
}

// TestBashCompletion runs the script in bash.
func TestBashCompletion(t *testing.T) {
	bash := need.Tool(t, "bash")
	_, script, _ := run(t, "completion", "bash")
	for line, want := range map[string]string{
		"volar vms cr":                "create",
		"volar -o json vms st":        "start stop stats",
		"volar vms create --plu":      "--plugin",
		"volar vms create --no-w":     "--no-wait",
		"volar completion ":           "bash zsh fish",
		"volar vms get we":            "web",
		"volar rm --force we":         "web",
		"volar kernels d":             "default",
		"volar --ho":                  "--host",
		"volar plugins install --man": "--manifest",
	} {
		// In place of the real volar, which the script calls for names.
		cmd := exec.CommandContext(t.Context(), bash, "-c", script+`
volar() { [[ "$*" == "vms list -o name" ]] && echo web; }
IFS=' ' read -ra COMP_WORDS <<< "$1"; [[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _volar; echo "${COMPREPLY[*]}"`, "bash", line)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("completing %q gives %q (%v), want %q", line, got, err, want)
		}
	}
}

// TestInterruptedInput checks that an interrupt ends the wait for a manifest
// that nobody types.
func TestInterruptedInput(t *testing.T) {
	in, typist := io.Pipe()
	defer typist.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	var out, errOut bytes.Buffer
	if status := Main(ctx, []string{"plugins", "install", "-"}, in, &out, &errOut, "1.2.3"); status != exitInterrupted || errOut.Len() != 0 {
		t.Errorf("Main = %d, stderr %q, want %d and nothing", status, &errOut, exitInterrupted)
	}
}

// daemonFor serves a fake daemon and returns it with a cli that speaks to it.
func daemonFor(t *testing.T, svc *httpapitest.Service) (*fakeDaemon, *cli) {
	t.Helper()
	dir, err := os.MkdirTemp("", "volar-test-*") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "v.sock"))
	if err != nil {
		t.Fatal(err)
	}
	d := newFakeDaemon(svc)
	server := &http.Server{Handler: d}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-done; os.RemoveAll(dir) })
	return d, &cli{
		ctx: t.Context(), stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, version: "1.2.3", now: noon,
		progressAfter: time.Minute, lookupEnv: os.LookupEnv, notify: func(chan<- os.Signal) func() { return func() {} },
		host: "unix://" + filepath.Join(dir, "v.sock"),
	}
}
