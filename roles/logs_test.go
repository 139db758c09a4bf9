package roles_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/testdata/budget"
)

// createShell creates a VM of plugin tools whose workload is a shell script.
func createShell(t testing.TB, c *client.Client, name, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := c.CreateVM(ctx, api.VMCreate{Name: name, Plugin: "tools", Entrypoint: &[]string{"/bin/sh", "-c", script}}, client.Wait{For: api.WaitRunning}); err != nil {
		t.Fatal(err)
	}
}

// lineCheck holds a log against what its workload wrote: the numbers 1, 2, 3 and
// so on, each on a line of its own. Whatever is missing must be told.
type lineCheck struct {
	seq    uint64
	number uint64 // the last, 0 before the first
	lines  uint64
	lost   uint64
	gap    uint64 // lines that were told to be lost since number
	err    error  // the first
}

func (l *lineCheck) add(e api.LogEntry) error {
	if l.seq > 0 && e.Seq != l.seq+1 && (e.Seq <= l.seq || e.Seq > l.seq+e.Lost) {
		l.fail("after number %d of the log comes %+v", l.seq, e)
	}
	l.seq = e.Seq
	switch e.Stream {
	case api.StreamVolant:
		l.lost += e.Lost
		l.gap += e.Lost
		return nil
	case api.StreamAgent:
		return nil
	}
	n, err := strconv.ParseUint(e.Line, 10, 64)
	// A line told to be lost may have been one of the agent's.
	if err != nil || l.number > 0 && (n > l.number+1+l.gap || n+2 < l.number+1+l.gap || n <= l.number) {
		l.fail("after line %d and %d lost ones comes %+v", l.number, l.gap, e)
	}
	l.number, l.gap = n, 0
	l.lines++
	return nil
}

func (l *lineCheck) fail(format string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf(format, args...)
	}
}

func checkLog(t testing.TB, c *client.Client, name string) *lineCheck {
	t.Helper()
	var l lineCheck
	if err := c.VMLogs(t.Context(), name, api.LogQuery{}, l.add); err != nil {
		t.Fatal(err)
	}
	if l.err != nil {
		t.Errorf("log of %s: %v", name, l.err)
	}
	return &l
}

// TestLogsDaemonKilled kills volantd again and again while a workload writes: a
// log has every line once and in order, and so has who follows it.
func TestLogsDaemonKilled(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	c := h.client()
	createShell(t, c, "chatty", "i=1; while :; do j=$((i+50)); busybox seq $i $((j-1)); i=$j; busybox usleep 20000; done")
	var followed lineCheck
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- c.VMLogs(ctx, "chatty", api.LogQuery{Follow: true}, followed.add)
	}()
	const kills = 10
	for i := range kills {
		time.Sleep(time.Duration(200+i*50) * time.Millisecond)
		h.kill()
		time.Sleep(time.Duration(i*30) * time.Millisecond)
		h.start()
	}
	h.eventually(time.Minute, "the log goes on", func() error {
		before := checkLog(t, c, "chatty")
		time.Sleep(200 * time.Millisecond)
		if after := checkLog(t, c, "chatty"); after.number == before.number {
			return fmt.Errorf("line %d is the last", after.number)
		}
		return nil
	})
	h.volar("vms", "stop", "chatty", "--grace", "1s")
	if err := <-done; err != nil {
		t.Errorf("following = %v, want an end with the VM's", err)
	}
	kept := checkLog(t, c, "chatty")
	t.Logf("%d kills: %d lines, %d told to be lost; the follower saw %d, %d lost", kills, kept.lines, kept.lost, followed.lines, followed.lost)
	if followed.err != nil || followed.number != kept.number || followed.lines != kept.lines {
		t.Errorf("the follower saw %d lines up to %d, %v; kept are %d up to %d", followed.lines, followed.number, followed.err, kept.lines, kept.number)
	}
	if kept.lost > 0 || kept.lines != kept.number || kept.lines < 500 {
		t.Errorf("kept %d lines up to %d, %d lost; want all, and many", kept.lines, kept.number, kept.lost)
	}

	// A stopped VM's logs, by the command line.
	last := strconv.FormatUint(kept.number, 10)
	if out := h.volar("logs", "chatty", "--tail", "20"); !strings.Contains(out, "\n"+last+"\n") {
		t.Errorf("logs --tail 20 = %q, want line %s in it", out, last)
	}
	const unread = "-- the VM ended before its log was read to the end: lines may be missing --\n"
	if out := h.volar("logs", "chatty", "--tail", "3"); strings.Contains(out, unread) {
		t.Errorf("the log of a VM that was stopped ends with %q", out)
	}
	if out := h.volar("logs", "chatty", "--since", "1h", "--until", "0s", "-t", "--tail", "all"); !strings.Contains(out, "Z "+last+"\n") {
		t.Errorf("logs -t ends with %q, want line %s", tail(out, 3), last)
	}
	if out := h.volar("logs", "chatty", "--until", "1h"); strings.Contains(out, last) {
		t.Errorf("logs --until 1h = %q", tail(out, 3))
	}
	if out := h.volar("logs", "chatty", "--log", "console"); !strings.Contains(out, "incarnation 1") || strings.Count(out, "volantd was away") != kills {
		t.Errorf("the console = %q, want the %d times told that volantd was away", out, kills)
	}
	if out := h.volar("vms", "console", "chatty", "--tail", "all"); !strings.Contains(out, "incarnation 1") {
		t.Errorf("console = %q", out)
	}
	// Whatever QEMU said, it is there when the VM is not.
	vm := h.vm("chatty")
	if err := os.WriteFile(filepath.Join(h.dir, "data", "vms", vm.ID, "vmm.1.log"), []byte("qemu-system-x86_64: warning\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := h.volar("logs", "chatty", "--log", "vmm"); out != "qemu-system-x86_64: warning\n" {
		t.Errorf("the VMM's log = %q", out)
	}
	h.volar("vms", "start", "chatty")
	h.volar("vms", "stop", "chatty", "--force")
	r := h.try("logs", "chatty")
	if !strings.HasSuffix(r.stdout, unread) || r.stderr != "volar: chatty was started again (start 2)\n" {
		t.Errorf("the log of a VM that was killed ends with %q; stderr %q", tail(r.stdout, 2), r.stderr)
	}
	h.volar("vms", "delete", "chatty")
	h.noLeaks()
}

// cpu returns the processor time that a process used.
func cpu(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	ticks := 0
	for _, s := range f[11:13] { // utime, stime
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestLogsFlood lets a workload write as fast as it can: it costs a bounded part
// of disk, memory and processor, other VMs' calls are answered as before, and
// what is lost is told, also what a volantd that was away could not have.
func TestLogsFlood(t *testing.T) {
	h := newHost(t)
	h.start()
	h.installTools(t)
	c := h.client()
	h.volar("vms", "create", "web", "--plugin", "tools", "--wait=healthy")
	calls := func(d time.Duration) []time.Duration {
		var took []time.Duration
		for begin := time.Now(); time.Since(begin) < d; {
			start := time.Now()
			if _, err := c.VM(t.Context(), "web", client.Wait{}); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(start))
			time.Sleep(5 * time.Millisecond)
		}
		return took
	}
	quiet := calls(2 * time.Second)
	createShell(t, c, "flood", "exec busybox seq 1 4000000000")
	time.Sleep(time.Second)
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var followed lineCheck
	var stuck lineCheck
	wg.Go(func() { _ = c.VMLogs(ctx, "flood", api.LogQuery{Follow: true}, followed.add) })
	wg.Go(func() {
		// A client that does not read, until the end.
		_ = c.VMLogs(ctx, "flood", api.LogQuery{Follow: true}, func(e api.LogEntry) error {
			if stuck.lines == 1000 {
				<-ctx.Done()
			}
			return stuck.add(e)
		})
	})
	pid := h.daemon.Process.Pid
	before, used := rss(t, pid), cpu(t, pid)
	const length = 8 * time.Second
	loud := calls(length)
	after, used := rss(t, pid), cpu(t, pid)-used
	mid := checkLog(t, c, "flood")

	h.kill()
	time.Sleep(2 * time.Second)
	h.start()
	h.eventually(time.Minute, "the log goes on after the time without volantd", func() error {
		if l := checkLog(t, c, "flood"); l.number <= mid.number+mid.lines {
			return fmt.Errorf("line %d is the last", l.number)
		}
		return nil
	})
	leave()
	wg.Wait()
	if followed.err != nil || followed.lines == 0 {
		t.Errorf("the follower after %d lines: %v", followed.lines, followed.err)
	}
	vm := h.vm("flood")
	disk := int64(0)
	err := filepath.WalkDir(filepath.Join(h.dir, "data", "vms", vm.ID), func(path string, e os.DirEntry, err error) error {
		if err == nil && strings.Contains(e.Name(), ".log") {
			var fi os.FileInfo
			if fi, err = e.Info(); err == nil {
				disk += fi.Size()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the workload wrote %d lines in about %v; followed %d, told to be lost %d; on the disk %.1f MiB", mid.number, length, followed.lines, followed.lost, float64(disk)/(1<<20))
	t.Logf("volantd: %.1f MiB before, %.1f after; %.0f %% of a processor", before/1024, after/1024, 100*used.Seconds()/length.Seconds())
	ms := func(d []time.Duration, p int) float64 { return budget.Millis(budget.Percentile(d, p)) }
	t.Logf("GET of another VM: p50 %.2f ms, p99 %.2f ms before; p50 %.2f ms, p99 %.2f ms during", ms(quiet, 50), ms(quiet, 99), ms(loud, 50), ms(loud, 99))
	if disk > 12<<20 {
		t.Errorf("the logs of a VM take %d bytes on the disk", disk)
	}
	if after > 64<<10 {
		t.Errorf("volantd has %.0f KiB", after)
	}
	if m := budget.Median(loud); m > 50*time.Millisecond {
		t.Errorf("a call about another VM takes %v", m)
	}
	if last := checkLog(t, c, "flood"); !slices.Contains([]bool{last.lost > 0, followed.lost > 0}, true) {
		t.Error("nothing was lost: the test shows nothing")
	}
	h.volar("vms", "delete", "flood", "--force")
	h.volar("vms", "delete", "web")
}

// TestLogsFullDisk fills the disk below the logs: the VM and its daemon go on,
// and what could not be kept is told.
func TestLogsFullDisk(t *testing.T) {
	h := newHost(t)
	data := filepath.Join(h.dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	// ip netns exec gave this process a mount namespace of its own.
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(data, syscall.MNT_DETACH) })
	h.start()
	h.installTools(t)
	c := h.client()
	createShell(t, c, "web", "i=1; while :; do j=$((i+500)); busybox seq $i $((j-1)); i=$j; busybox usleep 20000; done")
	h.eventually(time.Minute, "lines are kept", func() error {
		if l := checkLog(t, c, "web"); l.lines < 1000 {
			return fmt.Errorf("%d lines", l.lines)
		}
		return nil
	})
	filler := filepath.Join(data, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); err == nil; {
		_, err = f.Write(buf)
	}
	f.Close()
	// Pages that are already there have room for a little more.
	var full *lineCheck
	h.eventually(time.Minute, "nothing more is kept", func() error {
		full = checkLog(t, c, "web")
		time.Sleep(2 * time.Second)
		if l := checkLog(t, c, "web"); l.number != full.number {
			return fmt.Errorf("line %d after line %d", l.number, full.number)
		}
		return nil
	})
	if out, exit, err := execIn(t, c, script("echo alive"), nil); err != nil || exit.Code != 0 || out != "alive\n" {
		t.Errorf("on a full disk the VM says %q, %+v, %v", out, exit, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.eventually(time.Minute, "lines are kept again", func() error {
		if l := checkLog(t, c, "web"); l.number < full.number+1000 {
			return fmt.Errorf("line %d after line %d", l.number, full.number)
		}
		return nil
	})
	l := checkLog(t, c, "web")
	t.Logf("%d lines up to %d; %d told to be lost", l.lines, l.number, l.lost)
	h.volar("vms", "delete", "web", "--force")
}

// benchLogs compares how many lines a second get from a workload that writes as
// fast as it can into its log, with how many a command's stream carries.
func benchLogs(t *testing.T) []budget.Line {
	h := newHost(t)
	h.start()
	h.installTools(t)
	c := h.client()
	const length = 5 * time.Second
	line := strings.Repeat("x", 99)
	h.volar("vms", "create", "web", "--plugin", "tools", "--wait=healthy")
	s, err := c.Exec(t.Context(), "web", api.Exec{Args: []string{"busybox", "yes", line}})
	if err != nil {
		t.Fatal(err)
	}
	var out countWriter
	time.AfterFunc(length, func() { s.Close() })
	_, _ = s.Copy(nil, &out, &out) // ends with the session
	h.volar("vms", "delete", "web", "--force")
	createShell(t, c, "flood", "exec busybox yes "+line)
	time.Sleep(time.Second)
	kept := func() (n uint64) {
		// Told losses have a number each, however many they are.
		if err := c.VMLogs(t.Context(), "flood", api.LogQuery{Tail: 1}, func(e api.LogEntry) error { n = e.Seq; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	begin, first := time.Now(), kept()
	time.Sleep(length)
	logged := float64(kept()-first) / time.Since(begin).Seconds()
	h.volar("vms", "delete", "flood", "--force")
	streamed := float64(out) / 100 / length.Seconds()
	return []budget.Line{{Name: "log-throughput", Value: streamed / logged, Limit: 30, Unit: "x",
		How: fmt.Sprintf("lines of 100 bytes a second: %.0f of a command's output ÷ %.0f into the log, of a workload that floods", streamed, logged)}}
}

// countWriter counts what is written to it.
type countWriter int64

func (w *countWriter) Write(p []byte) (int, error) {
	*w += countWriter(len(p))
	return len(p), nil
}
