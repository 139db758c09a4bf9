package vmm_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

// start runs a shell script as a VMM would be run.
func start(t *testing.T, script string) (p *vmm.Process, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err = vmm.Start([]string{"/bin/sh", "-c", script}, vmm.Setting{Env: []string{"A=b"}, Log: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err == nil {
			<-p.Done()
		}
		p.Close()
	})
	return p, log
}

// awaitArgv waits until the process has become another program.
func awaitArgv(t *testing.T, p *vmm.Process, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !slices.Equal(vmm.Argv(p.PID()), want); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("Argv() = %q, want %q", vmm.Argv(p.PID()), want)
		}
	}
	// The new program's arguments are there a moment before its environment.
	for deadline := time.Now().Add(time.Minute); vmm.Environ(p.PID()) == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

func wait(t *testing.T, p *vmm.Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatalf("process %d does not end", p.PID())
	}
}

func TestProcessStatus(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":        "exit status 0",
		"exit 7":        "exit status 7",
		"kill -SEGV $$": "signal: segmentation fault",
	} {
		p, _ := start(t, script)
		wait(t, p)
		if got := p.Status(); got != want {
			t.Errorf("Status() of %q = %q, want %q", script, got, want)
		}
		if _, err := os.Stat("/proc/" + strconv.Itoa(p.PID())); err == nil {
			t.Errorf("%q was not waited for", script)
		}
		if err := p.Kill(); err != nil {
			t.Errorf("Kill of an ended process: %v", err)
		}
	}
}

// TestProcessInherits wants nothing in the child but what it was given, even of
// what this process holds without close-on-exec.
func TestProcessInherits(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	// No pipeline: the shell would have pipes of its own for a moment.
	p, log := start(t, "echo A=$A; ls -l /proc/$$/fd; cat; echo end; exec sleep 60")
	awaitArgv(t, p, "sleep", "60")
	got := string(vmm.Tail(log, 4096))
	if !strings.HasPrefix(got, "A=b\n") || !strings.HasSuffix(got, "\nend\n") || !strings.Contains(got, "0 -> /dev/null") || strings.Contains(got, "pipe:") {
		t.Errorf("the child says %q, want its environment, no pipe and an empty input", got)
	}
	if sid, err := unix.Getsid(p.PID()); sid != p.PID() || err != nil {
		t.Errorf("session %d, %v, want its own", sid, err)
	}
	if got := vmm.Environ(p.PID()); !slices.Contains(got, "A=b") {
		t.Errorf("Environ() = %q", got)
	}
}

// TestOpenStranger waits for, and kills, a process that is no child.
func TestOpenStranger(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 >/dev/null & echo $!")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	begun, err := vmm.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := vmm.Open(pid, begun)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	select {
	case <-p.Done():
		t.Fatal("Done before the end")
	case <-time.After(20 * time.Millisecond):
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	if got := p.Status(); got != "" {
		t.Errorf("Status() of a stranger = %q, want nothing", got)
	}
}

func TestVerify(t *testing.T) {
	p, _ := start(t, "exec sleep 60")
	awaitArgv(t, p, "sleep", "60")
	boot, err := vmm.BootID()
	if err != nil {
		t.Fatal(err)
	}
	sound := hv.Record{PID: p.PID(), StartTime: p.StartTime(), BootID: boot, ArgvSHA256: vmm.HashArgv([]string{"sleep", "60"})}
	tests := []struct {
		name   string
		change func(*hv.Record)
	}{
		{"boot id", func(r *hv.Record) { r.BootID += "x" }},
		{"start time", func(r *hv.Record) { r.StartTime-- }},
		{"arguments", func(r *hv.Record) { r.ArgvSHA256 = vmm.HashArgv([]string{"sleep", "61"}) }},
		{"process", func(r *hv.Record) { r.PID = os.Getpid() }},
		{"no process", func(r *hv.Record) { r.PID = 0 }},
		{"negative process", func(r *hv.Record) { r.PID = -p.PID() }},
		{"impossible process", func(r *hv.Record) { r.PID = 1<<31 - 1 }},
	}
	for _, test := range tests {
		rec := sound
		test.change(&rec)
		if q, err := vmm.Verify(rec); !errors.Is(err, hv.ErrGone) {
			t.Errorf("Verify with another %s = %v, %v, want ErrGone", test.name, q, err)
		}
	}
	q, err := vmm.Verify(sound)
	if err != nil {
		t.Fatal(err)
	}
	q.Close()
	q.Close()
	select {
	case <-p.Done():
		t.Error("Verify or Close ended the process")
	default:
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	if q, err := vmm.Verify(sound); !errors.Is(err, hv.ErrGone) {
		t.Errorf("Verify of an ended process = %v, %v, want ErrGone", q, err)
	}
}

// TestOpenReapsZombie meets a child that ended while nobody held it.
func TestOpenReapsZombie(t *testing.T) {
	p, _ := start(t, "read x; exec sleep 0.01")
	pid, begun := p.PID(), p.StartTime()
	p.Close() // let go: nobody waits
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("no zombie: %s, %v", b, err)
		}
		if strings.Contains(string(b), ") Z ") {
			break
		}
	}
	if q, err := vmm.Open(pid, begun); !errors.Is(err, hv.ErrGone) {
		t.Errorf("Open of a zombie = %v, %v, want ErrGone", q, err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
		t.Error("the zombie is still there")
	}
}

func TestStartMissing(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if p, err := vmm.Start([]string{"/nonexistent/vmm"}, vmm.Setting{Log: f}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start of a missing file = %v, %v, want ErrNotExist", p, err)
	}
}
