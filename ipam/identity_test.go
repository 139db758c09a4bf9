package ipam_test

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/volantvm/volant/ipam"
)

// TestIdentityIsStable pins the derivation: users write these values into DHCP, DNS and monitoring, so a release must not
// change them.
func TestIdentityIsStable(t *testing.T) {
	const id = "01JD7Z0000000000000000000A"
	cid, err := ipam.CID(id, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %d %s", ipam.MAC(id), cid, ipam.MachineID(id))
	const want = "92:d3:5e:22:79:49 3460887131 f1bdcda5d00a4d7c9dc1f962c7f11444" // computed with another implementation of SHA-256
	if got != want {
		t.Errorf("MAC, CID, MachineID of %s = %s, want %s", id, got, want)
	}
}

func TestIdentityForm(t *testing.T) {
	machineID := regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`)
	macs, cids, machines := map[string]string{}, map[uint32]string{}, map[string]string{}
	for i := range 5000 {
		id := fmt.Sprintf("vm-%d", i)
		mac := ipam.MAC(id)
		if len(mac) != 6 || mac[0]&3 != 2 {
			t.Fatalf("MAC(%s) = %s, want 6 octets, locally administered, unicast", id, mac)
		}
		cid, err := ipam.CID(id, nil)
		if err != nil || cid < ipam.MinCID || cid > ipam.MaxCID {
			t.Fatalf("CID(%s) = %d, %v, want %d to %d", id, cid, err, ipam.MinCID, ipam.MaxCID)
		}
		m := ipam.MachineID(id)
		if !machineID.MatchString(m) {
			t.Fatalf("MachineID(%s) = %s, want 32 hexadecimal digits of a version 4 UUID", id, m)
		}
		for _, c := range []struct{ what, other string }{{"MAC", macs[mac.String()]}, {"CID", cids[cid]}, {"machine id", machines[m]}} {
			if c.other != "" {
				t.Fatalf("%s and %s share a %s", id, c.other, c.what)
			}
		}
		macs[mac.String()], cids[cid], machines[m] = id, id, id
	}
	if m := ipam.MAC("a"); cap(m) != 6 {
		t.Errorf("cap(MAC) = %d, want 6: an append would reach the rest of the hash", cap(m))
	}
}

func TestCIDFallsBack(t *testing.T) {
	own, err := ipam.CID("web", nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		taken []uint32
		want  uint32
	}{
		{name: "others taken", taken: []uint32{3, 4, own + 1}, want: own},
		{name: "own taken", taken: []uint32{own}, want: 3},
		{name: "lowest free", taken: []uint32{5, own, 3, 4, 7}, want: 6},
		{name: "reserved ids do not count", taken: []uint32{0, 1, 2, own, 1<<32 - 1}, want: 3},
		{name: "duplicates", taken: []uint32{own, own, 3, 3}, want: 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := ipam.CID("web", tt.taken); err != nil || got != tt.want {
				t.Errorf("CID(web, %v) = %d, %v, want %d", tt.taken, got, err, tt.want)
			}
		})
	}
}
