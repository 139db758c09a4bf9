package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/testdata/budget"
)

func TestCompare(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "doc.md")
	text := "Prose says `not-a-budget`.\n\n| what | limit | held by |\n|---|---|---|\n| start `of-it` | 1 | `scale-start`, `TestStored`; `scale-p50` |\n"
	if err := os.WriteFile(doc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		lines []budget.Line
		want  []string
	}{
		{[]budget.Line{{Name: "scale-start"}, {Name: "scale-p50"}}, nil},
		{[]budget.Line{{Name: "scale-p50"}}, []string{"names scale-start, which nothing measured"}},
		{[]budget.Line{{Name: "scale-p50"}, {Name: "new-one"}}, []string{"names scale-start", "new-one was measured, but"}},
	} {
		err := compare(doc, c.lines)
		if (err == nil) != (c.want == nil) {
			t.Errorf("%v: %v", c.lines, err)
		}
		for _, want := range c.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v, want %q", c.lines, err, want)
			}
		}
	}
	if err := compare(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a document that is not there names everything")
	}
}
