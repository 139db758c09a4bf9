package roles_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/budget"
	"github.com/volantvm/volant/testdata/need"
)

// installTools makes the host ready to create VMs of plugin tools: the demo
// appliance with a shell beside it.
func (h *host) installTools(t testing.TB) {
	t.Helper()
	busybox, err := os.ReadFile(need.File(t, "/bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"sh", "busybox"} {
		if err := os.WriteFile(filepath.Join(dir, name), busybox, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	recipe := fmt.Sprintf(`version = "1"
strategy = "initramfs"
[mappings]
%q = "/usr/bin/hello"
"./sh" = "/bin/sh"
"./busybox" = "/bin/busybox"
"./data" = "/etc/data"
[manifest]
name = "tools"
version = "1"
[manifest.resources]
cpu_cores = 1
memory_mb = 128
[manifest.workload]
type = "http"
entrypoint = ["/usr/bin/hello"]
base_url = "http://127.0.0.1:8080"
env = { PORT = "8080" }
`, filepath.Join(os.Getenv(envHello), "hello"))
	for name, content := range map[string]string{"fledge.toml": recipe, "data": "no program\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(os.Getenv(envBinary), "fledge", "build", "-c", filepath.Join(dir, "fledge.toml"), "-o", filepath.Join(dir, "tools")).CombinedOutput()
	if err != nil {
		t.Fatalf("fledge build: %v\n%s", err, out)
	}
	h.volar("kernels", "import", os.Getenv("VOLANT_TEST_KERNEL"), "--name", "generic")
	h.volar("plugins", "install", "--manifest", filepath.Join(dir, "tools.manifest.json"))
}

// execIn runs a command by the API, and returns what it wrote and how it ended.
func execIn(t testing.TB, c *client.Client, e api.Exec, stdin io.Reader) (out string, exit api.ExitStatus, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := c.Exec(ctx, "web", e)
	if err != nil {
		return "", exit, err
	}
	defer s.Close()
	var b bytes.Buffer
	exit, err = s.Copy(stdin, &b, &b)
	return b.String(), exit, err
}

func script(s string) api.Exec { return api.Exec{Args: []string{"sh", "-c", s}} }

// TestExec runs commands in a real VM, all the way from the command line to the
// process and back.
func TestExec(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	h.volar("vms", "create", "web", "--plugin", "tools", "--wait=healthy")
	c := h.client()

	t.Run("statuses", func(t *testing.T) {
		for _, tc := range []struct {
			args           []string
			status         int
			stdout, stderr string
		}{
			{[]string{"sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
			{[]string{"sh", "-c", "exit 3"}, 3, "", ""},
			{[]string{"sh", "-c", "kill -9 $$"}, 137, "", ""},
			{[]string{"nope"}, 127, "", `command "nope"`},
			{[]string{"/etc/data"}, 126, "", "not executable"},
		} {
			got := h.try(append([]string{"exec", "web", "--"}, tc.args...)...)
			if got.code != tc.status || got.stdout != tc.stdout || !strings.Contains(got.stderr, tc.stderr) {
				t.Errorf("volar exec web -- %q = %+v, want status %d, stdout %q, stderr %q", tc.args, got, tc.status, tc.stdout, tc.stderr)
			}
		}
	})

	t.Run("binary both ways", func(t *testing.T) {
		data := make([]byte, 1<<20)
		_, _ = rand.Read(data) // never fails
		out, exit, err := execIn(t, c, api.Exec{Args: []string{"busybox", "cat"}, Stdin: true}, bytes.NewReader(data))
		if err != nil || exit.Code != 0 || sha256.Sum256([]byte(out)) != sha256.Sum256(data) {
			t.Errorf("cat = %+v, %v; %d bytes became %d others", exit, err, len(data), len(out))
		}
	})

	t.Run("terminal", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, err := c.Exec(ctx, "web", api.Exec{Args: []string{"sh", "-c", "busybox stty size; read x; busybox stty size; busybox tty; echo $TERM"}, TTY: true, Stdin: true, Rows: 33, Cols: 101, Term: "vt220"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		pr, pw := io.Pipe()
		var out bytes.Buffer
		type end struct {
			exit api.ExitStatus
			err  error
		}
		ended := make(chan end, 1)
		go func() {
			exit, err := s.Copy(nil, pw, io.Discard)
			pw.Close()
			ended <- end{exit, err}
		}()
		read := func(until string) {
			for buf := make([]byte, 100); !strings.Contains(out.String(), until); {
				n, err := pr.Read(buf)
				if out.Write(buf[:n]); err != nil {
					t.Fatalf("%v; the terminal shows %q, not %q", err, out.String(), until)
				}
			}
		}
		read("33 101\r\n")
		if err := s.Resize(50, 120); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stdin().Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		read("50 120\r\n")
		read("/dev/pts/0\r\nvt220\r\n")
		if e := <-ended; e.err != nil || e.exit.Code != 0 {
			t.Errorf("exit = %+v, %v", e.exit, e.err)
		}
	})

	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				out, exit, err := execIn(t, c, api.Exec{Args: []string{"sh", "-c", fmt.Sprintf("read x; echo $x; exit %d", i)}, Stdin: true}, strings.NewReader(fmt.Sprintf("line %d\n", i)))
				if err != nil || exit.Code != i || out != fmt.Sprintf("line %d\n", i) {
					t.Errorf("number %d: %q, %+v, %v", i, out, exit, err)
				}
			})
		}
		wg.Wait()
	})

	t.Run("a client that does not read", func(t *testing.T) {
		s, err := c.Exec(t.Context(), "web", script("busybox seq 300000; : >/run/wrote-it-all"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		time.Sleep(3 * time.Second)
		if _, exit, err := execIn(t, c, script("[ -e /run/wrote-it-all ]"), nil); err != nil || exit.Code != 1 {
			t.Errorf("the command wrote 2 MB that nobody read: %+v, %v", exit, err)
		}
		var out bytes.Buffer
		if exit, err := s.Copy(nil, &out, io.Discard); err != nil || exit.Code != 0 || bytes.Count(out.Bytes(), []byte("\n")) != 300000 {
			t.Errorf("exit = %+v, %v with %d lines", exit, err, bytes.Count(out.Bytes(), []byte("\n")))
		}
	})

	t.Run("a client that leaves", func(t *testing.T) {
		s, err := c.Exec(t.Context(), "web", script("echo $$ >/run/pid; echo up; exec busybox sleep 600"))
		if err != nil {
			t.Fatal(err)
		}
		go s.Copy(nil, io.Discard, io.Discard) //nolint:errcheck // it is left
		h.eventually(time.Minute, "the command runs", func() error {
			_, exit, err := execIn(t, c, script("[ -s /run/pid ] && kill -0 $(busybox cat /run/pid)"), nil)
			if err == nil && exit.Code != 0 {
				err = fmt.Errorf("exit = %+v", exit)
			}
			return err
		})
		s.Close()
		h.eventually(time.Minute, "the command is gone", func() error {
			_, exit, err := execIn(t, c, script("kill -0 $(busybox cat /run/pid)"), nil)
			if err == nil && exit.Code == 0 {
				err = fmt.Errorf("it is still there")
			}
			return err
		})
	})

	t.Run("soak", func(t *testing.T) {
		total, limit := int64(10_000), 10*time.Second
		if os.Getenv("VOLANT_BENCH") != "" {
			limit = time.Hour
		}
		var n, lost atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range 8 {
			wg.Go(func() {
				for time.Since(start) < limit {
					i := n.Add(1)
					if i > total {
						return
					}
					out, exit, err := execIn(t, c, script(fmt.Sprintf("echo %d; exit %d", i, i%200)), nil)
					if err != nil || exit.Code != int(i%200) || out != fmt.Sprintf("%d\n", i) {
						lost.Add(1)
						t.Errorf("number %d: %q, %+v, %v", i, out, exit, err)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d commands in %v, %d lost", min(n.Load(), total), time.Since(start), lost.Load())
	})

	t.Run("attach to the workload", func(t *testing.T) {
		s, err := c.Attach(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		stopped := make(chan error, 1)
		time.AfterFunc(100*time.Millisecond, func() {
			_, err := c.StopVM(t.Context(), "web", api.VMStop{}, client.Wait{For: api.WaitStopped})
			stopped <- err
		})
		var out bytes.Buffer
		exit, err := s.Copy(nil, &out, &out)
		if err != nil || !strings.Contains(out.String(), "8080") {
			t.Errorf("attach = %+v, %v; output %q", exit, err, out.String())
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if vm := h.vm("web"); vm.Exit == nil || vm.Exit.Code != exit.Code {
			t.Errorf("who was attached heard of %+v, the daemon of %+v", exit, vm.Exit)
		}
	})
	h.volar("vms", "delete", "web")
	h.noLeaks()
}

// benchExec compares a command, from the request to its exit status, with what
// goes the same way and starts no process: a request that the workload echoes,
// and a line that a command which runs already echoes.
func benchExec(t *testing.T) []budget.Line {
	h := newHost(t)
	h.start()
	h.installTools(t)
	h.volar("vms", "create", "web", "--plugin", "tools", "--wait=healthy")
	c := h.client()
	cat, err := c.Exec(t.Context(), "web", api.Exec{Args: []string{"busybox", "cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	lines, back := io.Pipe()
	go cat.Copy(nil, back, io.Discard) //nolint:errcheck // ends with the session
	var request, line, run []time.Duration
	for i := range 100 {
		start := time.Now()
		resp, err := c.CallVM(t.Context(), "web", "GET", "/", nil, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		asked := time.Now()
		if _, err := cat.Stdin().Write([]byte("x\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(lines, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		echoed := time.Now()
		if _, exit, err := execIn(t, c, api.Exec{Args: []string{"busybox", "true"}}, nil); err != nil || exit.Code != 0 {
			t.Fatalf("exec = %+v, %v", exit, err)
		}
		if i > 0 {
			request, line, run = append(request, asked.Sub(start)), append(line, echoed.Sub(asked)), append(run, time.Since(echoed))
		}
	}
	return []budget.Line{budget.Ratio("exec-round-trip", 3, run, request,
		fmt.Sprintf("exec ÷ a request echoed in the guest; a line echoed by a command that runs takes %.1f ms", budget.Millis(budget.Median(line))))}
}
