package roles_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/need"
)

// The images that these tests run, as docker run would, are made from Debian's packages by
// testdata/images.sh: their layout is in VOLANT_TEST_IMAGES.

// registry runs Debian's docker-registry on loopback, in the tests' network
// namespace, with the images of the layout in it. It returns "host:port".
func registry(t testing.TB, tags ...string) string {
	t.Helper()
	layout := imageLayout(t)
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer: %v\n%s", err, log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, tag := range tags {
		if out, err := exec.Command("skopeo", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout+":"+tag, "docker://"+addr+"/volant/"+tag+":1").CombinedOutput(); err != nil {
			t.Fatalf("skopeo copy %s: %v\n%s", tag, err, out)
		}
	}
	return addr
}

func imageLayout(t testing.TB) string {
	t.Helper()
	return need.Env(t, "VOLANT_TEST_IMAGES")
}

// newImageHost is a host with both kernels, whose volantd may speak plain HTTP
// to addr.
func newImageHost(t testing.TB, addr string) *host {
	t.Helper()
	kernel := need.Env(t, "VOLANT_TEST_KERNEL_VOLANT") // for root file systems
	h := newHost(t)
	if addr != "" {
		h.flags = append(h.flags, "--plain-http", addr)
	}
	h.start()
	h.volar("kernels", "import", os.Getenv("VOLANT_TEST_KERNEL"), "--name", "generic")
	h.volar("kernels", "import", kernel, "--name", "volant")
	return h
}

func (h *host) serves(url, want string) {
	h.t.Helper()
	h.eventually(30*time.Second, url, func() error {
		body, err := fetch(url)
		if err == nil && !strings.Contains(body, want) {
			err = fmt.Errorf("answer = %q, want %q in it", body, want)
		}
		return err
	})
}

// TestImageFromRegistry is the README's sentence: pull, convert, boot, publish.
func TestImageFromRegistry(t *testing.T) {
	addr := registry(t, "nginx")
	h := newImageHost(t, addr)
	ref := addr + "/volant/nginx:1"

	h.volar("run", "-d", "--name", "web", "-p", "8080:80", "--label", "tier=front", ref)
	vm := h.vm("web")
	h.serves("http://"+vm.IPAddress+"/", "nginx in a microVM")
	h.serves("http://127.0.0.1:8080/", "nginx in a microVM")
	h.serves("http://192.168.127.1:8080/", "nginx in a microVM")
	if vm.Kernel != "volant" || vm.Labels["tier"] != "front" || vm.ImageID == "" {
		t.Errorf("VM = %+v, want kernel volant, the label and the image's id", vm)
	}
	ps := h.volar("ps")
	for _, want := range []string{"web", "nginx", "8080->80/tcp"} {
		if !strings.Contains(ps, want) {
			t.Errorf("volar ps lacks %q:\n%s", want, ps)
		}
	}
	h.eventually(10*time.Second, "nginx's access log", func() error {
		if out := h.volar("logs", "web"); !strings.Contains(out, "GET / HTTP/1.1") {
			return fmt.Errorf("logs = %q", out)
		}
		return nil
	})

	t.Run("listed once", func(t *testing.T) {
		var images []api.Image
		if err := json.Unmarshal([]byte(h.volar("images", "list", "-o", "json")), &images); err != nil {
			t.Fatal(err)
		}
		if len(images) != 1 || images[0].ID != vm.ImageID || images[0].VMs != 1 || len(images[0].References) != 1 || images[0].References[0] != ref {
			t.Errorf("images = %+v, want one, %s, used by one VM, known as %s", images, vm.ImageID, ref)
		}
	})

	t.Run("in use", func(t *testing.T) {
		if r := h.try("images", "rm", ref); r.code == 0 || !strings.Contains(r.stderr, "web") {
			t.Errorf("images rm = %d %q, want a refusal that names web", r.code, r.stderr)
		}
		if r := h.try("run", "-d", "--name", "rival", "-p", "8080:80", ref); r.code == 0 || !strings.Contains(r.stderr, "8080") {
			t.Errorf("a second VM on port 8080 = %d %q, want a refusal that names the port", r.code, r.stderr)
		}
	})

	t.Run("survives volantd", func(t *testing.T) {
		h.kill()
		h.start()
		h.serves("http://127.0.0.1:8080/", "nginx in a microVM")
	})

	t.Run("the port closes with the VM", func(t *testing.T) {
		h.volar("rm", "-f", "web")
		if body, err := fetch("http://127.0.0.1:8080/"); err == nil {
			t.Errorf("port 8080 answers %q after the VM was deleted", body)
		}
		h.volar("images", "rm", ref)
		if out := h.volar("images", "list", "-o", "name"); out != "" {
			t.Errorf("images = %q after the only one was removed", out)
		}
	})
}

// TestImageShell is a command in an image: its output, its exit status, its terminal.
func TestImageShell(t *testing.T) {
	h := newImageHost(t, "")
	base := "oci:" + imageLayout(t) + ":base"

	run := func(stdin string, args ...string) result {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Getenv(envBinary), append([]string{"volar", "run"}, args...)...)
		cmd.Env = append(os.Environ(), "VOLANT_HOST=unix://"+h.socket())
		cmd.Stdin = strings.NewReader(stdin)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("volar run %v: %v\n%s", args, err, stderr.String())
		}
		return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	}

	t.Run("what a container would see", func(t *testing.T) {
		script := `
echo out; echo err >&2
echo host=$(hostname) home=$HOME path=$PATH who=$(id -u) extra=$EXTRA pwd=$PWD
grep -q "$(hostname)" /etc/hosts && grep -q nameserver /etc/resolv.conf && echo files=ok
stat -c '%a %n' /tmp /root /dev/shm
mount | grep -E '^[^ ]+ on (/proc|/sys|/dev|/dev/pts|/dev/shm|/dev/mqueue|/sys/fs/cgroup) ' | wc -l
echo data > /etc/changed && cat /etc/changed
exit 7`
		r := run("", "--rm", "-e", "EXTRA=more", "-w", "/tmp", "--hostname", "box", base, "sh", "-c", script)
		if r.code != 7 {
			t.Errorf("exit status %d, want the command's 7\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
		}
		for _, want := range []string{"out\n", "host=box home=/root path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin who=0 extra=more pwd=/tmp\n",
			"files=ok\n", "1777 /tmp\n700 /root\n1777 /dev/shm\n", "\n7\n", "data\n"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("stdout lacks %q:\n%s", want, r.stdout)
			}
		}
		if !strings.Contains(r.stderr, "err\n") {
			t.Errorf("stderr = %q, want err in it", r.stderr)
		}
	})

	t.Run("standard input", func(t *testing.T) {
		if r := run("one\ntwo\n", "--rm", "-i", base, "sed", "s/^/got /"); r.stdout != "got one\ngot two\n" || r.code != 0 {
			t.Errorf("run -i = %d %q, want what was typed\n%s", r.code, r.stdout, r.stderr)
		}
	})

	t.Run("every line from the first on", func(t *testing.T) {
		const lines = 20000
		r := run("", "--rm", base, "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done", lines))
		var want strings.Builder
		for i := range lines {
			fmt.Fprintf(&want, "line %d\n", i)
		}
		if r.stdout != want.String() || r.code != 0 {
			t.Errorf("run = %d and %d bytes, want 0 and %d\n%s", r.code, len(r.stdout), want.Len(), r.stderr)
		}
	})

	t.Run("a terminal", func(t *testing.T) {
		// script(1) gives volar a terminal of its own.
		line := os.Getenv(envBinary) + " volar run --rm -it " + base + " sh"
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "script", "-qec", line, "/dev/null")
		cmd.Env = append(os.Environ(), "VOLANT_HOST=unix://"+h.socket())
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var seen strings.Builder
		r := bufio.NewReader(out)
		until := func(want string) {
			for !strings.Contains(seen.String(), want) {
				b, err := r.ReadByte()
				if err != nil {
					t.Fatalf("the terminal ended before %q: %v\n%s", want, err, seen.String())
				}
				seen.WriteByte(b)
			}
		}
		until("# ")
		fmt.Fprint(in, "tty; echo $((40 + 2)); exit 5\r")
		until("/dev/pts/")
		until("42")
		for {
			if _, err := r.ReadByte(); err != nil {
				break
			}
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 5 {
			t.Errorf("exit status %d, want the shell's 5\n%s", code, seen.String())
		}
	})

	t.Run("what cannot be run", func(t *testing.T) {
		for _, c := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"--rm", base, "nosuch"}, 127, "nosuch"},
			{[]string{"--rm", base, "/etc/passwd"}, 126, "/etc/passwd"},
			{[]string{"--rm", "-u", "nobody-here", base, "id"}, 125, "nobody-here"},
			{[]string{"--rm", base + "-missing", "id"}, 125, "missing"},
			{[]string{"--rm", "-p", "0:80", base, "id"}, 125, "0:80"},
		} {
			if r := run("", c.args...); r.code != c.code || !strings.Contains(r.stderr, c.want) {
				t.Errorf("run %v = %d %q, want %d and %q", c.args, r.code, r.stderr, c.code, c.want)
			}
		}
	})

	t.Run("without a disk", func(t *testing.T) {
		if r := run("", "--rm", "--initramfs", base, "sh", "-c", "stat -f -c %T /; exit 3"); r.code != 3 || !(strings.Contains(r.stdout, "tmpfs") || strings.Contains(r.stdout, "ramfs")) {
			t.Errorf("run --initramfs = %d %q, want status 3 and a root in memory\n%s", r.code, r.stdout, r.stderr)
		}
	})

	t.Run("read-only", func(t *testing.T) {
		if r := run("", "--rm", "--read-only", "--tmpfs", "/scratch:size=8m", base, "sh", "-c", "touch /scratch/x && ! touch /x"); r.code != 0 {
			t.Errorf("run --read-only = %d %q %q", r.code, r.stdout, r.stderr)
		}
	})

	t.Run("a folder of the host", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "page"), []byte("from the host\n"), 0o640); err != nil {
			t.Fatal(err)
		}
		r := run("", "--rm", "-v", dir+":/site:ro", base, "sh", "-c", "cat /site/page; stat -c %a /site/page; ! touch /site/x")
		if r.code != 0 || !strings.Contains(r.stdout, "from the host\n640\n") {
			t.Errorf("run -v = %d %q %q", r.code, r.stdout, r.stderr)
		}
	})

	if left := h.volar("vms", "list", "-o", "name"); left != "" {
		t.Errorf("run --rm left %q", left)
	}
}

// TestImageRedis talks to a service that runs as its own user.
func TestImageRedis(t *testing.T) {
	h := newImageHost(t, "")
	h.volar("run", "-d", "--name", "cache", "-p", "127.0.0.1:6379:6379", "oci:"+imageLayout(t)+":redis")
	say := func(addr, line string) (string, error) {
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := fmt.Fprintf(c, "%s\r\n", line); err != nil {
			return "", err
		}
		return bufio.NewReader(c).ReadString('\n')
	}
	for _, addr := range []string{h.vm("cache").IPAddress + ":6379", "127.0.0.1:6379"} {
		h.eventually(30*time.Second, "redis at "+addr, func() error {
			got, err := say(addr, "PING")
			if err == nil && got != "+PONG\r\n" {
				err = fmt.Errorf("PING = %q", got)
			}
			return err
		})
	}
	if out := h.volar("exec", "cache", "--", "sh", "-c", "id -un; stat -c %U /data; pwd"); out != "redis\nredis\n/data\n" {
		t.Errorf("in the VM: %q, want it to run as redis in its own /data", out)
	}
	h.volar("stop", "cache")
}

// TestImagePostgres initialises a data volume as the service's own user, and
// finds it again.
func TestImagePostgres(t *testing.T) {
	h := newImageHost(t, "")
	image := "oci:" + imageLayout(t) + ":postgres"
	const data = "/var/lib/postgresql/data"
	sql := func(vm, query string) (string, error) {
		r := h.try("exec", vm, "--", "psql", "-h", "/run/postgresql", "-U", "postgres", "-Atc", query)
		if r.code != 0 {
			return "", errors.New(r.stderr + r.stdout)
		}
		return strings.TrimSpace(r.stdout), nil
	}
	answers := func(vm, query, want string) {
		t.Helper()
		// Looked for in the log, which costs the guest nothing: psql would take the
		// processor of initdb again and again.
		h.eventually(3*time.Minute, "postgres in "+vm, func() error {
			if !strings.Contains(h.volar("logs", vm, "--tail", "20"), "ready to accept connections") {
				return errors.New("it does not say that it is ready")
			}
			got, err := sql(vm, query)
			if err == nil && got != want {
				err = fmt.Errorf("%s = %q, want %q", query, got, want)
			}
			return err
		})
	}
	h.volar("run", "-d", "--name", "db", "--memory", "512m", "-v", "pgdata:"+data, image)
	answers("db", "select 6 * 7", "42")
	if _, err := sql("db", "create table t (n int); insert into t values (1), (2)"); err != nil {
		t.Fatal(err)
	}
	if out := h.volar("exec", "db", "--", "stat", "-c", "%U %a", data); out != "postgres 700\n" {
		t.Errorf("the data folder is %q, want it to be postgres's own", out)
	}

	h.volar("stop", "db")
	h.volar("vms", "start", "db")
	answers("db", "select count(*) from t", "2")

	// The volume outlives the VM, and belongs to one VM at a time.
	if r := h.try("run", "-d", "--name", "thief", "--wait=running", "-v", "pgdata:"+data, image); r.code == 0 || !strings.Contains(r.stderr, "pgdata") {
		t.Errorf("a second VM with the volume = %d %q, want a refusal that names it", r.code, r.stderr)
	}
	h.volar("stop", "db")
	h.volar("rm", "db")
	h.try("rm", "-f", "thief")
	h.volar("run", "-d", "--name", "heir", "--memory", "512m", "-v", "pgdata:"+data, image)
	answers("heir", "select sum(n) from t", "3")
	if r := h.try("volumes", "rm", "pgdata"); r.code == 0 || !strings.Contains(r.stderr, "heir") {
		t.Errorf("volumes rm of a volume in use = %d %q, want a refusal that names heir", r.code, r.stderr)
	}
	h.volar("rm", "-f", "heir")
	h.volar("volumes", "rm", "pgdata")
}
