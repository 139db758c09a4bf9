package netdev_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// The world beyond the host: a process in a second network namespace, joined by a veth pair. It answers each UDP datagram with the
// source address it saw, and for a datagram "knock ADDR:PORT" sends one to that address, unasked.
const (
	wanHost = "198.51.100.1/24" // TEST-NET-2, RFC 5737
	wanAddr = "198.51.100.2/24"
	wanPort = 7777
)

// wanMain is the helper process. It ends when its standard input does.
func wanMain() int {
	fail := func(err error) int { fmt.Println("error:", err); return 1 }
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil { // the veth is there now
		return fail(err)
	}
	if err := loopbackUp(); err != nil {
		return fail(err)
	}
	veth, err := netlink.LinkByName("wan1")
	if err != nil {
		return fail(err)
	}
	addr, err := netlink.ParseAddr(wanAddr)
	if err != nil {
		return fail(err)
	}
	if err := netlink.AddrAdd(veth, addr); err != nil {
		return fail(err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fail(err)
	}
	// It knows the way to the guests, so that only the rules keep it from them.
	host, _, err := net.ParseCIDR(wanHost)
	if err != nil {
		return fail(err)
	}
	_, guests, err := net.ParseCIDR(testPrefix)
	if err != nil {
		return fail(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Attrs().Index, Dst: guests, Gw: host}); err != nil {
		return fail(err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: wanPort})
	if err != nil {
		return fail(err)
	}
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if to, ok := strings.CutPrefix(string(b[:n]), "knock "); ok {
				if ap, err := netip.ParseAddrPort(to); err == nil {
					_, _ = conn.WriteToUDPAddrPort([]byte("knock"), ap)
				}
			}
			_, _ = conn.WriteToUDPAddrPort([]byte("saw "+from.Addr().String()), from)
		}
	}()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, in)
	return 0
}

// startWAN joins the world beyond the host to the test's namespace.
func startWAN(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for Pdeathsig
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=wan")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
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
	t.Cleanup(func() {
		in.Close()
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("wan: %v", err)
		}
		if l, err := netlink.LinkByName("wan0"); err == nil { // gone with the other end, unless that failed
			_ = netlink.LinkDel(l)
		}
	})

	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("wan1")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetNsPid(peer, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(wanHost)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(veth, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("wan: %q, %v", line, err)
	}
}
