package volar

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/testdata/need"
)

// TestCompletion has each shell complete lines by its script. A volar that
// knows one name of everything stands in PATH.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "volar"), []byte("#!/bin/sh\necho my-$1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Both run the function as the shell's own completion would, but zsh needs
	// a terminal for that, so its surroundings are made here.
	const bashLike = `
words=("$@"); COMP_WORDS=(volar "${words[@]}"); COMP_CWORD=$#; COMPREPLY=()
_volar
printf '%s\n' "${COMPREPLY[@]}"`
	shells := map[string][]string{
		"bash": {"bash", "--norc", "-c", `source "$0"` + bashLike},
		"zsh":  {"zsh", "-f", "-c", `compdef() { :; }; source "$0"; setopt ksharrays shwordsplit` + bashLike},
		"fish": {"fish", "--no-config", "-c", `source $argv[1]; complete -C "volar $argv[2..-1]" | cut -f1`},
	}
	for shell, command := range shells {
		t.Run(shell, func(t *testing.T) {
			need.Tool(t, shell)
			status, script, _ := run(t, "completion", shell)
			if status != exitOK {
				t.Fatalf("volar completion %s = %d", shell, status)
			}
			file := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
				t.Fatal(err)
			}
			for line, want := range map[string]string{
				"vms g":                        "get",
				"vms get ":                     "my-vms",
				"vms stop a ":                  "my-vms",
				"-o json vms tim":              "timeline",
				"plugins show ":                "my-plugins",
				"kernels default ":             "my-kernels",
				"vms create a --plugin ":       "my-plugins",
				"vms create --plug":            "--plugin",
				"run ":                         "my-images",
				"images inspect ":              "my-images",
				"volumes rm a ":                "my-volumes",
				"volumes cr":                   "create",
				"vms list --sort created":      "created_at",
				"--output ta":                  "table",
				"completion f":                 "fish",
				"plugins install completion_t": "completion_test.go",
			} {
				args := append(append(command[1:len(command):len(command)], file), strings.Split(line, " ")...)
				cmd := exec.CommandContext(t.Context(), command[0], args...)
				cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
				out, err := cmd.CombinedOutput()
				var fit []string
				for _, choice := range strings.Fields(string(out)) {
					// zsh drops what does not fit after the function.
					if shell != "zsh" || strings.HasPrefix(choice, line[strings.LastIndexByte(line, ' ')+1:]) {
						fit = append(fit, choice)
					}
				}
				if got := strings.Join(fit, " "); err != nil || got != want {
					t.Errorf("%q completes to %q %v, want %q", "volar "+line, got, err, want)
				}
			}
		})
	}
}
