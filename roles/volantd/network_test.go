package volantd

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/volantvm/volant/daemon"
	"github.com/volantvm/volant/daemon/netdev"
)

// TestPortErrors shows that the daemon knows the errors of host ports. It binds
// ports of the loopback interface and changes nothing.
func TestPortErrors(t *testing.T) {
	nd, err := netdev.New(netdev.Config{Bridge: "vbr0", Prefix: netip.MustParsePrefix("192.168.127.1/24")})
	if err != nil {
		t.Fatal(err)
	}
	n := network{Network: nd}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := daemon.Publish{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: uint16(ln.Addr().(*net.TCPAddr).Port), GuestPort: 80, Protocol: "tcp"}
	stranger := taken
	stranger.HostIP = netip.MustParseAddr("192.0.2.1") // TEST-NET-1, RFC 5737
	for _, tt := range []struct {
		name string
		p    daemon.Publish
		want error
	}{
		{"in use", taken, daemon.ErrPortInUse},
		{"no address", stranger, daemon.ErrNoAddress},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := n.CheckPort(tt.p); !errors.Is(err, tt.want) {
				t.Errorf("CheckPort(%v) = %v, want %v", tt.p, err, tt.want)
			}
			if err := n.Reserve(t.Context(), "vm", []daemon.Publish{tt.p}); !errors.Is(err, tt.want) {
				t.Errorf("Reserve(%v) = %v, want %v", tt.p, err, tt.want)
			}
		})
	}
	ln.Close()
	if err := n.Reserve(t.Context(), "vm", []daemon.Publish{taken}); err != nil {
		t.Errorf("Reserve(%v) = %v, want ok", taken, err)
	}
	if err := n.Reserve(t.Context(), "vm", nil); err != nil {
		t.Errorf("Reserve(nil) = %v, want ok", err)
	}
}
