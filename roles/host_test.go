package roles_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/roles/volantd"
	"github.com/volantvm/volant/testdata/need"
)

// Environment of the test binary when it runs itself again.
const (
	envNetns  = "VOLANT_TEST_NETNS"      // set inside the tests' own network namespace
	envBinary = "VOLANT_TEST_BINARY"     // the volant binary under test
	envHello  = "VOLANT_TEST_HELLO"      // the folder with the packed demo appliance
	envKillAt = "VOLANT_TEST_KILL_AFTER" // run as a volantd that kills itself after this commit
)

// TestMain builds the binary once, then runs the tests in a network namespace
// of their own: bridges, TAPs, rules and guests are all in it, and it is removed
// at the end, however the tests end.
func TestMain(m *testing.M) {
	if at, err := strconv.Atoi(os.Getenv(envKillAt)); err == nil {
		os.Exit(volantdKilledAfter(at))
	}
	if os.Getuid() != 0 || os.Getenv(envNetns) != "" {
		if err := mountCgroups(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	os.Exit(runInNetns())
}

func runInNetns() int {
	dir, err := os.MkdirTemp("", "volant-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := buildAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ns := fmt.Sprintf("volant-test-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "ip netns add: %v\n%s", err, out)
		return 1
	}
	defer exec.Command("ip", "netns", "del", ns).Run()
	if out, err := exec.Command("ip", "-n", ns, "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "ip link set lo up: %v\n%s", err, out)
		return 1
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns}, os.Args...)...)
	cmd.Env = append(os.Environ(), envNetns+"="+ns, envBinary+"="+filepath.Join(dir, "volant"), envHello+"="+filepath.Join(dir, "hello"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case errors.As(err, &exit):
		return max(1, exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// mountCgroups mounts the host's control groups again, which ip netns exec has
// hidden under a sysfs of its own.
func mountCgroups() error {
	if os.Getenv(envNetns) == "" {
		return nil
	}
	if entries, err := os.ReadDir("/sys/fs/cgroup"); err != nil || len(entries) > 0 {
		return err // another test binary of this mount namespace was here
	}
	// The parent was started outside.
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", os.Getppid()))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != "/sys/fs/cgroup" && !strings.HasPrefix(f[1], "/sys/fs/cgroup/") {
			continue
		}
		options := ""
		if f[2] == "cgroup" { // what it has beside the flags are its controllers
			options = strings.Join(slices.DeleteFunc(strings.Split(f[3], ","), func(o string) bool {
				return slices.Contains([]string{"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime"}, o)
			}), ",")
		}
		if err := os.MkdirAll(f[1], 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(f[0], f[1], f[2], 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", f[1], err)
		}
	}
	return nil
}

// buildAll builds the binary as the Makefile does, and packs the demo
// appliance with it.
func buildAll(dir string) error {
	hello := filepath.Join(dir, "hello")
	if err := os.Mkdir(hello, 0o755); err != nil {
		return err
	}
	recipe, err := os.ReadFile("../testdata/hello/fledge.toml")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(hello, "fledge.toml"), recipe, 0o644); err != nil {
		return err
	}
	bin := filepath.Join(dir, "volant")
	modfile := exec.Command("go", "run", "./testdata/modfile")
	modfile.Dir = ".."
	mod, err := modfile.Output()
	if err != nil {
		return fmt.Errorf("%v: %w", modfile.Args, err)
	}
	for _, argv := range [][]string{
		{"go", "build", "-modfile=../" + strings.TrimSpace(string(mod)), "-tags=nethttpomithttp2", "-trimpath", "-ldflags=-s -w -X main.version=0.0.0-e2e", "-o", bin, ".."},
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(hello, "hello"), "../testdata/hello"},
		{bin, "fledge", "build", "-c", filepath.Join(hello, "fledge.toml"), "-o", filepath.Join(hello, "hello")},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", argv, err, out)
		}
	}
	return nil
}

// volantdKilledAfter runs volantd in this process, which ends by SIGKILL right
// after the n-th durable write: no deferred function, no handler runs.
func volantdKilledAfter(n int) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	dir := os.Args[1]
	err := volantd.Run(ctx, volantd.Options{
		DataDir: filepath.Join(dir, "data"), RuntimeDir: filepath.Join(dir, "run"),
		Bridge: "vbr0", Subnet: netip.MustParsePrefix("192.168.127.0/24"), HostIP: netip.MustParseAddr("192.168.127.1"),
		Version: "0.0.0-e2e", Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		AgentBinary: os.Getenv(envBinary), // a test binary is no PID 1
		AfterCommit: func(commit int) {
			if commit >= n {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// needVMs skips where VMs cannot run, and fails instead where the whole suite
// must run.
func needVMs(t testing.TB) {
	t.Helper()
	vmm := "qemu-system-x86_64"
	if os.Getenv("VOLANT_TEST_HYPERVISOR") == "cloud-hypervisor" {
		vmm = "cloud-hypervisor" // VOLANT_HYPERVISOR, which every volantd sees, says the same
	}
	need.Root(t, "for VMs")
	need.Tool(t, vmm)
	need.Env(t, "VOLANT_TEST_KERNEL")
}

// host is one installation of Volant: its own data, its own volantd.
type host struct {
	t      testing.TB
	dir    string   // short, for the sockets in it
	env    []string // further environment of volantd
	flags  []string // further flags of volantd
	daemon *exec.Cmd
	log    *os.File
}

// newHost makes an empty installation. Its daemon is started by start. When the
// test ends, it must have left nothing: no VMM, TAP, socket or run directory.
func newHost(t testing.TB) *host {
	t.Helper()
	needVMs(t)
	dir, err := os.MkdirTemp("/tmp", "vt")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir}
	if h.log, err = os.Create(filepath.Join(dir, "volantd.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.daemon != nil {
			h.try("vms", "stop", "--all", "--force")
			for _, name := range strings.Fields(h.try("vms", "list", "-o", "name").stdout) {
				h.try("vms", "delete", name, "--force")
			}
			h.noLeaks()
			h.stop()
			if !t.Failed() {
				h.start() // it takes what it has left behind
				h.stop()
			}
			if groups, _ := filepath.Glob("/sys/fs/cgroup/*/volant/" + h.instance() + "*"); len(groups) > 0 && h.instance() != "" {
				t.Errorf("cgroups %v are left", groups)
			}
		}
		h.log.Close()
		if t.Failed() {
			log, _ := os.ReadFile(h.log.Name())
			t.Logf("volantd's log:\n%s", tail(string(log), 60))
		}
		os.RemoveAll(dir)
	})
	return h
}

func tail(s string, lines int) string {
	all := strings.SplitAfter(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// instance is what tells this host's cgroups from those of others.
func (h *host) instance() string {
	b, err := os.ReadFile(filepath.Join(h.dir, "data", "instance"))
	if err != nil {
		return ""
	}
	return string(b)
}

func (h *host) args() []string {
	return []string{"--data-dir", filepath.Join(h.dir, "data"), "--runtime-dir", filepath.Join(h.dir, "run"), "--log-level", "debug"}
}

func (h *host) socket() string { return filepath.Join(h.dir, "run", "volantd.sock") }

// start runs volantd and returns when it answers.
func (h *host) start() {
	h.t.Helper()
	cmd := exec.Command(os.Getenv(envBinary), append(append([]string{"volantd"}, h.args()...), h.flags...)...)
	cmd.Env = append(os.Environ(), h.env...)
	h.spawn(cmd)
	h.eventually(30*time.Second, "volantd answers", func() error {
		if r := h.try("system", "info"); r.code != 0 {
			return errors.New(r.stderr)
		}
		return nil
	})
}

// startToDie runs a volantd that is killed after its n-th durable write.
func (h *host) startToDie(n int) {
	h.t.Helper()
	cmd := exec.Command(os.Args[0], h.dir)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", envKillAt, n))
	h.spawn(cmd)
}

func (h *host) spawn(cmd *exec.Cmd) {
	h.t.Helper()
	cmd.Stdout, cmd.Stderr = h.log, h.log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.daemon = cmd
}

// stop ends volantd in good order; VMs live on.
func (h *host) stop() {
	h.t.Helper()
	h.daemon.Process.Signal(syscall.SIGTERM)
	if err := h.wait(20 * time.Second); err != nil {
		h.t.Errorf("volantd on SIGTERM: %v, want exit status 0", err)
	}
}

// kill ends volantd as a power cut would.
func (h *host) kill() {
	h.t.Helper()
	h.daemon.Process.Kill()
	h.wait(20 * time.Second)
}

// wait waits until volantd has ended by itself.
func (h *host) wait(limit time.Duration) error {
	h.t.Helper()
	timer := time.AfterFunc(limit, func() {
		h.t.Errorf("volantd did not end within %v", limit)
		h.daemon.Process.Kill()
	})
	defer timer.Stop()
	err := h.daemon.Wait()
	h.daemon = nil
	return err
}

// result is what one volar call gave.
type result struct {
	stdout, stderr string
	code           int
}

// try runs volar and returns whatever comes.
func (h *host) try(args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(envBinary), append([]string{"volar"}, args...)...)
	cmd.Env = append(os.Environ(), "VOLANT_HOST=unix://"+h.socket())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{stdout.String(), stderr.String(), 0}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		h.t.Fatalf("volar %v: %v", args, err)
	}
	return r
}

// volar runs volar, wants success, and returns its standard output.
func (h *host) volar(args ...string) string {
	h.t.Helper()
	r := h.try(args...)
	if r.code != 0 {
		h.t.Fatalf("volar %s: exit status %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// vm returns a VM as the API has it.
func (h *host) vm(name string) api.VM {
	h.t.Helper()
	var vm api.VM
	if err := json.Unmarshal([]byte(h.volar("vms", "get", name, "-o", "json")), &vm); err != nil {
		h.t.Fatal(err)
	}
	return vm
}

// install makes the host ready to create VMs of plugin hello.
func (h *host) install() {
	h.t.Helper()
	h.volar("kernels", "import", os.Getenv("VOLANT_TEST_KERNEL"), "--name", "generic")
	h.volar("plugins", "install", "--manifest", filepath.Join(os.Getenv(envHello), "hello.manifest.json"))
}

// get asks a workload through its address, once.
func get(addr string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + addr + ":8080/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(body), err
}

// answers wants the workload at addr to answer now.
func (h *host) answers(addr string) string {
	h.t.Helper()
	body, err := get(addr)
	if err != nil {
		h.t.Fatalf("GET http://%s:8080/: %v", addr, err)
	}
	return body
}

// eventually tries until ok returns nil.
func (h *host) eventually(limit time.Duration, what string, ok func() error) {
	h.t.Helper()
	deadline := time.Now().Add(limit)
	// What takes long is asked for less and less often: most of what ok does starts a
	// process, here or in the guest, and what it waits for wants the processor.
	for pause := 20 * time.Millisecond; ; pause = min(pause*5/4, 250*time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(pause)
	}
}

// vmms returns the process ids of this host's VMMs, by their command lines.
func (h *host) vmms() []int {
	h.t.Helper()
	var pids []int
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, file := range dirs {
		line, err := os.ReadFile(file)
		vmm := bytes.Contains(line, []byte("qemu-system")) || bytes.Contains(line, []byte("cloud-hypervisor"))
		if err != nil || !vmm || !bytes.Contains(line, []byte(h.dir+"/run/")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		pids = append(pids, pid)
	}
	return pids
}

// taps returns the names of the TAPs in this network namespace.
func taps(t testing.TB) []string {
	t.Helper()
	out, err := exec.Command("ip", "-j", "tuntap", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal(out, &list); err != nil && len(bytes.TrimSpace(out)) > 0 {
		t.Fatalf("ip tuntap list: %v in %q", err, out)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Name)
	}
	return names
}

// noLeaks wants a host without VMs to hold nothing of a VM.
func (h *host) noLeaks() {
	h.t.Helper()
	if pids := h.vmms(); len(pids) > 0 {
		h.t.Errorf("VMMs %v are left", pids)
	}
	if names := taps(h.t); len(names) > 0 {
		h.t.Errorf("TAPs %v are left", names)
	}
	for _, pattern := range []string{"run/vms/*", "data/vms/*", "data/blobs/*/*.tmp", "data/blobs/*/*/*.tmp", "data/cache/*.tmp"} {
		if found, _ := filepath.Glob(filepath.Join(h.dir, pattern)); len(found) > 0 {
			h.t.Errorf("%v are left", found)
		}
	}
}

// runVolantd runs a volantd that is expected to end by itself.
func (h *host) runVolantd() result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(envBinary), append(append([]string{"volantd"}, h.args()...), h.flags...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	r := result{stdout: out.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.code = exit.ExitCode()
	}
	return r
}
