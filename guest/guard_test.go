package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/testdata/need"
)

const guestCmdline = "console=ttyS0 quiet volant.vm=vm-1 panic=-1\n"

func TestGuard(t *testing.T) {
	tests := []struct {
		name    string
		pid     int
		magic   int64
		cmdline string
		before  string // what /proc/cmdline says before any mount, if it is there
		fail    string // the call that fails
		want    string // in the refusal; "" for none
		calls   []string
	}{
		{name: "a guest", pid: 1, magic: unix.RAMFS_MAGIC, cmdline: guestCmdline, calls: []string{"mount proc /proc"}},
		{name: "a guest on tmpfs", pid: 1, magic: unix.TMPFS_MAGIC, cmdline: guestCmdline, calls: []string{"mount proc /proc"}},
		{name: "proc is mounted", pid: 1, magic: unix.TMPFS_MAGIC, before: guestCmdline},
		{name: "a daemon's child", pid: 4711, magic: unix.TMPFS_MAGIC, cmdline: guestCmdline, want: "process 4711"},
		{name: "a container", pid: 1, magic: unix.OVERLAYFS_SUPER_MAGIC, cmdline: guestCmdline, want: "not an initramfs"},
		{name: "a host's disk", pid: 1, magic: unix.EXT4_SUPER_MAGIC, cmdline: guestCmdline, want: "not an initramfs"},
		{name: "another initramfs", pid: 1, magic: unix.RAMFS_MAGIC, cmdline: "quiet volant.log=debug xvolant.vm=1 volant.vm= volant.vm\n",
			want: "volant.vm= is not on the kernel command line", calls: []string{"mount proc /proc", "unmount /proc"}},
		{name: "another initramfs with proc", pid: 1, magic: unix.RAMFS_MAGIC, before: "quiet\n", want: "volant.vm= is not"},
		{name: "no proc to be had", pid: 1, magic: unix.RAMFS_MAGIC, fail: "mount proc /proc",
			want: "no such device", calls: []string{"mount proc /proc"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newFakeSys(t)
			sys.pid, sys.magic = tt.pid, tt.magic
			if tt.before != "" {
				sys.put(t, procCmdline, tt.before, 0o444)
			}
			if tt.fail != "" {
				sys.fail[tt.fail] = unix.ENODEV
			}
			sys.onMount = func(Mount) { sys.put(t, procCmdline, tt.cmdline, 0o444) }
			err := Guard(sys)
			if tt.want == "" && err != nil {
				t.Errorf("Guard() = %v, want nil", err)
			}
			if tt.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Guard() = %v, want ErrRefused with %q", err, tt.want)
			}
			if calls := sys.called(); !slices.Equal(calls, tt.calls) {
				t.Errorf("Guard did %q, want %q", calls, tt.calls)
			}
		})
	}
}

func TestGuardRemovesTheProcItMade(t *testing.T) {
	sys := newFakeSys(t)
	err := Guard(sys) // nothing appears in /proc, so the command line cannot be read
	if !errors.Is(err, ErrRefused) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Guard() = %v, want ErrRefused for the missing command line", err)
	}
	if _, err := os.Stat(sys.at("/proc")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/proc was left behind: %v", err)
	}
}

// TestRealSysRefuses runs the real thing in this process, which is not
// process 1: none of what changes a machine may get past its own check.
func TestRealSysRefuses(t *testing.T) {
	if os.Getpid() == 1 {
		need.Elsewhere(t, "this is process 1")
	}
	sys := NewSys()
	if err := Guard(sys); !errors.Is(err, ErrRefused) {
		t.Fatalf("Guard() = %v, want ErrRefused", err)
	}
	if err := Run(t.Context(), Config{Sys: sys}); !errors.Is(err, ErrRefused) {
		t.Fatalf("Run() = %v, want ErrRefused", err)
	}
	// On their own too, on what would do no harm.
	none := filepath.Join(t.TempDir(), "none")
	if _, err := sys.SwitchRoot(none); !errors.Is(err, ErrRefused) {
		t.Errorf("SwitchRoot() = %v, want ErrRefused", err)
	}
	if err := sys.Detach(none); !errors.Is(err, ErrRefused) {
		t.Errorf("Detach() = %v, want ErrRefused", err)
	}
	if err := sys.RaiseLimits(); !errors.Is(err, ErrRefused) {
		t.Errorf("RaiseLimits() = %v, want ErrRefused", err)
	}
}

func TestKernelParam(t *testing.T) {
	tests := []struct{ line, name, want string }{
		{"a=1 b=2", "b", "2"},
		{"b=1 b=2\n", "b", "2"},
		{"ab=1", "b", ""},
		{"b", "b", ""},
		{"b=\" b", "b", `"`},
		{"", "b", ""},
	}
	for _, tt := range tests {
		if got := kernelParam(tt.line, tt.name); got != tt.want {
			t.Errorf("kernelParam(%q, %q) = %q, want %q", tt.line, tt.name, got, tt.want)
		}
	}
}

func TestProcessesRefuseToKillAll(t *testing.T) {
	for _, pid := range []int{0, 1, -1} {
		if err := (processes{}).Kill(pid, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("Kill(%d) = %v, want EPERM", pid, err)
		}
	}
}
