package guest

import (
	"slices"
	"strings"
	"testing"
)

func TestLookupUser(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:1000:1001::/home/web:/bin/sh\nbroken:x:a:b::/:/\nshort:x\nnohome:x:5:6:::\n65534:x:2:2::/two:\nzeros:x:0042:0043::/z:\n", 0o644)
	sys.put(t, "/etc/group", "root:x:0:\nweb:x:1001:web\nlogs:x:33:other,web\nadm:x:4:webmaster\n7:x:8:\nwide:x:1001:other,web\n", 0o644)
	tests := []struct {
		spec     string
		uid, gid uint32
		groups   []uint32
		home     string
		err      string
	}{
		{spec: "", home: "/root"},
		{spec: "root", home: "/root"},
		{spec: "web", uid: 1000, gid: 1001, groups: []uint32{33}, home: "/home/web"},
		{spec: "42", uid: 42, gid: 43, home: "/z"},
		{spec: "1000", uid: 1000, gid: 1001, groups: []uint32{33}, home: "/home/web"},
		{spec: "web:logs", uid: 1000, gid: 33, home: "/home/web"},
		{spec: "web:7", uid: 1000, gid: 7, home: "/home/web"},
		{spec: "65534", uid: 65534, home: "/"},
		{spec: "65534:65533", uid: 65534, gid: 65533, home: "/"},
		{spec: "nohome", uid: 5, gid: 6, home: "/"},
		{spec: "nobody", err: `user "nobody" is not in the image's /etc/passwd`},
		{spec: "web:nogroup", err: `group "nogroup" is not in the image's /etc/group`},
		{spec: "web:", err: `group ""`},
		{spec: "broken", err: "malformed"},
		{spec: "4294967295", err: "4294967295"},
		{spec: "-1", err: "-1"},
	}
	for _, tt := range tests {
		got, err := lookupUser(sys, tt.spec)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("lookupUser(%q) = %+v, %v, want an error with %q", tt.spec, got, err, tt.err)
			}
			continue
		}
		if err != nil || got.Uid != tt.uid || got.Gid != tt.gid || !slices.Equal(got.Groups, tt.groups) || got.home != tt.home {
			t.Errorf("lookupUser(%q) = %+v, %v, want %d:%d %v %s", tt.spec, got, err, tt.uid, tt.gid, tt.groups, tt.home)
		}
	}
	if got, err := lookupUser(newFakeSys(t), "12:34"); err != nil || got.Uid != 12 || got.Gid != 34 {
		t.Errorf("in an image without the files lookupUser(12:34) = %+v, %v", got, err)
	}
}
