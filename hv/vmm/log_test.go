package vmm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/hv"
)

func TestLog(t *testing.T) {
	const limit = 1 << 16
	line := strings.Repeat("x", 99) + "\n"
	for _, tc := range []struct {
		name        string
		named       bool
		lines, kept int
	}{
		{"in the directory", false, limit / 100, limit / 100},
		{"elsewhere", true, limit / 100, limit / 100},
		{"too long", false, limit/100 + 1, limit / 2 / 100}, // whole lines
		{"too long, elsewhere", true, limit/100 + 1, limit / 2 / 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := &hv.Spec{Dir: t.TempDir()}
			path := filepath.Join(spec.Dir, LogFile)
			if tc.named {
				spec.VMMLog = filepath.Join(t.TempDir(), "the log")
				path = spec.VMMLog
			}
			f, err := OpenLog(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if again, err := OpenLog(spec); err == nil {
				again.Close()
				t.Error("a directory takes two machines")
			}
			if _, err := f.WriteString(strings.Repeat(line, tc.lines)); err != nil {
				t.Fatal(err)
			}
			CutLog(filepath.Join(spec.Dir, LogFile), limit)
			if _, err := f.WriteString("next\n"); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(spec.Dir); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			switch {
			case !tc.named && err == nil:
				t.Error("the log outlives its directory")
			case tc.named && (err != nil || string(got) != strings.Repeat(line, tc.kept)+"next\n"):
				t.Errorf("the log has %d bytes, %v, want %d lines and the next", len(got), err, tc.kept)
			}
		})
	}
}
