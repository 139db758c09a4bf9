package guest_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/guest/wire"
)

// TestVMOwnNamespaces has a workload that is process 1, is entered, ends by its
// own, is started again, and does not mind its stop signal.
func TestVMOwnNamespaces(t *testing.T) {
	buildTestImage(t)
	root, upper := erofs(t, imageTree(t)), ext4(t, wire.UpperSerial, "", 64)
	cfg := rootConfig(wire.UpperDisk, `
		echo "I am $$ of $PPID in $(cat /proc/self/cgroup), $(ls -d /proc/[0-9]* | wc -l) are here and $(grep -c '^proc ' /proc/mounts) proc"
		mount -t tmpfs -o size=76k mine /tmp; mkdir /tmp/up; echo -n a > /kept; [ -s /second ] && exec sleep 1000
		echo -n b > /second; sh -c 'sleep 20 > /dev/null & echo $! > /orphan'; sleep 0.2; echo "orphan of $(awk '/^PPid/ {print $2}' /proc/$(cat /orphan)/status)"
		while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3`)
	cfg.Workload.StopTimeout, cfg.Workload.Restart = 300*time.Millisecond, wire.RestartOnFailure
	cfg.Workload.Health = &wire.Health{Exec: []string{"sh", "-c", "grep -q size=76k /proc/mounts && test -d /tmp/up && echo probe $(cat /proc/1/comm) && kill -0 1"}, Interval: 300 * time.Millisecond, Retries: 2}
	m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), root, upper)
	m.dial()
	st := m.await("healthy", func(st wire.Status) bool { return st.Healthy != nil && *st.Healthy })
	for _, s := range st.Timeline {
		t.Logf("%-9s at %8.1f ms took %7.1f ms %s", s.Name, float64(s.Start)/1e6, float64(s.Took)/1e6, s.Error)
	}
	// A command sees what the workload sees, is in its own control group, and ends
	// with the workload's process.
	out, exit := m.exec(`{"args":["sh","-c","ls -d /tmp/up; cat /proc/1/comm /proc/self/cgroup; [ $$ -gt 1 ] && echo not 1; id -u; exit 4"],"user":"postgres"}`)
	if want := "/tmp/up\nsh\n0::/exec\nnot 1\n70\n"; out != want || exit.Code != 4 {
		t.Errorf("the command said %q and exited with %+v, want %q and 4", out, exit, want)
	}
	if out, exit := m.exec(`{"args":["nothing-of-the-kind"]}`); exit.Code != 127 {
		t.Errorf("a command that is not there: %q, %+v", out, exit)
	}
	if out, exit := m.exec(`{"args":["sh","-c","touch /tmp/end; exec sleep 1000"]}`); exit.Signal != "SIGKILL" {
		t.Errorf("a command that the workload left behind said %q and exited with %+v, want it killed", out, exit)
	}
	st = m.await("up again", func(st wire.Status) bool { return st.Restarts == 1 && st.Healthy != nil && *st.Healthy })
	if st.Exit == nil || st.Exit.Code != 3 {
		t.Errorf("exit = %+v, want 3", st.Exit)
	}
	said := m.said(wire.Stdout)
	if n := strings.Count(said, "I am 1 of 0 in 0::/workload/"); n != 2 || strings.Count(said, "and 1 proc\n") != 2 || !strings.Contains(said, "orphan of 1\n") {
		t.Errorf("the workload said:\n%s", said)
	}
	if out, _ := m.exec(`{"args":["sh","-c","cat /kept /second; cat /proc/1/comm; grep -c mine /proc/mounts"]}`); out != "absleep\n1\n" {
		t.Errorf("after its end the second one sees %q", out)
	}
	begun := time.Now()
	m.off() // sleep as process 1 has no handler: the kernel does not end it by SIGTERM
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("to power off took %v", took)
	}
	clean(t, upper)
}

// TestVMInit has an init before the workload, and a terminal.
func TestVMInit(t *testing.T) {
	buildTestImage(t)
	cfg := rootConfig(wire.UpperMemory, `
		echo "I am $$ of $PPID, $(cat /proc/1/comm), size $(stty size), as $(id -u)"; (sleep 0.1 & exec true); sleep 0.5
		echo "zombies $(grep -l ') Z ' /proc/[0-9]*/stat 2>/dev/null | wc -l)"
		trap 'echo winch' WINCH; trap 'echo stopping; exit 5' TERM; while :; do sleep 0.1; done`)
	cfg.Workload.Init, cfg.Workload.TTY, cfg.Workload.User = true, true, "postgres"
	m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), erofs(t, imageTree(t)))
	m.dial()
	m.await("running", func(st wire.Status) bool { return st.Workload == wire.WorkloadRunning })
	out, exit := m.exec(`{"args":["sh","-c","cat /proc/1/comm; readlink /proc/1/fd/3 || echo no spec"],"user":"root"}`)
	if exit.Code != 0 || !strings.Contains(out, "kestrel") && !strings.Contains(out, "init") && !strings.Contains(out, "exe") {
		t.Errorf("process 1 is %q (%+v)", out, exit)
	}
	attached := m.open(wire.PathAttach, "")
	attached.until("zombies 0")
	if code, body := m.request("POST", wire.PathShutdown, ""); code != http.StatusAccepted {
		t.Fatalf("POST shutdown = %d %s", code, body)
	}
	exit = attached.until("")
	if got := attached.out.String(); exit.Code != 5 || !strings.Contains(got, "of 1, ") || !strings.Contains(got, "as 70") || !strings.Contains(got, "stopping") {
		t.Errorf("the workload exited with %+v and said:\n%s", exit, got)
	}
	m.awaitOff()
}

// exec runs a command and returns what it wrote, and its end.
func (m *machine) exec(body string) (string, stdio.ExitStatus) {
	m.t.Helper()
	s := m.open(wire.PathExec, body)
	exit := s.until("")
	return s.out.String(), exit
}

// TestVMSystemInit has an init system for its workload, which refuses to be
// anything but process 1, mounts over the image, and is stopped by its own signal.
func TestVMSystemInit(t *testing.T) {
	buildTestImage(t)
	tree := imageTree(t)
	for name, text := range map[string]string{
		"etc/inittab": "::sysinit:/bin/mount -t tmpfs run /run\n::sysinit:/bin/touch /run/up\n::respawn:/bin/sleep 1000\n::shutdown:/bin/echo the system goes down\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cfg := rootConfig(wire.UpperMemory, "")
	cfg.Workload = wire.WorkloadConfig{Args: []string{"init"}, StopSignal: "SIGUSR2", StopTimeout: time.Minute,
		Health: &wire.Health{Exec: []string{"test", "-e", "/run/up"}, Interval: 300 * time.Millisecond}}
	m := bootDisks(t, "VOLANT_TEST_KERNEL", encode(t, cfg), erofs(t, tree))
	m.dial()
	m.await("healthy", func(st wire.Status) bool { return st.Healthy != nil && *st.Healthy })
	if out, exit := m.exec(`{"args":["sh","-c","cat /proc/1/comm; ls /run; pidof sleep > /dev/null && kill $(pidof sleep); sleep 2; pidof sleep | wc -w"]}`); exit.Code != 0 || out != "init\nup\n1\n" {
		t.Errorf("beside the init system a command said %q (%+v)", out, exit)
	}
	if code, body := m.request("GET", wire.PathArchive+"?path=/run/up", ""); code != http.StatusOK || !strings.Contains(body, "up") {
		t.Errorf("what the workload has mounted cannot be copied: %d %.200q", code, body)
	}
	attached := m.open(wire.PathAttach, "")
	if code, body := m.request("POST", wire.PathShutdown, ""); code != http.StatusAccepted {
		t.Fatalf("POST shutdown = %d %s", code, body)
	}
	// reboot(2) in a process namespace ends its process 1 by a signal.
	if exit := attached.until(""); exit.Signal != "SIGINT" || !strings.Contains(attached.out.String(), "the system goes down") {
		t.Errorf("it ended by %+v and said %q", exit, attached.out.String())
	}
	m.awaitOff()
}
