package api_test

import (
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
)

func TestExecValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*api.Exec)
		want string // "" for valid
	}{
		"as it is": {func(*api.Exec) {}, ""},
		"everything": {func(e *api.Exec) {
			e.Env = map[string]string{"A": "b=c"}
			e.Workdir = "/tmp"
			e.User = "www:adm"
			e.Term = "xterm-256color"
		}, ""},
		"no command":      {func(e *api.Exec) { e.Args = nil }, "args"},
		"empty command":   {func(e *api.Exec) { e.Args[0] = "" }, "args"},
		"zero byte":       {func(e *api.Exec) { e.Args[0] = "a\x00" }, "args"},
		"too long":        {func(e *api.Exec) { e.Args = append(e.Args, strings.Repeat("x", api.MaxExecArgs)) }, "args and env"},
		"variable":        {func(e *api.Exec) { e.Env = map[string]string{"A=": "b"} }, "env"},
		"relative folder": {func(e *api.Exec) { e.Workdir = "tmp" }, "workdir"},
		"user of lines":   {func(e *api.Exec) { e.User = "a\nb" }, "user"},
		"terminal":        {func(e *api.Exec) { e.Term = "../x" }, "term"},
	} {
		e := api.Exec{Args: []string{"sh", "-c", "exit 3"}}
		tc.edit(&e)
		err := e.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: Validate() = %v, want %q", name, err, tc.want)
		}
	}
}
