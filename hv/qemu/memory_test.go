package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/qemu"
	"github.com/volantvm/volant/hv/vmm"
	"github.com/volantvm/volant/testdata/need"
)

// ask sends a request to the agent and returns the answer's body.
func ask(t *testing.T, vm hv.VM, method, path, body string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := agentClient(vm, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s, %v", method, path, resp.Status, b, err)
	}
	return string(b)
}

// TestBalloon looks what becomes, on the host, of memory that the guest has
// used and freed.
func TestBalloon(t *testing.T) {
	const touched = 96 // MiB
	b := newBench(t)
	d := qemu.New(qemu.Config{})
	if caps, err := d.Probe(t.Context()); err != nil || !caps.Balloon {
		need.Missing(t, "a QEMU with a balloon that reports free pages")
	}
	spec := b.spec(t)
	spec.MemoryMiB, spec.Balloon = 192, true
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	ask(t, vm, http.MethodPost, "/echo", "")
	before := privateMiB(t, vm.Record().PID)
	ask(t, vm, http.MethodPost, "/touch?bytes=100663296", "")
	peak, now := before, before
	for deadline := time.Now().Add(bootTimeout); ; time.Sleep(50 * time.Millisecond) {
		now = privateMiB(t, vm.Record().PID)
		peak = max(peak, now)
		// Linux reports two seconds after pages became free.
		if peak > before+touched/2 && now < peak-touched/2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the VMM had %.0f MiB, then %.0f, and now %.0f: want it to fall again", before, peak, now)
		}
	}
	t.Logf("the VMM had %.0f MiB, then %.0f, and now %.0f", before, peak, now)
}

// TestMergeMemory looks what the host's kernel was told of the guest's memory.
func TestMergeMemory(t *testing.T) {
	b := newBench(t)
	d := qemu.New(qemu.Config{})
	caps, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, merge := range []bool{false, true} {
		spec := b.spec(t)
		spec.MergeMemory = merge
		vm, err := d.Launch(t.Context(), spec)
		if merge && !caps.Merge {
			if !errors.Is(err, hv.ErrUnsupported) {
				t.Errorf("Launch on a host without KSM: %v, want ErrUnsupported", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Kill(t.Context())
		if kib := mergeableKiB(t, vm.Record().PID); !merge && kib != 0 || merge && kib < spec.MemoryMiB<<10 {
			t.Errorf("with MergeMemory %v the kernel may merge %d KiB of %d MiB", merge, kib, spec.MemoryMiB)
		}
	}
}

// mergeableKiB returns how much of a process's memory KSM may merge: what has the
// flag mg of proc_pid_smaps(5).
func mergeableKiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	sum, size, flags := 0, 0, 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch f[0] {
		case "Size:":
			fmt.Sscan(f[1], &size)
		case "VmFlags:":
			flags++
			if slices.Contains(f, "mg") {
				sum += size
			}
		}
	}
	if flags == 0 {
		t.Fatal("smaps has no VmFlags")
	}
	return sum
}

// virtiofsd starts the one of this host for a directory, and returns the path of
// its socket.
func virtiofsd(t *testing.T, dir string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "fs.sock")
	var cmd *exec.Cmd
	switch {
	case exists("/usr/libexec/virtiofsd"):
		cmd = exec.CommandContext(t.Context(), "/usr/libexec/virtiofsd", "--socket-path="+socket, "--shared-dir="+dir, "--sandbox=chroot")
	case exists("/usr/lib/qemu/virtiofsd"): // QEMU's own, until 8.0
		cmd = exec.CommandContext(t.Context(), "/usr/lib/qemu/virtiofsd", "--socket-path="+socket, "-o", "source="+dir, "-o", "sandbox=chroot", "-f")
	default:
		need.Missing(t, "virtiofsd (in Debian 12 it is in qemu-system-common, later in virtiofsd)")
	}
	need.Root(t, "for virtiofsd")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // reports the signal
		if t.Failed() {
			t.Logf("virtiofsd said:\n%s", &said)
		}
	})
	for deadline := time.Now().Add(time.Minute); !exists(socket); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("virtiofsd does not come up")
		}
	}
	return socket
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestShare writes and reads on both sides of a shared directory.
func TestShare(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "from-host"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := qemu.New(qemu.Config{})
	spec := b.spec(t)
	spec.Shares = []hv.Share{{Tag: "code", Socket: virtiofsd(t, dir)}}
	vm, err := d.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context())
	if got := ask(t, vm, http.MethodGet, "/share?tag=code&name=from-host", ""); got != "host" {
		t.Errorf("the guest reads %q, want %q", got, "host")
	}
	ask(t, vm, http.MethodPut, "/share?tag=code&name=from-guest", "guest")
	if got, err := os.ReadFile(filepath.Join(dir, "from-guest")); string(got) != "guest" || err != nil {
		t.Errorf("the host reads %q, %v, want %q", got, err, "guest")
	}
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	snapshot := t.TempDir()
	if _, err := vm.(hv.Snapshotter).Snapshot(t.Context(), snapshot); !errors.Is(err, hv.ErrUnsupported) {
		t.Errorf("Snapshot of a machine with a share: %v, want ErrUnsupported", err)
	}
	if err := vmm.CheckEmpty(snapshot); err != nil {
		t.Error(err)
	}
	if err := vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, vm, http.MethodGet, "/share?tag=code&name=from-guest", ""); got != "guest" {
		t.Errorf("after the refused snapshot the guest reads %q, want %q", got, "guest")
	}
}
