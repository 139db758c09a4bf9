package roles_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/cloudhypervisor"
	"github.com/volantvm/volant/hv/qemu"
	"github.com/volantvm/volant/initramfs"
	"github.com/volantvm/volant/testdata/need"
)

// forkHost is a network of one bridge, and a driver on it.
type forkHost struct {
	t      *testing.T
	ctx    context.Context
	driver hv.Driver
	caps   hv.Capabilities
	dir    string // short: sockets are in it
	taps   []string
}

// forkIdentity is that of the template, 0, or of a fork. They differ in everything.
func forkIdentity(n int) wire.Identity {
	return wire.Identity{
		VM: fmt.Sprintf("vm-%d", n), Name: fmt.Sprintf("name-%d", n), Incarnation: n + 1, Hostname: fmt.Sprintf("host-%d", n),
		MachineID: strings.Repeat(fmt.Sprintf("%02x", 0xa0+n), 16),
		Network: &wire.NetworkConfig{
			MAC: fmt.Sprintf("02:56:00:00:77:%02x", n), Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + n)}), 24),
			Gateway: netip.MustParseAddr("10.77.0.1"), Nameservers: []netip.Addr{netip.AddrFrom4([4]byte{10, 77, 0, byte(100 + n)})},
		},
	}
}

// TestForks boots a guest, takes a template of it, and restores that twice in one
// network: each fork is somebody else, at an address of its own, once it has been
// woken.
func TestForks(t *testing.T) {
	needVMs(t)
	h := newForkHost(t)
	if !h.caps.Snapshot || !h.caps.Template {
		need.Missing(t, "templates, which %s %s takes none of here", h.caps.Driver, h.caps.Version)
	}
	spec := h.spec(0)
	h.artifacts(&spec)
	spec.MemoryFile = filepath.Join(h.dir, "memory")
	template, err := h.driver.Launch(h.ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer h.end(template)
	first := h.look(0)
	if time.Until(first.clock).Abs() > 30*time.Second {
		t.Errorf("the template's clock says %v", first.clock)
	}
	if err := template.Pause(h.ctx); err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(h.dir, "snapshot")
	if err := os.Mkdir(snapshot, 0o700); err != nil {
		t.Fatal(err)
	}
	kept, err := template.(hv.Snapshotter).Snapshot(h.ctx, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	h.end(template)

	time.Sleep(2 * time.Second) // the forks' clocks stood still for so long
	var forks []hv.VM
	seen := []seen{first}
	for n := 1; n <= 2; n++ {
		fork := h.spec(n)
		fork.Disks = spec.Disks
		start := time.Now()
		vm, err := h.driver.Restore(h.ctx, fork, kept, hv.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer h.end(vm)
		forks = append(forks, vm)
		if err := vm.Resume(h.ctx); err != nil {
			t.Fatal(err)
		}
		vm.Agent().Reset()
		restored := time.Since(start)
		if n == 1 {
			h.mute(n, time.Second)
		}
		h.wake(vm, n)
		t.Logf("fork %d: restored after %v, woken after %v", n, restored, time.Since(start))
		seen = append(seen, h.look(n))
	}
	for n := 1; n <= 2; n++ {
		got := h.look(n) // of both while both run
		id := forkIdentity(n)
		want := fmt.Sprintf("%s\n%s\nnameserver %s\n", id.Hostname, id.MachineID, id.Network.Nameservers[0])
		if got.name != id.Hostname || got.files != want || !strings.Contains(got.hosts, id.Network.Address.Addr().String()+"\t"+id.Hostname+"\n") {
			t.Errorf("fork %d is %s with files\n%s%s", n, got.name, got.files, got.hosts)
		}
		if off := time.Until(got.clock).Abs(); off > 30*time.Second {
			t.Errorf("fork %d: the clock is off by %v", n, off)
		}
		if strings.Contains(got.net, "10.77.0.10/") || !strings.Contains(got.net, id.Network.MAC) {
			t.Errorf("fork %d has the network\n%s", n, got.net)
		}
		if seen[0].boot != got.boot {
			t.Errorf("fork %d did not go on where the template was: boot %s and %s", n, seen[0].boot, got.boot)
		}
		for m := range n {
			if seen[m].random == seen[n].random {
				t.Errorf("%d and %d have the same random bytes %s", m, n, got.random)
			}
		}
	}
	var hello wire.Hello
	h.call(forks[1], http.MethodGet, wire.PathHello, nil, &hello)
	if hello.VM != "vm-2" || hello.Incarnation != 3 || hello.Epoch != 1 {
		t.Errorf("the second fork says hello as %+v", hello)
	}
	for _, vm := range forks {
		vm.Agent().Reset()
	}
	h.rests(2, 2*time.Second)
	if _, err := net.DialTimeout("tcp", "10.77.0.10:8080", time.Second); err == nil {
		t.Error("somebody answers at the template's address")
	}
}

func newForkHost(t *testing.T) *forkHost {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "fork-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &forkHost{t: t, ctx: ctx, dir: dir, driver: qemu.New(qemu.Config{})}
	if os.Getenv("VOLANT_TEST_HYPERVISOR") == cloudhypervisor.Name {
		h.driver = cloudhypervisor.New(cloudhypervisor.Config{AnyKVM: true})
	}
	if h.caps, err = h.driver.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v\n%s", args, err, out)
		}
	}
	ip("link", "add", "forkbr", "type", "bridge")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "forkbr").Run() })
	ip("addr", "add", "10.77.0.1/24", "dev", "forkbr")
	ip("link", "set", "forkbr", "up")
	for n := range 3 {
		tap := fmt.Sprintf("fork%d", n)
		ip("tuntap", "add", tap, "mode", "tap", "vnet_hdr")
		t.Cleanup(func() { exec.Command("ip", "link", "del", tap).Run() })
		ip("link", "set", tap, "master", "forkbr", "up")
		h.taps = append(h.taps, tap)
	}
	return h
}

// spec is that of the template, 0, or of a fork, without its files.
func (h *forkHost) spec(n int) hv.Spec {
	h.t.Helper()
	dir := filepath.Join(h.dir, fmt.Sprint(n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	id := forkIdentity(n)
	mac, err := net.ParseMAC(id.Network.MAC)
	if err != nil {
		h.t.Fatal(err)
	}
	s := hv.Spec{
		ID: id.VM, Dir: dir, VCPUs: 1, MemoryMiB: 192, Kernel: os.Getenv("VOLANT_TEST_KERNEL"), Cmdline: []string{wire.ParamVM + "=" + id.VM},
		NICs: []hv.NIC{{Tap: h.taps[n], MAC: mac}}, ConsoleLog: filepath.Join(h.dir, fmt.Sprintf("console%d", n)),
	}
	if h.caps.Channel == hv.ChannelVsock {
		s.CID = uint32(7700 + n)
	}
	h.t.Cleanup(func() {
		if b, _ := os.ReadFile(s.ConsoleLog); h.t.Failed() {
			h.t.Logf("console of %s:\n%s", s.ID, b)
		}
	})
	return s
}

// artifacts makes the guest: an image of one program, below the agent.
func (h *forkHost) artifacts(s *hv.Spec) {
	h.t.Helper()
	must := func(err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
	}
	tree := filepath.Join(h.dir, "tree")
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		must(os.MkdirAll(filepath.Join(tree, dir), 0o755))
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tree, "bin/workload"), "../guest/testdata/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, cmd := range []*exec.Cmd{build, exec.Command("mkfs.erofs", filepath.Join(h.dir, "root.erofs"), tree)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			h.t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
		}
	}
	agent, err := os.ReadFile(os.Getenv(envBinary))
	must(err)
	var a initramfs.Archive
	must(a.Add(initramfs.Entry{Name: "/init", Mode: 0o755, Data: agent}))
	must(a.Add(initramfs.Entry{Name: "/dev/console", Mode: os.ModeDevice | os.ModeCharDevice | 0o600, Major: 5, Minor: 1}))
	s.Initramfs = filepath.Join(h.dir, "initramfs")
	f, err := os.Create(s.Initramfs)
	must(err)
	_, err = a.WriteTo(f)
	must(err)
	must(f.Close())

	id := forkIdentity(0)
	image, err := wire.EncodeBoot(wire.BootConfig{
		Version: "test", VM: id.VM, Name: id.Name, Incarnation: id.Incarnation, Hostname: id.Hostname, MachineID: id.MachineID,
		Time: time.Now(), Seed: randomBytes(64), Network: id.Network, Root: &wire.RootConfig{Upper: wire.UpperMemory},
		Workload: wire.WorkloadConfig{Args: []string{"workload", "serve", ":8080"}, BaseURL: "http://127.0.0.1:8080"},
	})
	must(err)
	config := filepath.Join(h.dir, "config.img")
	must(os.WriteFile(config, image, 0o600))
	s.Disks = []hv.Disk{
		{Serial: wire.ConfigSerial, Path: config, ReadOnly: true},
		{Serial: wire.RootSerial, Path: filepath.Join(h.dir, "root.erofs"), ReadOnly: true},
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // never fails
	return b
}

// mute checks that a fork announces no address to the network: before it is woken
// it knows none but the template's.
func (h *forkHost) mute(n int, d time.Duration) {
	h.t.Helper()
	tap, err := net.InterfaceByName(h.taps[n])
	if err != nil {
		h.t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL << 8) // in network byte order; one protocol alone would be the bridge's
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: tap.Index}); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		h.t.Fatal(err)
	}
	b := make([]byte, 1500)
	for end := time.Now().Add(d); time.Now().Before(end); {
		// Behind 14 bytes of Ethernet, whose last two say that it is ARP, RFC 826
		// has the sender's address at 14, and at 24 the one that is asked for. In an
		// announcement, RFC 5227, they are the same.
		size, _, err := unix.Recvfrom(fd, b, 0)
		if err == nil && size >= 42 && b[12] == 8 && b[13] == 6 && bytes.Equal(b[28:32], b[38:42]) {
			h.t.Errorf("fork %d announces %v", n, net.IP(b[28:32]))
			return
		}
	}
}

// rests checks that a guest whose agent no host is connected with has nothing to do.
func (h *forkHost) rests(n int, d time.Duration) {
	h.t.Helper()
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	idle := func() (seconds float64) {
		h.t.Helper()
		h.ask(c, http.MethodGet, "http://"+net.JoinHostPort(forkIdentity(n).Network.Address.Addr().String(), "8080")+"/file?path=/proc/uptime", nil, func(b []byte) {
			var up float64
			if _, err := fmt.Sscan(string(b), &up, &seconds); err != nil {
				h.t.Fatalf("/proc/uptime says %q: %v", b, err)
			}
		})
		return seconds
	}
	before := idle()
	time.Sleep(d)
	if got := idle() - before; got < d.Seconds()/10 {
		h.t.Errorf("guest %d was idle for %.2f s of %v without a host", n, got, d)
	}
}

// wake tells a fork who it is.
func (h *forkHost) wake(vm hv.VM, n int) {
	h.t.Helper()
	id := forkIdentity(n)
	var woken wire.Woken
	h.call(vm, http.MethodPost, wire.PathWake, wire.Wake{Epoch: 1, Time: time.Now(), Seed: randomBytes(64), Identity: &id}, &woken)
	if woken.Epoch != 1 || len(woken.Steps) != 4 || time.Until(woken.Time).Abs() > 30*time.Second {
		h.t.Errorf("fork %d was woken as %+v", n, woken)
	}
	for _, s := range woken.Steps {
		if s.Error != "" {
			h.t.Errorf("fork %d: %s: %s", n, s.Name, s.Error)
		}
		h.t.Logf("fork %d: %-9s took %v", n, s.Name, s.Took)
	}
}

// call asks the agent, which may be slow to notice its new host.
func (h *forkHost) call(vm hv.VM, method, path string, in, out any) {
	h.t.Helper()
	again := false
	rt := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if again {
			vm.Agent().Reset()
		}
		again = true
		return vm.Agent().Dial(ctx)
	}}
	h.ask(&http.Client{Transport: rt, Timeout: 30 * time.Second}, method, "http://agent"+path, in, func(b []byte) {
		if err := json.Unmarshal(b, out); err != nil {
			h.t.Fatalf("%s: %v in %s", path, err, b)
		}
	})
}

// ask repeats a request until it is answered.
func (h *forkHost) ask(c *http.Client, method, url string, in any, done func([]byte)) {
	h.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		h.t.Fatal(err)
	}
	for {
		req, err := http.NewRequestWithContext(h.ctx, method, url, bytes.NewReader(body))
		if err != nil {
			h.t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err == nil {
			b, rerr := io.ReadAll(resp.Body)
			resp.Body.Close()
			if rerr == nil && resp.StatusCode == http.StatusOK {
				done(b)
				return
			}
			err = fmt.Errorf("%s: %s (%v)", resp.Status, b, rerr)
		}
		select {
		case <-h.ctx.Done():
			h.t.Fatalf("%s %s: %v", method, url, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// seen is what a guest's workload says of where it is.
type seen struct {
	name, files, hosts, net, random, boot string
	clock                                 time.Time
}

// look asks a guest's workload at its own address.
func (h *forkHost) look(n int) seen {
	h.t.Helper()
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (text string) {
		h.t.Helper()
		h.ask(c, http.MethodGet, "http://"+net.JoinHostPort(forkIdentity(n).Network.Address.Addr().String(), "8080")+path, nil, func(b []byte) { text = string(b) })
		return text
	}
	var s seen
	var sec int64
	if _, err := fmt.Sscan(get("/clock"), &sec, &s.name); err != nil {
		h.t.Fatal(err)
	}
	s.clock = time.Unix(sec, 0)
	s.files = get("/file?path=/etc/hostname") + get("/file?path=/etc/machine-id") + get("/file?path=/etc/resolv.conf")
	s.hosts, s.net, s.random = get("/file?path=/etc/hosts"), get("/net"), get("/random")
	s.boot = get("/file?path=/proc/sys/kernel/random/boot_id")
	return s
}

func (h *forkHost) end(vm hv.VM) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := vm.Kill(ctx); err != nil {
		h.t.Error(err)
	}
	vm.Detach() //nolint:errcheck // it may be the second time
}
