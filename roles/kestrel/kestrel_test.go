package kestrel

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest"
	"github.com/volantvm/volant/testdata/need"
)

func TestVersionAndHelp(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"--version"}, "kestrel 1.2.3\n"},
		{[]string{"--help"}, usage},
		{[]string{"-h"}, usage},
		{[]string{"quiet", "--version"}, "kestrel 1.2.3\n"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		code := Main(t.Context(), tt.args, nil, &stdout, &stderr, "1.2.3")
		if code != 0 || stdout.String() != tt.want || stderr.Len() != 0 {
			t.Errorf("Main(%q) = %d, stdout %q, stderr %q, want 0, %q and nothing", tt.args, code, &stdout, &stderr, tt.want)
		}
	}
}

func TestUnknownArgument(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := Main(t.Context(), []string{"boot"}, nil, &stdout, &stderr, "1.2.3"); code != exitUsage || !strings.Contains(stderr.String(), `"boot"`) {
		t.Errorf("Main(boot) = %d, stderr %q, want %d and the argument", code, &stderr, exitUsage)
	}
}

// TestRefusesOnTheHost runs kestrel as root on this machine, plainly and as
// process 1 of a pid namespace, under every name that the binary may have, and
// finds the machine as it was. The file system is the machine's own; mounts,
// network and host name are looked at in namespaces of the test's own, because
// other tests change those of the machine meanwhile.
func TestRefusesOnTheHost(t *testing.T) {
	need.Root(t, "to run kestrel as root")
	unshare := need.Tool(t, "unshare")
	if b, _ := os.ReadFile("/proc/cmdline"); bytes.Contains(b, []byte("volant.vm=")) {
		need.Elsewhere(t, "this machine is a Volant guest")
	}
	self := filepath.Join(t.TempDir(), "volant")
	build := exec.Command("go", "build", "-o", self, "../../guest/testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs where there are no libraries
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	type refusal struct {
		name string
		path string
		args []string
		want []string // in what it says
	}
	var cases []refusal
	for _, name := range []string{"kestrel", "init", "/init", "volantd", "volar", "fledge", "volant"} {
		cases = append(cases, refusal{"as " + name, self, []string{name}, []string{"this is process "}})
	}
	// A container with a tmpfs for its root passes the first two questions; only
	// the kernel command line tells it from a guest. What kestrel did to ask for
	// that it must have undone.
	const onTmpfs = `mount -t tmpfs tmpfs "$0" && cp "$1" "$0/init" && unshare -p -f chroot "$0" /init; code=$?
		echo "left: $(ls -A "$0")"; exit $code`
	cases = append(cases,
		refusal{"as process 1", unshare, []string{"unshare", "-m", "-p", "-f", "--mount-proc", self}, []string{"/ is not an initramfs"}},
		refusal{"as the init of a workload", unshare, []string{"unshare", "-m", "-p", "-f", "--mount-proc", self, guest.InitStep}, []string{"/ is not an initramfs"}},
		refusal{"as process 1 on a tmpfs", unshare, []string{"unshare", "-m", "sh", "-c", onTmpfs, t.TempDir(), self},
			[]string{"volant.vm= is not on the kernel command line", "left: init\n"}},
	)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the namespaces end with the thread
		if err := isolate(); err != nil {
			t.Errorf("namespaces: %v", err)
			return
		}
		for _, c := range cases {
			before := snapshot()
			out, code := run(t.Context(), c.path, c.args)
			if after := snapshot(); before != after {
				t.Errorf("%s: the machine changed:\n%s\nwas\n%s", c.name, after, before)
			}
			if code != exitRefused {
				t.Errorf("%s: exit code %d, want %d", c.name, code, exitRefused)
			}
			for _, want := range append(c.want, "kestrel: refused: this runs only as process 1 of a Volant guest") {
				if !strings.Contains(out, want) {
					t.Errorf("%s: it said %q, want %q", c.name, out, want)
				}
			}
		}
	}()
	<-done
}

// isolate gives the calling thread, and what it starts, namespaces of its own.
func isolate() error {
	const flags = unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	if err := unix.Unshare(flags); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// run runs a program and returns what it said and its exit code.
func run(ctx context.Context, path string, args []string) (string, int) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = args
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// snapshot describes what kestrel would change, as the calling thread sees it:
// mounts, host name, links, routes, the files it writes, the control group.
func snapshot() string {
	var b strings.Builder
	for _, path := range []string{
		"/proc/thread-self/mountinfo", "/proc/sys/kernel/hostname", "/proc/thread-self/net/dev", "/proc/thread-self/net/route",
		"/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf",
	} {
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s: %s %v\n", path, data, err)
		if info, err := os.Lstat(path); err == nil && strings.HasPrefix(path, "/etc/") {
			fmt.Fprintln(&b, info.ModTime(), info.Mode())
		}
	}
	links, err := net.Interfaces()
	fmt.Fprintln(&b, links, err)
	_, err = os.Stat("/sys/fs/cgroup/workload")
	fmt.Fprintln(&b, "control group:", err)
	return b.String()
}
