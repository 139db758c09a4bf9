package wire

import (
	"strings"
	"testing"
)

func TestExecValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		e    Exec
		want string // "" for valid
	}{
		"valid":       {Exec{Args: []string{"sh"}, Env: []string{"A="}, Workdir: "/tmp", Term: "xterm"}, ""},
		"no command":  {Exec{}, "exec: args"},
		"zero byte":   {Exec{Args: []string{"a\x00"}}, "exec: args"},
		"no variable": {Exec{Args: []string{"a"}, Env: []string{"A"}}, "exec: env"},
		"workdir":     {Exec{Args: []string{"a"}, Workdir: "tmp"}, "exec: workdir"},
		"terminal":    {Exec{Args: []string{"a"}, Term: "a\x00"}, "exec: term"},
	} {
		err := tc.e.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: Validate() = %v, want %q", name, err, tc.want)
		}
	}
}
