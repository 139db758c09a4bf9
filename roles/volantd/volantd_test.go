package volantd

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/testdata/need"
)

var update = flag.Bool("update", false, "rewrite the generated part of docs/volantd.md")

// TestMain lets the test binary be volantd: tests start it in a network
// namespace of its own.
func TestMain(m *testing.M) {
	if os.Getenv("VOLANTD_TEST_MAIN") == "1" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		os.Exit(Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, "1.2.3"))
	}
	os.Exit(m.Run())
}

// process is a volantd that runs.
type process struct {
	*exec.Cmd
	out    *bytes.Buffer // stdout and stderr; read it after wait
	client *client.Client
}

// start starts volantd in a network namespace that ends with it.
func start(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	need.Root(t, "for volantd")
	socket := filepath.Join(dir, "run", "volantd.sock")
	args = append([]string{"--data-dir", filepath.Join(dir, "data"), "--runtime-dir", filepath.Join(dir, "run")}, args...)
	p := &process{Cmd: exec.CommandContext(t.Context(), "/proc/self/exe", args...), out: &bytes.Buffer{}}
	p.Env = append(os.Environ(), append(env, "VOLANTD_TEST_MAIN=1")...)
	p.Stdout, p.Stderr = p.out, p.out
	p.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	p.WaitDelay = time.Second
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill() // if it still runs
		_ = p.Wait()
	})
	c, err := client.New(client.Config{Addr: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	p.client = c
	return p
}

// await waits until the daemon answers.
func (p *process) await(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for p.client.Health(t.Context()) != nil {
		if time.Now().After(deadline) || p.Process.Signal(syscall.Signal(0)) != nil {
			_ = p.Process.Kill()
			_ = p.Wait()
			t.Fatalf("volantd does not answer:\n%s", p.out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// wait returns the exit status.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	err := p.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.ProcessState.ExitCode()
}

// shortDir is a temporary folder whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "volantd-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestLife starts volantd, finds it answering and telling so, finds its place
// taken for others, and ends it.
func TestLife(t *testing.T) {
	dir := shortDir(t)
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	hear := func() string {
		buf := make([]byte, 100)
		_ = told.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := told.Read(buf)
		return fmt.Sprint(string(buf[:n]), err)
	}
	p := start(t, dir, []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "n")}, "--subnet", "10.99.0.0/24", "--bridge", "vbrtest")
	p.await(t)
	if got := hear(); got != "READY=1<nil>" {
		t.Errorf("the service manager heard %q, want READY=1", got)
	}
	info, err := p.client.SystemInfo(t.Context())
	if err != nil || info.Version != "1.2.3" || info.Bridge != "vbrtest" || info.HostIP != "10.99.0.1" {
		t.Errorf("SystemInfo = %+v, %v", info, err)
	}
	for what, args := range map[string][]string{
		"the same data folder": {"--listen", filepath.Join(dir, "other.sock"), "--runtime-dir", filepath.Join(dir, "run2")},
		"the same socket":      {"--data-dir", filepath.Join(dir, "data2")},
	} {
		second := start(t, dir, nil, args...)
		if status := second.wait(t); status != exitFailed || !strings.Contains(second.out.String(), "another volantd") || !strings.Contains(second.out.String(), "in use by process") {
			t.Errorf("a second volantd on %s ends with %d and %q", what, status, second.out)
		}
	}
	// This one shares only the network namespace.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	third := exec.CommandContext(t.Context(), "nsenter", "--net=/proc/"+strconv.Itoa(p.Process.Pid)+"/ns/net", exe,
		"--data-dir", filepath.Join(dir, "data3"), "--runtime-dir", filepath.Join(dir, "run3"))
	third.Env = append(os.Environ(), "VOLANTD_TEST_MAIN=1")
	if out, err := third.CombinedOutput(); third.ProcessState.ExitCode() != exitFailed || !strings.Contains(string(out), "network namespace, as process "+strconv.Itoa(p.Process.Pid)) {
		t.Errorf("a second volantd in the network namespace ends with %v and %q", err, out)
	}
	if err := p.client.Health(t.Context()); err != nil {
		t.Errorf("after the others: %v", err)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(t); status != exitOK || !strings.Contains(p.out.String(), "volantd is ready") || !strings.Contains(p.out.String(), "volantd ends; VMs run on") {
		t.Errorf("it ends with %d and %q", status, p.out)
	}
	if got := hear(); got != "STOPPING=1<nil>" {
		t.Errorf("the service manager heard %q, want STOPPING=1", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "run", "volantd.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestKilled checks that a volantd which was killed leaves nothing in the way of
// the next one, which knows what the first one did.
func TestKilled(t *testing.T) {
	dir := shortDir(t)
	p := start(t, dir, nil)
	p.await(t)
	for n := range 2 {
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.wait(t)
		p = start(t, dir, nil)
		p.await(t)
		if _, _, err := p.client.VMs(t.Context(), api.VMFilter{}); err != nil {
			t.Errorf("after kill %d: %v", n+1, err)
		}
	}
}

// TestRefuses checks what volantd refuses to start with.
func TestRefuses(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		want   string
	}{
		"unknown flag":    {[]string{"--brige", "x"}, exitUsage, "hint: volantd --help"},
		"subnet":          {[]string{"--subnet", "192.168.127.0"}, exitUsage, "not an IPv4 network"},
		"IPv6 subnet":     {[]string{"--subnet", "fd00::/64"}, exitUsage, "not an IPv4 network"},
		"host elsewhere":  {[]string{"--host-ip", "10.0.0.1"}, exitUsage, "not an address in 192.168.127.0/24"},
		"nameserver":      {[]string{"--dns", "example.org"}, exitUsage, "not an IPv4 address"},
		"boot timeout":    {[]string{"--boot-timeout", "0s"}, exitUsage, "not a duration above 0s"},
		"log level":       {[]string{"--log-level", "loud"}, exitUsage, "must be one of"},
		"hypervisor":      {[]string{"--hypervisor", "xen"}, exitUsage, "must be one of"},
		"relative folder": {[]string{"--data-dir", "data"}, exitFailed, "must be absolute"},
		"tcp":             {[]string{"--listen", "tcp://0.0.0.0:7777"}, exitFailed, "TLS and tokens"},
		"host and port":   {[]string{"--listen", "0.0.0.0:7777"}, exitFailed, "TLS and tokens"},
		"no socket":       {[]string{"--socket", file}, exitFailed, "not a socket"},
		"no folder":       {[]string{"--data-dir", file}, exitFailed, "not a directory"},
		"bridge":          {[]string{"--bridge", "a-name-that-is-too-long"}, exitFailed, "bridge"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, dir, nil, c.args...)
			if status := p.wait(t); status != c.status || !strings.Contains(p.out.String(), c.want) {
				t.Errorf("it ends with %d and %q; want %d with %q", status, p.out, c.status, c.want)
			}
		})
	}
}

func TestNothingElse(t *testing.T) {
	for _, args := range [][]string{{"--version"}, {"--help"}, {"--data-dir", "x", "--version"}} {
		var out, errOut bytes.Buffer
		if status := Main(t.Context(), args, nil, &out, &errOut, "1.2.3"); status != exitOK || out.Len() == 0 || errOut.Len() != 0 {
			t.Errorf("volantd %q = %d, stdout %q, stderr %q", args, status, &out, &errOut)
		}
	}
}

func TestCheckRoot(t *testing.T) {
	if err := checkRoot(0); err != nil {
		t.Errorf("checkRoot(0) = %v", err)
	}
	if err := checkRoot(1000); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("checkRoot(1000) = %v", err)
	}
}

func TestParseNameservers(t *testing.T) {
	for conf, want := range map[string][]string{
		"nameserver 192.0.2.1\n":                  {"192.0.2.1"},
		"nameserver 127.0.0.53\noptions edns0\n":  nil,
		"# nameserver 192.0.2.1\nsearch a\n":      nil,
		"nameserver ::1\nnameserver 192.0.2.2 \n": {"192.0.2.2"},
		"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4": {"192.0.2.1", "192.0.2.2", "192.0.2.3"},
		"nameserver\nnameserver x\nnameserver 0.0.0.0":                                           nil,
	} {
		var got []string
		for _, a := range parseNameservers(conf) {
			got = append(got, a.String())
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("parseNameservers(%q) = %q, want %q", conf, got, want)
		}
	}
}

func TestHostIP(t *testing.T) {
	var o Options
	if err := o.setNetwork("10.1.2.3/16", "", nil); err != nil || o.HostIP != netip.MustParseAddr("10.1.0.1") || o.Subnet.String() != "10.1.0.0/16" {
		t.Errorf("setNetwork = %v, %+v", err, o)
	}
}

func TestNotify(t *testing.T) {
	if err := notify("", "READY=1"); err != nil {
		t.Errorf("without a socket: %v", err)
	}
	if err := notify(filepath.Join(t.TempDir(), "none"), "READY=1"); err == nil {
		t.Error("a socket that is not there is no error")
	}
	name := fmt.Sprintf("@volantd-test-%d", os.Getpid())
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "\x00" + name[1:], Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := notify(name, "READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 20)
	_ = ln.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := ln.Read(buf); string(buf[:n]) != "READY=1" {
		t.Errorf("heard %q %v", buf[:n], err)
	}
}

func TestParseUser(t *testing.T) {
	for s, want := range map[string]hv.User{"990": {UID: 990, GID: 990}, "990:36": {UID: 990, GID: 36}} {
		if got, err := parseUser(s); err != nil || *got != want {
			t.Errorf("parseUser(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "0:0", "5:0", "root", "-1", "5:", ":5", "5:6:7", "4294967296"} {
		if got, err := parseUser(s); err == nil {
			t.Errorf("parseUser(%q) = %v, want an error", s, got)
		}
	}
}
