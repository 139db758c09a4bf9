package guest

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volantvm/volant/testdata/need"
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

// TestLookupUserOfShim holds lookupUser against what the shim has of it in C, with
// files that are put together from what is hard to read.
func TestLookupUserOfShim(t *testing.T) {
	program := filepath.Join(t.TempDir(), "account")
	if out, err := exec.Command(need.Tool(t, "gcc"), "-Wall", "-Werror", "-fsanitize=address,undefined", "-static-libasan", "-o", program, "shim/account_main.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	names := []string{"root", "web", "0", "7", "", "a b", "4294967295", "4294967294", "99999999999999999999", "007", "#x", "-1"}
	file := func(line func() string) string {
		var b strings.Builder
		for range r.IntN(6) {
			b.WriteString(pick("", "", "", " ", "\t ", "#") + line() + pick("\n", "\n", "\n", "\r\n", " \n", "\n\n", ""))
		}
		return b.String()
	}
	fields := func(n int, special func(i int) string) func() string {
		return func() string {
			var f []string
			for i := range n + r.IntN(3) - 1 {
				f = append(f, special(i))
			}
			return strings.Join(f, ":")
		}
	}
	sys, found := newFakeSys(t), 0
	for range 500 {
		passwd := file(fields(7, func(i int) string {
			if i == 5 {
				return pick("/home/web", "/", "", "relative", "/a b")
			}
			return pick(names...)
		}))
		group := file(fields(4, func(i int) string {
			if i == 3 {
				return pick("", "web", "root,web", "web,", ",web", "webmaster,a b", "0,7")
			}
			return pick(names...)
		}))
		sys.put(t, "/etc/passwd", passwd, 0o644)
		sys.put(t, "/etc/group", group, 0o644)
		spec := pick(names...)
		if r.IntN(3) == 0 {
			spec += ":" + pick(names...)
		}
		user, named, grouped := strings.Cut(spec, ":")
		if spec == "" {
			user = "0" // as the plan has it
		}
		args := []string{sys.at("/etc/passwd"), sys.at("/etc/group"), user}
		if grouped {
			args = append(args, named)
		}
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", spec, err, out)
		}
		want := "error\n"
		if acct, err := lookupUser(sys, spec); err == nil {
			found++
			want = fmt.Sprintf("%d %d %d %s\n", acct.Uid, acct.Gid, acct.Groups, acct.home)
		}
		if string(out) != want {
			t.Fatalf("user %q of\n%s-- and\n%s-- is %q to the shim, want %q", spec, passwd, group, out, want)
		}
	}
	if found < 100 {
		t.Errorf("only %d of the users were found", found)
	}
}
