package need_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/volantvm/volant/testdata/need"
)

// recorder notes how a test ended.
type recorder struct {
	testing.TB
	end string
}

func (*recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any)  { r.stop("skipped", fmt.Sprintf(format, args...)) }
func (r *recorder) Fatalf(format string, args ...any) { r.stop("failed", fmt.Sprintf(format, args...)) }
func (r *recorder) Skip(args ...any)                  { r.stop("skipped", fmt.Sprint(args...)) }

func (r *recorder) stop(how, why string) {
	r.end = how + ": " + why
	runtime.Goexit()
}

// ended returns how a test ended that calls f, "" if it went on.
func ended(f func(t testing.TB)) string {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.end
}

func TestNeed(t *testing.T) {
	t.Setenv("VOLANT_TEST_HERE", "value")
	for all, how := range map[string]string{"": "skipped: needs ", "0": "skipped: needs ", "1": "failed: needs "} {
		t.Setenv("VOLANT_TEST_ALL", all)
		for what, f := range map[string]func(t testing.TB){
			"no-such-program": func(t testing.TB) { need.Tool(t, "no-such-program") },
			"/no/such/file":   func(t testing.TB) { need.File(t, "/no/such/file") },
			"VOLANT_TEST_NOT": func(t testing.TB) { need.Env(t, "VOLANT_TEST_NOT") },
			"12 of them":      func(t testing.TB) { need.Missing(t, "%d of them", 12) },
		} {
			if got := ended(f); !strings.HasPrefix(got, how) || !strings.Contains(got, what) {
				t.Errorf("VOLANT_TEST_ALL=%s, for want of %s: %q, want it %s...", all, what, got, how)
			}
		}
		if got := ended(func(t testing.TB) { need.Elsewhere(t, "it has none") }); got != "skipped: it has none" {
			t.Errorf("VOLANT_TEST_ALL=%s, Elsewhere: %q", all, got)
		}
		if got := ended(func(t testing.TB) {
			if p := need.Tool(t, "sh") + need.File(t, "/") + need.Env(t, "VOLANT_TEST_HERE"); !strings.HasSuffix(p, "sh/value") {
				panic(p)
			}
		}); got != "" {
			t.Errorf("VOLANT_TEST_ALL=%s, with what is needed: %q", all, got)
		}
	}
}
