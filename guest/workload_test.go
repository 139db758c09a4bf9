package guest

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/plan"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/need"
)

func TestNextBackoff(t *testing.T) {
	var got []time.Duration
	d := time.Duration(0)
	for range 11 {
		d = nextBackoff(d, time.Millisecond)
		got = append(got, d)
	}
	ms := time.Millisecond
	want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 30000 * ms, 30000 * ms}
	if !slices.Equal(got, want) {
		t.Errorf("delays = %v, want %v", got, want)
	}
	if d := nextBackoff(30*time.Second, backoffReset); d != backoffMin {
		t.Errorf("after a long run the delay is %v, want %v", d, backoffMin)
	}
}

func TestExitOf(t *testing.T) {
	at := time.Now()
	tests := []struct {
		ws   syscall.WaitStatus
		oom  bool
		want wire.WorkloadExit
	}{
		{0, false, wire.WorkloadExit{Time: at}},
		{3 << 8, true, wire.WorkloadExit{Code: 3, Time: at}},
		{syscall.WaitStatus(syscall.SIGKILL), false, wire.WorkloadExit{Code: 137, Signal: "SIGKILL", Time: at}},
		{syscall.WaitStatus(syscall.SIGKILL), true, wire.WorkloadExit{Code: 137, Signal: "SIGKILL", OOMKilled: true, Time: at}},
		{syscall.WaitStatus(syscall.SIGSEGV) | 0x80, true, wire.WorkloadExit{Code: 139, Signal: "SIGSEGV", Time: at}},
		{40, false, wire.WorkloadExit{Code: 168, Signal: "SIG40", Time: at}},
	}
	for _, tt := range tests {
		if got := exitOf(tt.ws, at, tt.oom); got != tt.want {
			t.Errorf("exitOf(%#x, %v) = %+v, want %+v", tt.ws, tt.oom, got, tt.want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]syscall.Signal{"": 15, "SIGTERM": 15, "INT": 2, "sigquit": 3, "SIGWINCH": 28,
		"9": 9, "64": 64, "RTMIN": 34, "SIGRTMIN+3": 37, "sigrtmax-14": 50, "RTMAX": 64} {
		if got, err := parseSignal(name); got != want || err != nil {
			t.Errorf("parseSignal(%q) = %v, %v, want %v", name, got, err, want)
		}
	}
	for _, name := range []string{"SIGNAL", "0", "65", "-9", "SIG9", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMIN+-1", "SIG"} {
		if got, err := parseSignal(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("parseSignal(%q) = %v, %v, want an error", name, got, err)
		}
	}
}

func TestWorkloadEnv(t *testing.T) {
	got := plan.Env([]string{"A=1", "HOME=/data", "B==", "A=2"}, "web", "/root", false)
	want := []string{"PATH=" + plan.DefaultPath, "HOSTNAME=web", "HOME=/data", "B==", "A=2"}
	if !slices.Equal(got, want) {
		t.Errorf("plan.Env() = %q, want %q", got, want)
	}
}

func TestTerminalEnv(t *testing.T) {
	if got := plan.Env(nil, "web", "/", true); !slices.Contains(got, "TERM=xterm") {
		t.Errorf("plan.Env() = %q, want TERM", got)
	}
	if got := plan.Env([]string{"TERM=dumb"}, "web", "/", true); !slices.Contains(got, "TERM=dumb") || slices.Contains(got, "TERM=xterm") {
		t.Errorf("plan.Env() = %q, want TERM as given", got)
	}
}

func TestLookupProgram(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/usr/bin/tool", "", 0o755)
	sys.put(t, "/bin/data", "", 0o644)
	sys.put(t, "/srv/run", "", 0o755)
	tests := []struct{ name, dir, path, want, err string }{
		{"tool", "/", "/bin:/usr/bin", "/usr/bin/tool", ""},
		{"tool", "/", "/bin", "", `"tool" is in none of the directories of PATH=/bin`},
		{"data", "/", "/bin:/usr/bin", "", "not executable"},
		{"data", "/", "", "", "in none"},
		{"run", "/srv", "", "/srv/run", ""},
		{"./run", "/srv", "/bin", "/srv/run", ""},
		{"/usr/bin/tool", "/srv", "", "/usr/bin/tool", ""},
		{"/usr/bin", "/", "", "", "is a directory"},
		{"/usr/bin/none", "/", "", "", "/usr/bin/none: file does not exist"},
	}
	for _, tt := range tests {
		got, err := lookupProgram(sys, tt.name, tt.dir, tt.path)
		if got != tt.want || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("lookupProgram(%q, %q, %q) = %q, %v, want %q, %q", tt.name, tt.dir, tt.path, got, err, tt.want, tt.err)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	tests := []struct {
		name string
		cfg  wire.WorkloadConfig
		want string
	}{
		{"user", wire.WorkloadConfig{Args: []string{"/bin/true"}, User: "nobody"}, "nobody"},
		{"signal", wire.WorkloadConfig{Args: []string{"/bin/true"}, StopSignal: "SIGNO"}, "SIGNO"},
		{"workdir", wire.WorkloadConfig{Args: []string{"/bin/true"}, Workdir: "/bin/true/x"}, "working directory"},
		{"command", wire.WorkloadConfig{Args: []string{"true"}, Env: []string{"PATH=/none"}}, "PATH=/none"},
	}
	for _, tt := range tests {
		sys := newFakeSys(t)
		sys.put(t, "/bin/true", "", 0o755)
		w := &workload{sys: sys, cfg: tt.cfg, hostname: func() string { return "web" }}
		if err := w.prepare(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: prepare() = %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestExplainStart(t *testing.T) {
	sys := newFakeSys(t)
	sys.put(t, "/bin/dynamic", "", 0o755)
	p := Process{Path: "/bin/dynamic", Dir: "/root", User: syscall.Credential{Uid: 5}}
	for err, want := range map[error]string{
		syscall.ENOENT:  "interpreter or dynamic loader",
		syscall.ENOEXEC: "not a program for this machine",
		syscall.EACCES:  "uid 5 may not",
		syscall.ENOMEM:  "cannot allocate memory",
	} {
		got := explainStart(sys, p, err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("explainStart(%v) = %v, want %q", err, got, want)
		}
	}
	p.Path = "/bin/gone"
	if got := explainStart(sys, p, syscall.ENOENT); strings.Contains(got.Error(), "loader") {
		t.Errorf("explainStart of a missing program = %v", got)
	}
}

// newTestWorkload prepares a shell script as the workload, with real processes.
func newTestWorkload(t *testing.T, script string, edit func(*wire.WorkloadConfig)) *workload {
	t.Helper()
	need.Root(t, "starting a process as another user")
	sys := newFakeSys(t)
	sys.linkProgram(t, "/bin/sh")
	w := &workload{
		hostname: func() string { return "web" },
		sys:      sys, log: discardLog(), ring: newLogRing(1 << 20), reaper: startReaper(t),
		status:  newStatus(&timeline{now: sys.Uptime}),
		hub:     newHub(discardLog(), func(int, syscall.Signal) error { return nil }),
		cfg:     wire.WorkloadConfig{Args: []string{"sh", "-c", script}},
		started: func(ctx context.Context) { <-ctx.Done() },
		grace:   func() time.Duration { return 50 * time.Millisecond },
	}
	if edit != nil {
		edit(&w.cfg)
	}
	if err := w.prepare(); err != nil {
		t.Fatal(err)
	}
	return w
}

// runToEnd supervises the workload until it is over and returns its last status.
func runToEnd(t *testing.T, ctx context.Context, w *workload) wire.Status {
	t.Helper()
	r, err := w.start(false)
	if err != nil {
		t.Fatal(err)
	}
	last := make(chan func(*wire.Status), 1)
	go func() { last <- w.supervise(ctx, r) }()
	select {
	case change := <-last:
		w.status.finish(change)
	case <-time.After(time.Minute):
		t.Fatal("the workload is not over within a minute")
	}
	return w.status.get()
}

func (r *logRing) text(stream wire.LogStream) string {
	entries, _ := r.since(0, 1<<20)
	var b strings.Builder
	for _, e := range entries {
		if e.Stream == stream {
			b.WriteString(e.Data + "\n")
		}
	}
	return b.String()
}

func TestWorkloadRuns(t *testing.T) {
	w := newTestWorkload(t, `echo "$A"; pwd; id -u; id -g; echo oops >&2; cat; exit 5`, func(c *wire.WorkloadConfig) {
		c.Env, c.User = []string{"A=b c"}, "12:34"
	})
	st := runToEnd(t, t.Context(), w)
	if st.Workload != wire.WorkloadExited || st.Exit.Code != 5 || st.PID != 0 {
		t.Errorf("status = %+v, exit %+v", st, st.Exit)
	}
	if got := w.ring.text(wire.Stdout); got != "b c\n/\n12\n34\n" {
		t.Errorf("stdout = %q", got)
	}
	if got := w.ring.text(wire.Stderr); got != "oops\n" {
		t.Errorf("stderr = %q", got)
	}
}

func TestWorkloadRestarts(t *testing.T) {
	counter := t.TempDir() + "/n"
	script := `echo x >> ` + counter + `; n=$(wc -l < ` + counter + `); [ $n -lt 3 ] && exit 1; exit 0`
	w := newTestWorkload(t, script, func(c *wire.WorkloadConfig) { c.Restart = wire.RestartOnFailure })
	start := time.Now()
	st := runToEnd(t, t.Context(), w)
	if st.Workload != wire.WorkloadExited || st.Exit.Code != 0 || st.Restarts != 2 {
		t.Errorf("status = %+v, exit %+v, want 0 after 2 restarts", st, st.Exit)
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("two restarts took %v, want back-offs of 100 and 200 ms", took)
	}
}

// TestWorkloadIsGivenUp has a workload that always fails, and may be started
// again so many times.
func TestWorkloadIsGivenUp(t *testing.T) {
	w := newTestWorkload(t, "exit 3", func(c *wire.WorkloadConfig) { c.Restart, c.RestartMax = wire.RestartOnFailure, 2 })
	var streaks []int
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		for seq := uint64(0); ctx.Err() == nil; {
			st := w.status.wait(ctx, nil, seq, time.Minute)
			if seq = st.Seq; st.Workload == wire.WorkloadBackoff {
				streaks = append(streaks, st.Streak)
				if st.RetryAt == nil || time.Until(*st.RetryAt) > backoffMax || time.Since(*st.RetryAt) > backoffMax {
					t.Errorf("in backoff, to be started again at %v", st.RetryAt)
				}
			} else if st.RetryAt != nil {
				t.Errorf("%s, to be started again at %v", st.Workload, st.RetryAt)
			}
		}
	}()
	st := runToEnd(t, t.Context(), w)
	cancel()
	<-done
	if st.Workload != wire.WorkloadExited || st.Exit.Code != 3 || st.Restarts != 2 || st.RetryAt != nil || st.Streak != 2 {
		t.Errorf("status = %+v, exit %+v, want 3 after 2 restarts", st, st.Exit)
	}
	if !slices.IsSorted(streaks) || len(streaks) > 2 { // a busy host misses some
		t.Errorf("streaks = %v, want 1 and 2", streaks)
	}
}

func TestWorkloadStops(t *testing.T) {
	tests := []struct {
		name, script string
		code         int
	}{
		{"by its stop signal", `trap 'echo bye; exit 9' INT; echo up; while :; do sleep 0.01; done`, 9},
		{"by force", `trap '' INT; echo up; while :; do sleep 0.01; done`, 137},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newTestWorkload(t, tt.script, func(c *wire.WorkloadConfig) {
				c.StopSignal, c.Restart = "SIGINT", wire.RestartAlways
			})
			if tt.code == 9 {
				w.grace = func() time.Duration { return time.Minute }
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for w.ring.text(wire.Stdout) == "" {
					time.Sleep(time.Millisecond)
				}
				cancel()
			}()
			st := runToEnd(t, ctx, w)
			if st.Workload != wire.WorkloadExited || st.Exit.Code != tt.code || st.Restarts != 0 {
				t.Errorf("status = %+v, exit %+v, want code %d and no restart", st, st.Exit, tt.code)
			}
		})
	}
}

func TestWorkloadStopsInBackoff(t *testing.T) {
	w := newTestWorkload(t, "exit 1", func(c *wire.WorkloadConfig) { c.Restart = wire.RestartAlways })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for st := w.status.get(); st.Restarts < 2 || st.Workload != wire.WorkloadBackoff; st = w.status.get() {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if st := runToEnd(t, ctx, w); st.Workload != wire.WorkloadExited || st.Exit.Code != 1 {
		t.Errorf("status = %+v", st)
	}
}

func TestWorkloadThatVanishesFails(t *testing.T) {
	w := newTestWorkload(t, "exit 1", func(c *wire.WorkloadConfig) { c.Restart = wire.RestartAlways })
	r, err := w.start(false)
	if err != nil {
		t.Fatal(err)
	}
	w.process.Path = "/nonexistent"
	w.status.finish(w.supervise(t.Context(), r))
	st := w.status.get()
	if st.Workload != wire.WorkloadFailed || !strings.Contains(st.Error, "/nonexistent") || st.Exit == nil || st.Exit.Code != 1 {
		t.Errorf("status = %+v", st)
	}
}

// TestOutputHeldOpen has a process that leaves its pipes to a child; the
// workload is over all the same.
func TestOutputHeldOpen(t *testing.T) {
	w := newTestWorkload(t, "sleep 20 & echo $!; exit 0", nil)
	start := time.Now()
	st := runToEnd(t, t.Context(), w)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if st.Exit.Code != 0 {
		t.Errorf("exit = %+v", st.Exit)
	}
	var pid int
	for _, c := range strings.TrimSpace(w.ring.text(wire.Stdout)) {
		pid = pid*10 + int(c-'0')
	}
	if pid > 1 {
		_ = processes{}.Kill(pid, unix.SIGKILL)
	}
}

func TestNilCgroup(t *testing.T) {
	var c *cgroup
	c.kill()
	if c.dir() != nil || c.oomKills() != 0 {
		t.Error("a control group that is not there says something")
	}
	sys := newFakeSys(t)
	sys.put(t, "/sys/fs/cgroup/cgroup.subtree_control", "", 0o644)
	g, err := newCgroup(sys, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := sys.content(t, "/sys/fs/cgroup/cgroup.subtree_control"); got != "+memory +pids" {
		t.Errorf("subtree_control = %q", got)
	}
	sys.put(t, workloadCgroup+"/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n", 0o644)
	if n := g.oomKills(); n != 2 {
		t.Errorf("oomKills() = %d, want 2", n)
	}
	if _, err := sys.Stat(workloadCgroup + "/cgroup.kill"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("kill made a file")
	}
	g.f.Close()
}

func TestDelegatedCgroup(t *testing.T) {
	sys := newFakeSys(t)
	for _, dir := range []string{cgroupRoot, workloadCgroup} {
		sys.put(t, dir+"/cgroup.controllers", "cpuset cpu memory pids rdma misc\n", 0o444)
		sys.put(t, dir+"/cgroup.subtree_control", "", 0o644)
	}
	g, err := newCgroup(sys, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{cgroupRoot, workloadCgroup} {
		if got := sys.content(t, dir+"/cgroup.subtree_control"); got != "+cpuset +cpu +memory +pids" {
			t.Errorf("in %s subtree_control = %q", dir, got)
		}
	}
	for _, want := range []string{plan.FirstCgroup, workloadCgroup + "/2"} {
		if got := g.dir(); got == nil || got.Name() != sys.at(want) {
			t.Errorf("the workload starts in %v, want %s", got.Name(), want)
		}
	}
	if got := g.side().Name(); got != sys.at(sideCgroup) {
		t.Errorf("what runs beside it starts in %s", got)
	}
	// A group that could not be delegated is shared, and stays open.
	sys = newFakeSys(t)
	if err := sys.MkdirAll(cgroupRoot+"/cgroup.controllers", 0o755); err != nil {
		t.Fatal(err)
	}
	g, err = newCgroup(sys, true)
	if err == nil {
		t.Error("controllers that cannot be read are no error")
	}
	g.dir()
	if _, err := g.side().Stat(); err != nil {
		t.Errorf("what runs beside the workload lost its group: %v", err)
	}
}
