package volar

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints the script for a shell.
func (cmd *completionCmd) Run(c *cli) error {
	points := completions(c.model)
	switch cmd.Shell {
	case "zsh":
		// zsh runs bash completions.
		fmt.Fprint(c.stdout, "#compdef volar\nautoload -U +X bashcompinit && bashcompinit\n")
		fallthrough
	case "bash":
		bashCompletion(c.stdout, points)
	case "fish":
		fishCompletion(c.stdout, points)
	}
	return nil
}

// completionPoint is what can follow one command.
type completionPoint struct {
	path    string // "vms create"; empty for the top
	words   []string
	flags   []string
	valued  []string // those of flags that take a value in the next word
	dynamic string   // what positional arguments name: "vms", "plugins", "kernels", "" for files
}

// completions walks the grammar.
func completions(app *kong.Application) []completionPoint {
	var out []completionPoint
	var walk func(n *kong.Node, path []string, flags, valued []string)
	walk = func(n *kong.Node, path []string, flags, valued []string) {
		p := completionPoint{path: strings.Join(path, " ")}
		for _, f := range n.Flags {
			if f.Hidden {
				continue
			}
			names := []string{"--" + f.Name}
			if f.Short != 0 {
				names = append(names, "-"+string(f.Short))
			}
			if !f.IsBool() {
				valued = append(slices.Clip(valued), names...)
			}
			if f.Tag.Negatable != "" {
				names = append(names, "--no-"+f.Name)
			}
			flags = append(slices.Clip(flags), names...)
		}
		p.flags, p.valued = flags, valued
		for _, arg := range n.Positional {
			p.dynamic = arg.Tag.Get("complete")
			if arg.Enum != "" {
				p.words = append(p.words, strings.Split(arg.Enum, ",")...)
			}
		}
		for _, child := range n.Children {
			if child.Hidden {
				continue
			}
			p.words = append(p.words, child.Name)
			walk(child, append(slices.Clip(path), child.Name), flags, valued)
		}
		out = append(out, p)
	}
	walk(app.Node, nil, nil, nil)
	slices.SortFunc(out, func(a, b completionPoint) int { return strings.Compare(a.path, b.path) })
	return out
}

// listCommand prints the names that a positional argument can be.
func listCommand(dynamic string) string { return "volar " + dynamic + " list -o name 2>/dev/null" }

func bashCompletion(w io.Writer, points []completionPoint) {
	fmt.Fprint(w, `_volar() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= word i skip= words= flags= valued=
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case "$path/$word" in
`)
	var commands []string
	for _, p := range points {
		if p.path == "" {
			continue
		}
		parent, name := "", p.path
		if i := strings.LastIndexByte(p.path, ' '); i >= 0 {
			parent, name = p.path[:i], p.path[i+1:]
		}
		commands = append(commands, fmt.Sprintf("    %s) path=%s ;;\n", shellQuote(parent+"/"+name), shellQuote(p.path)))
	}
	fmt.Fprint(w, strings.Join(commands, ""), "    esac\n  done\n  case \"$path\" in\n")
	for _, p := range points {
		fmt.Fprintf(w, "  %s)\n    words=%s flags=%s valued=%s\n", shellQuote(p.path), shellQuote(strings.Join(p.words, " ")),
			shellQuote(strings.Join(p.flags, " ")), shellQuote(strings.Join(p.valued, " ")))
		if p.dynamic != "" {
			fmt.Fprintf(w, "    [[ $cur == -* ]] || words=$(%s)\n", listCommand(p.dynamic))
		}
		fmt.Fprint(w, "    ;;\n")
	}
	fmt.Fprint(w, `  esac
  if [[ " $valued " == *" $prev "* || -z $words && $cur != -* ]]; then
    COMPREPLY=($(compgen -f -- "$cur"))
  elif [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
  else
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
  fi
}
complete -F _volar volar
`)
}

func fishCompletion(w io.Writer, points []completionPoint) {
	fmt.Fprint(w, `function __volar_at
  set -l words (commandline -opc | string match -v -- '-*')
  test "$words[2..-1]" = "$argv[1]"; or begin
    test -n "$argv[2]"; and string match -q -- "$argv[1] *" "$words[2..-1]"
  end
end
complete -c volar -f
`)
	for _, p := range points {
		for _, word := range p.words {
			fmt.Fprintf(w, "complete -c volar -n %s -a %s\n", shellQuote("__volar_at '"+p.path+"'"), shellQuote(word))
		}
		if p.dynamic != "" {
			fmt.Fprintf(w, "complete -c volar -n %s -a %s\n", shellQuote("__volar_at '"+p.path+"' more"), shellQuote("("+listCommand(p.dynamic)+")"))
		}
		for _, flag := range p.flags {
			if name, long := strings.CutPrefix(flag, "--"); long && p.path != "" {
				need := ""
				if slices.Contains(p.valued, flag) {
					need = " -r"
				}
				fmt.Fprintf(w, "complete -c volar -n %s -l %s%s\n", shellQuote("__volar_at '"+p.path+"' more"), name, need)
			}
		}
	}
}

// shellQuote quotes s for bash and fish. Names of commands and flags hold no
// backslashes.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
