package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// vmTimeout is generous: a boot takes a second of CPU under emulation, which
// may have to be shared with many.
const vmTimeout = 120 * time.Second

// image builds the initramfs of the test machines once.
type image struct {
	once sync.Once
	dir  string
	err  error
}

func (im *image) build(dir string) error {
	build := func(name, pkg string) ([]byte, error) {
		out := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
		}
		return os.ReadFile(out)
	}
	initBin, err := build("init", "./testdata/init")
	if err != nil {
		return err
	}
	workload, err := build("workload", "./testdata/workload")
	if err != nil {
		return err
	}
	var a initramfs.Archive
	for _, e := range []initramfs.Entry{
		{Name: "/init", Mode: 0o755, Data: initBin},
		{Name: "/usr/bin/workload", Mode: 0o755, Data: workload},
		{Name: "/usr/bin/not-a-program", Mode: 0o755, Data: []byte("\x7fELF but no further")},
		{Name: "/etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n")},
		{Name: "/etc/group", Mode: 0o644, Data: []byte("root:x:0:\nweb:x:1001:\nlogs:x:33:other,web\n")},
		{Name: "/etc/resolv.conf", Mode: fs.ModeSymlink | 0o777, Linkname: "../run/nowhere/resolv.conf"},
		{Name: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
	} {
		if err := a.Add(e); err != nil {
			return err
		}
	}
	f, err := os.Create(filepath.Join(dir, "initramfs"))
	if err != nil {
		return err
	}
	_, err = a.WriteTo(f)
	return errors.Join(err, f.Close())
}

// testImage is built by the first VM test. Its directory is removed by TestMain.
var testImage image

func buildTestImage(t *testing.T) {
	t.Helper()
	testImage.once.Do(func() {
		if testImage.dir, testImage.err = os.MkdirTemp("", "guest-test-"); testImage.err == nil {
			testImage.err = testImage.build(testImage.dir)
		}
	})
	if testImage.err != nil {
		t.Fatal(testImage.err)
	}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if testImage.dir != "" {
		os.RemoveAll(testImage.dir)
	}
	os.Exit(code)
}

// machine is a VM of a test.
type machine struct {
	t       *testing.T
	dir     string
	cmd     *exec.Cmd
	exited  chan struct{} // closed when QEMU is gone
	client  *http.Client
	conn    net.Conn // below session
	session *yamux.Session
}

func sampleConfig(workload wire.WorkloadConfig) wire.BootConfig {
	return wire.BootConfig{
		Version: "0.0.0-test", VM: "vm-1", Name: "web", Incarnation: 3,
		Hostname: "web.example", MachineID: strings.Repeat("0123456789abcdef", 2),
		Time: time.Now(), Seed: bytes.Repeat([]byte{7}, 64),
		Workload: workload,
	}
}

// disk is one more disk of a machine.
type disk struct {
	serial, path string
	readOnly     bool
}

// boot starts a VM. config is the content of the configuration disk.
func boot(t *testing.T, config []byte) *machine {
	t.Helper()
	return bootDisks(t, "VOLANT_TEST_KERNEL", config)
}

// bootDisks starts a VM with the kernel that an environment variable names, and
// with further disks.
func bootDisks(t *testing.T, kernelEnv string, config []byte, disks ...disk) *machine {
	t.Helper()
	kernel, qemu := need.Env(t, kernelEnv), need.Tool(t, "qemu-system-x86_64")
	buildTestImage(t)
	// Not t.TempDir: the path of a Unix socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "guest-vm-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, exited: make(chan struct{})}
	if err := os.WriteFile(m.path("config"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	cmdline := "console=ttyS0 quiet panic=-1 volant.vm=vm-1 volant.log=debug"
	if khz := hostKHz(); khz != "" {
		cmdline += " tsc=reliable tsc_early_khz=" + khz
	}
	args := []string{"-M", "microvm", "-accel", "tcg,tb-size=32", "-cpu", "max", "-smp", "1", "-m", "128",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", filepath.Join(testImage.dir, "initramfs"), "-append", cmdline,
		"-chardev", "file,id=con,path=" + m.path("console"), "-serial", "chardev:con",
		"-qmp", "unix:" + m.path("qmp") + ",server=on,wait=off",
		"-drive", "id=cfg,if=none,format=raw,readonly=on,file=" + m.path("config"),
		"-device", "virtio-blk-device,drive=cfg,serial=" + wire.ConfigSerial,
		"-chardev", "socket,id=agent,path=" + m.path("agent") + ",server=on,wait=off",
		"-device", "virtio-serial-device,max_ports=2",
		"-device", "virtserialport,nr=1,chardev=agent,name=" + wire.SerialPort,
		// A NIC that leads nowhere, beside the one that is configured.
		"-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-device,netdev=n0,mac=02:56:00:00:00:01",
		"-netdev", "hubport,id=n1,hubid=1", "-device", "virtio-net-device,netdev=n1,mac=02:56:00:00:00:02"}
	for i, d := range disks {
		readOnly := map[bool]string{true: "on", false: "off"}[d.readOnly]
		args = append(args, "-drive", fmt.Sprintf("id=d%d,if=none,format=raw,readonly=%s,file=%s", i, readOnly, d.path),
			"-device", fmt.Sprintf("virtio-blk-device,drive=d%d,serial=%s", i, d.serial))
	}
	m.cmd = exec.Command(qemu, args...)
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.exited)
	}()
	t.Cleanup(func() {
		m.hangUp()
		_ = m.cmd.Process.Kill()
		<-m.exited
		if t.Failed() {
			t.Logf("console:\n%s", m.console())
			t.Logf("qemu: %s", stderr.String())
		}
		os.RemoveAll(dir)
	})
	m.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if m.session == nil || m.session.IsClosed() {
				return nil, net.ErrClosed
			}
			return m.session.Open()
		},
	}}
	return m
}

// hostKHz is the rate of the host's TSC, which under emulation is the guest's.
func hostKHz() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	if g := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindSubmatch(b); g != nil {
		return string(g[1]) + string(g[2])
	}
	return ""
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) console() string {
	b, _ := os.ReadFile(m.path("console"))
	return string(b)
}

func (m *machine) context() context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), vmTimeout)
	m.t.Cleanup(cancel)
	return ctx
}

// dial connects to the agent as a daemon does.
func (m *machine) dial() {
	m.t.Helper()
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(vmTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if conn, err = net.Dial("unix", m.path("agent")); err == nil {
			break
		}
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.conn = conn
	link, err := wire.Connect(m.context(), conn)
	if err != nil {
		m.t.Fatal(err)
	}
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive, cfg.LogOutput = false, io.Discard
	if m.session, err = yamux.Client(link, cfg); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) hangUp() {
	if m.session != nil {
		m.session.Close()
	}
	m.client.CloseIdleConnections()
}

// request asks the agent and returns the response's body.
func (m *machine) request(method, path, body string) (int, string) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.context(), method, "http://agent"+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := m.client.Do(req)
	if err != nil {
		m.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(b)
}

func (m *machine) get(path string) string {
	m.t.Helper()
	code, body := m.request("GET", path, "")
	if code != http.StatusOK {
		m.t.Fatalf("GET %s = %d %s", path, code, body)
	}
	return body
}

func decode[T any](t *testing.T, body string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

// await long-polls the status until it is as wanted.
func (m *machine) await(what string, want func(wire.Status) bool) wire.Status {
	m.t.Helper()
	var st wire.Status
	for deadline := time.Now().Add(vmTimeout); time.Now().Before(deadline); {
		st = decode[wire.Status](m.t, m.get(fmt.Sprintf("%s?after=%d&wait=20s", wire.PathStatus, st.Seq)))
		if want(st) {
			return st
		}
	}
	m.t.Fatalf("the status never was %s: %+v", what, st)
	return st
}

func (m *machine) logs() []wire.LogEntry {
	m.t.Helper()
	var entries []wire.LogEntry
	for line := range strings.Lines(m.get(wire.PathLogs)) {
		entries = append(entries, decode[wire.LogEntry](m.t, line))
	}
	return entries
}

func (m *machine) hasLog(stream wire.LogStream, text string) bool {
	for _, e := range m.logs() {
		if e.Stream == stream && strings.Contains(e.Data, text) {
			return true
		}
	}
	return false
}

// awaitOff waits for the machine to power itself off.
func (m *machine) awaitOff() {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(vmTimeout):
		m.t.Fatal("the machine did not power off")
	}
	if code := m.cmd.ProcessState.ExitCode(); code != 0 {
		m.t.Errorf("QEMU exited with %d", code)
	}
	if c := m.console(); strings.Contains(c, "Kernel panic") {
		m.t.Errorf("the guest's kernel panicked:\n%s", c)
	}
}

func encode(t *testing.T, cfg wire.BootConfig) []byte {
	t.Helper()
	b, err := wire.EncodeBoot(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVMServes boots one machine and looks at it from every side.
func TestVMServes(t *testing.T) {
	cfg := sampleConfig(wire.WorkloadConfig{
		Args: []string{"workload", "serve", ":8080"}, Env: []string{"A=1", "B=x=y", "A=2"},
		Workdir: "/srv/made/on/demand", User: "web", Restart: wire.RestartAlways,
		BaseURL: "http://127.0.0.1:8080",
		Health:  &wire.Health{HTTP: "http://127.0.0.1:8080/clock", Timeout: 5 * time.Second, Interval: 500 * time.Millisecond, Retries: 2},
	})
	cfg.Network = &wire.NetworkConfig{
		MAC: "02:56:00:00:00:02", Address: netip.MustParsePrefix("192.168.127.7/24"), Gateway: netip.MustParseAddr("192.168.127.1"),
		MTU: 1400, Nameservers: []netip.Addr{netip.MustParseAddr("192.168.127.1")}, Search: []string{"example"},
	}
	m := boot(t, encode(t, cfg))
	m.dial()

	hello := decode[wire.Hello](t, m.get(wire.PathHello))
	if hello.Protocol != wire.Protocol || hello.Version != "0.0.0-test" || hello.VM != "vm-1" || hello.Incarnation != 3 || hello.Kernel == "" {
		t.Errorf("hello = %+v", hello)
	}
	st := m.await("ready and healthy", func(st wire.Status) bool { return st.Healthy != nil && *st.Healthy })
	if st.Workload != wire.WorkloadRunning || st.PID <= 1 || st.Restarts != 0 || st.Exit != nil {
		t.Errorf("status = %+v", st)
	}
	checkTimeline(t, st.Timeline)
	for _, s := range st.Timeline {
		t.Logf("%-9s at %8.1f ms took %7.1f ms %s", s.Name, float64(s.Start)/1e6, float64(s.Took)/1e6, s.Error)
	}
	mem := m.get(wire.PathWorkload + "/file?path=/proc/1/status")
	for line := range strings.Lines(mem) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "Threads") {
			t.Log("kestrel ", strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(m.get(wire.PathWorkload + "/file?path=/proc/meminfo")) {
		if strings.HasPrefix(line, "Mem") || strings.HasPrefix(line, "Shmem:") {
			t.Log("guest ", strings.TrimSpace(line))
		}
	}

	t.Run("process", func(t *testing.T) {
		m.t = t
		got := m.get(wire.PathWorkload + "/process")
		for _, want := range []string{
			"uid=1000 gid=1001 groups=[33] wd=/srv/made/on/demand", "stdin=EOF",
			fmt.Sprintf("pid=%d pgrp=%d", st.PID, st.PID),
			"\nA=2\n", "\nB=x=y\n", "\nHOME=/home/web\n", "\nHOSTNAME=web.example\n", "\nPATH=/usr/local/sbin:",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("the process lacks %q:\n%s", want, got)
			}
		}
		if strings.Contains(got, "A=1") {
			t.Error("a name is twice in the environment")
		}
	})
	t.Run("identity", func(t *testing.T) {
		m.t = t
		for path, want := range map[string]string{
			"/etc/hostname":    "web.example\n",
			"/etc/machine-id":  cfg.MachineID + "\n",
			"/etc/resolv.conf": "search example\nnameserver 192.168.127.1\n",
			"/etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n192.168.127.7\tweb.example web\n",
		} {
			if got := m.get(wire.PathWorkload + "/file?path=" + path); got != want {
				t.Errorf("%s = %q, want %q", path, got, want)
			}
		}
		if got := m.get(wire.PathWorkload + "/clock"); !strings.HasSuffix(got, " web.example\n") {
			t.Errorf("host name is %q", got)
		}
	})
	t.Run("network", func(t *testing.T) {
		m.t = t
		got := m.get(wire.PathWorkload + "/net")
		for _, want := range []string{"02:56:00:00:00:02 mtu=1400 up", "[192.168.127.7/24", "\t00000000\t017FA8C0\t", "lo  mtu=65536 up"} {
			if !strings.Contains(got, want) {
				t.Errorf("the network lacks %q:\n%s", want, got)
			}
		}
		if strings.Contains(got, "00:01 mtu=1500 up") {
			t.Errorf("the other NIC is up:\n%s", got)
		}
	})
	t.Run("clock", func(t *testing.T) {
		m.t = t
		var sec int64
		fmt.Sscan(m.get(wire.PathWorkload+"/clock"), &sec)
		if off := time.Since(time.Unix(sec, 0)); off < -2*time.Second || off > 30*time.Second {
			t.Errorf("the clock is off by %v", off)
		}
		at := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
		woken := m.wake(wire.Wake{Time: at})
		fmt.Sscan(m.get(wire.PathWorkload+"/clock"), &sec)
		if off := time.Unix(sec, 0).Sub(at); off < 0 || off > 30*time.Second || woken.Time.Before(at) {
			t.Errorf("after setting it to %v the clock says %v, and the guest %v", at, time.Unix(sec, 0), woken.Time)
		}
	})
	t.Run("proxy", func(t *testing.T) {
		m.t = t
		req, _ := http.NewRequestWithContext(m.context(), "GET", "http://agent"+wire.PathWorkload+"/raw/%2e%2e//x%2Fy?q=1;2", nil)
		req.Host, req.Header = "shop.example", http.Header{"X-Forwarded-For": {"192.0.2.9"}}
		resp, err := m.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := "shop.example /raw/%2e%2e//x%2Fy?q=1;2 192.0.2.9"; string(b) != want {
			t.Errorf("the workload saw %q, want %q", b, want)
		}
		if code, _ := m.request("GET", wire.PathWorkload+"/nothing", ""); code != http.StatusNotFound {
			t.Errorf("a path that the workload lacks = %d, want its 404", code)
		}
	})
	t.Run("stream", func(t *testing.T) {
		m.t = t
		// Both directions at once: the body ends only after part 0 arrived.
		body, feed := io.Pipe()
		req, _ := http.NewRequestWithContext(m.context(), "POST", "http://agent"+wire.PathWorkload+"/stream", body)
		resp, err := m.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		if line, err := r.ReadString('\n'); line != "part 0\n" {
			t.Fatalf("first part = %q, %v", line, err)
		}
		feed.Close()
		if b, err := io.ReadAll(r); string(b) != "part 1\npart 2\n" || err != nil {
			t.Errorf("the rest = %q, %v", b, err)
		}
	})
	t.Run("upgrade", func(t *testing.T) {
		m.t = t
		conn, err := m.session.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(vmTimeout))
		fmt.Fprintf(conn, "GET %s/upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", wire.PathWorkload)
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("upgrade = %v, %v", resp, err)
		}
		for _, word := range []string{"ping\n", "pong\n"} {
			fmt.Fprint(conn, word)
			if got, err := r.ReadString('\n'); got != word {
				t.Errorf("echo = %q, %v, want %q", got, err, word)
			}
		}
	})
	t.Run("errors", func(t *testing.T) {
		m.t = t
		for _, tt := range []struct {
			method, path, body string
			code               int
			text               string
		}{
			{"GET", "/v1/nothing", "", 404, "/v1/nothing"},
			{"DELETE", wire.PathHello, "", 404, "DELETE"},
			{"GET", wire.PathStatus + "?after=x", "", 400, "after"},
			{"GET", wire.PathStatus + "?after=1&wait=-1s", "", 400, "wait"},
			{"GET", wire.PathLogs + "?follow=maybe", "", 400, "follow"},
			{"POST", wire.PathWake, "{", 400, "body"},
			{"POST", wire.PathWake, "{}", 400, "time"},
			{"POST", wire.PathWake, strings.Repeat("x", 100<<10), 400, "too large"},
			{"POST", wire.PathWake, `{"epoch":1,"time":"2031-01-01T00:00:00Z"}`, 400, "seed"},
		} {
			code, body := m.request(tt.method, tt.path, tt.body)
			if code != tt.code || !strings.Contains(decode[wire.Error](t, body).Message, tt.text) {
				t.Errorf("%s %s = %d %s, want %d with %q", tt.method, tt.path, code, body, tt.code, tt.text)
			}
		}
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		m.t = t
		if got := m.get(wire.PathWorkload + "/orphan"); got != "<nil>" {
			t.Fatal(got)
		}
		time.Sleep(200 * time.Millisecond) // the orphan naps for 100 ms
		zombies := "?"
		for deadline := time.Now().Add(vmTimeout); zombies != "" && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			zombies = m.get(wire.PathWorkload + "/zombies")
		}
		if zombies != "" {
			t.Errorf("zombies are left:\n%s", zombies)
		}
	})
	t.Run("hosts come and go", func(t *testing.T) {
		m.t = t
		worst := time.Duration(0)
		for i := range 20 {
			// A download is under way; one host says goodbye, the next is killed.
			m.client.CloseIdleConnections()
			stream, err := m.session.Open()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(stream, "GET %s/file?path=/usr/bin/workload HTTP/1.1\r\nHost: x\r\n\r\n", wire.PathWorkload)
			_, _ = io.ReadFull(stream, make([]byte, 100))
			if i%2 == 1 {
				m.conn.Close()
			}
			m.session.Close()
			start := time.Now()
			m.dial()
			m.get(wire.PathHello)
			worst = max(worst, time.Since(start))
		}
		t.Logf("slowest reconnection with an answer: %v", worst)
	})
	t.Run("wake", func(t *testing.T) {
		m.t = t
		m.testWake()
	})
	t.Run("restart", func(t *testing.T) {
		m.t = t
		go func() { // the workload dies with the request
			if resp, err := m.client.Get("http://agent" + wire.PathWorkload + "/exit?code=3"); err == nil {
				resp.Body.Close()
			}
		}()
		st := m.await("in back-off", func(st wire.Status) bool { return st.Workload == wire.WorkloadBackoff })
		if st.Exit == nil || st.Exit.Code != 3 || st.Exit.Signal != "" || st.PID != 0 {
			t.Errorf("status = %+v, exit %+v, want code 3", st, st.Exit)
		}
		st = m.await("healthy again", func(st wire.Status) bool { return st.Healthy != nil && *st.Healthy })
		if st.Restarts != 1 || st.Workload != wire.WorkloadRunning {
			t.Errorf("status = %+v, want running after 1 restart", st)
		}
		if !m.hasLog(wire.Stdout, "told to exit") {
			t.Error("the log lacks what the workload wrote before it exited")
		}
	})
	t.Run("killed by a signal", func(t *testing.T) {
		m.t = t
		go func() {
			if resp, err := m.client.Get("http://agent" + wire.PathWorkload + "/signal?n=9"); err == nil {
				resp.Body.Close()
			}
		}()
		st := m.await("in its second restart", func(st wire.Status) bool { return st.Restarts == 2 && st.Healthy != nil })
		if st.Exit == nil || st.Exit.Code != 137 || st.Exit.Signal != "SIGKILL" || st.Exit.OOMKilled {
			t.Errorf("exit = %+v, want 137 by SIGKILL, not by the OOM killer", st.Exit)
		}
	})
	t.Run("killed for memory", func(t *testing.T) {
		m.t = t
		go func() {
			if resp, err := m.client.Get("http://agent" + wire.PathWorkload + "/eat"); err == nil {
				resp.Body.Close()
			}
		}()
		st := m.await("in its third restart", func(st wire.Status) bool { return st.Restarts == 3 && st.Healthy != nil })
		if st.Exit == nil || st.Exit.Code != 137 || !st.Exit.OOMKilled {
			t.Errorf("exit = %+v, want 137 by the OOM killer", st.Exit)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		m.t = t
		follow, err := m.client.Get("http://agent" + wire.PathLogs + "?follow=true")
		if err != nil {
			t.Fatal(err)
		}
		defer follow.Body.Close()
		if code, body := m.request("POST", wire.PathShutdown, ""); code != http.StatusAccepted {
			t.Fatalf("POST shutdown = %d %s", code, body)
		}
		all, err := io.ReadAll(follow.Body)
		if err != nil {
			t.Errorf("the log stream broke off: %v", err)
		}
		if !bytes.Contains(all, []byte("SIGTERM")) {
			t.Errorf("the stream of the logs ends without the stop signal: %s", all)
		}
		m.awaitOff()
	})
}

// checkTimeline checks the names and the order of the boot's steps.
func checkTimeline(t *testing.T, steps []wire.Step) {
	t.Helper()
	var names []string
	for i, s := range steps {
		names = append(names, s.Name)
		if s.Start < 0 || s.Took < 0 || i > 0 && s.Start < steps[i-1].Start {
			t.Errorf("step %+v is out of order", s)
		}
		if s.Error != "" {
			t.Errorf("step %s: %s", s.Name, s.Error)
		}
	}
	want := "kernel mounts modules config identity entropy network workload ready agent"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("timeline = %s, want %s", got, want)
	}
}

func TestVMExitStatus(t *testing.T) {
	m := boot(t, encode(t, sampleConfig(wire.WorkloadConfig{Args: []string{"workload", "exit", "7"}})))
	m.dial()
	st := m.await("final", func(st wire.Status) bool { return st.Workload == wire.WorkloadExited })
	if st.Exit == nil || st.Exit.Code != 7 || st.Exit.Signal != "" || st.Exit.Time.IsZero() {
		t.Errorf("exit = %+v, want code 7", st.Exit)
	}
	if !m.hasLog(wire.Stderr, "last words") {
		t.Errorf("the last words are missing: %v", m.logs())
	}
	m.awaitOff()
}

func TestVMFailures(t *testing.T) {
	workload := func(edit func(*wire.WorkloadConfig)) func(*testing.T) []byte {
		return func(t *testing.T) []byte {
			w := wire.WorkloadConfig{Args: []string{"workload", "serve", ":80"}, Restart: wire.RestartAlways}
			edit(&w)
			return encode(t, sampleConfig(w))
		}
	}
	tests := []struct {
		name   string
		config func(*testing.T) []byte
		want   string // in the status and on the console
	}{
		{"no such command", workload(func(w *wire.WorkloadConfig) { w.Args[0] = "nope" }), `workload: command "nope" is in none of the directories of PATH=`},
		{"not a program", workload(func(w *wire.WorkloadConfig) { w.Args[0] = "not-a-program" }), "not a program for this machine"},
		{"damaged configuration", func(t *testing.T) []byte {
			b := workload(func(*wire.WorkloadConfig) {})(t)
			return bytes.Replace(b, []byte("vm-1"), []byte("vm-2"), 1)
		}, "config: /dev/vda: not a boot configuration: the digest does not match"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := boot(t, tt.config(t))
			m.dial()
			st := m.await("failed", func(st wire.Status) bool { return st.Workload == wire.WorkloadFailed })
			if !strings.Contains(st.Error, tt.want) {
				t.Errorf("error = %q, want %q", st.Error, tt.want)
			}
			if code, body := m.request("POST", wire.PathShutdown, ""); code != http.StatusAccepted {
				t.Errorf("POST shutdown = %d %s", code, body)
			}
			m.awaitOff()
			if c := m.console(); !strings.Contains(c, "kestrel: "+st.Error) {
				t.Errorf("the console does not say why:\n%s", c)
			}
		})
	}
}

// TestVMPowerButton has a workload that does not mind its stop signal, and a
// host that never says a word.
func TestVMPowerButton(t *testing.T) {
	cfg := sampleConfig(wire.WorkloadConfig{Args: []string{"workload", "ignore-term"}, StopTimeout: 500 * time.Millisecond})
	cfg.Mounts = []wire.MountConfig{{Type: wire.MountDisk, Target: "/data"}} // an appliance has volumes too
	volume := ext4(t, wire.VolumeSerial(0), "", 16)
	m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), volume)
	m.dial()
	m.await("running", func(st wire.Status) bool { return st.Workload == wire.WorkloadRunning })
	for !m.hasLog(wire.Stdout, "ignoring") {
		time.Sleep(50 * time.Millisecond)
	}
	m.hangUp()
	qmp, err := net.Dial("unix", m.path("qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer qmp.Close()
	fmt.Fprint(qmp, `{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}`)
	m.awaitOff()
	clean(t, volume)
	if out := command(t, "dumpe2fs", "-h", volume.path); !strings.Contains(out, "Mount count:              1\n") {
		t.Errorf("the volume was not mounted once:\n%s", out)
	}
}
