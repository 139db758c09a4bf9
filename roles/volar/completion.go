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
	valued  []valuedFlag
	dynamic string // what positional arguments name: "vms", "plugins", "kernels", ""
	files   bool   // positional arguments are files
}

// valuedFlag is a flag that takes a value in the next word. With neither words
// nor dynamic the value may be a file.
type valuedFlag struct {
	name    string   // "--plugin", "-o"
	words   []string // what the value can be
	dynamic string   // what it names, as completionPoint's
}

// completions walks the grammar.
func completions(app *kong.Application) []completionPoint {
	var out []completionPoint
	var walk func(n *kong.Node, path, flags []string, valued []valuedFlag)
	walk = func(n *kong.Node, path, flags []string, valued []valuedFlag) {
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
				v := valuedFlag{dynamic: f.Tag.Get("complete")}
				if f.Enum != "" {
					v.words = strings.Split(f.Enum, ",")
				}
				for _, v.name = range names {
					valued = append(slices.Clip(valued), v)
				}
			}
			if f.Tag.Negatable != "" {
				names = append(names, "--no-"+f.Name)
			}
			flags = append(slices.Clip(flags), names...)
		}
		p.flags, p.valued = flags, valued
		for _, arg := range n.Positional {
			switch names := arg.Tag.Get("complete"); names {
			case "":
			case "files":
				p.files = true
			default:
				p.dynamic = names
			}
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

// bashCompletion writes a function for bash, which zsh runs too. Its variables
// avoid zsh's own, such as path and words.
func bashCompletion(w io.Writer, points []completionPoint) {
	fmt.Fprint(w, `_volar() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at= word= i= choices= opts= valued=
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case "$at/$word" in
`)
	for _, p := range points {
		if p.path == "" {
			continue
		}
		parent, name := "", p.path
		if i := strings.LastIndexByte(p.path, ' '); i >= 0 {
			parent, name = p.path[:i], p.path[i+1:]
		}
		fmt.Fprintf(w, "    %s) at=%s ;;\n", shellQuote(parent+"/"+name), shellQuote(p.path))
	}
	fmt.Fprint(w, "    esac\n  done\n  case \"$at\" in\n")
	for _, p := range points {
		fmt.Fprintf(w, "  %s)\n    opts=%s\n    case \"$prev\" in\n", shellQuote(p.path), shellQuote(strings.Join(p.flags, " ")))
		for _, v := range p.valued {
			fmt.Fprintf(w, "    %s) valued=1 choices=%s ;;\n", v.name, bashChoices(v.words, v.dynamic))
		}
		fmt.Fprintf(w, "    *) [[ $cur == -* ]] || choices=%s ;;\n    esac ;;\n", bashChoices(p.words, p.dynamic))
	}
	fmt.Fprint(w, `  esac
  if [[ -z $valued && $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$opts" -- "$cur"))
  elif [[ -n $choices ]]; then
    COMPREPLY=($(compgen -W "$choices" -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}
complete -F _volar volar
`)
}

// bashChoices is the shell's word for the words, or for what the command prints.
func bashChoices(words []string, dynamic string) string {
	if dynamic != "" {
		return "$(" + listCommand(dynamic) + ")"
	}
	return shellQuote(strings.Join(words, " "))
}

func fishCompletion(w io.Writer, points []completionPoint) {
	var valued []string // of all commands; a name takes a value everywhere or nowhere
	for _, p := range points {
		for _, v := range p.valued {
			valued = append(valued, v.name)
		}
	}
	slices.Sort(valued)
	fmt.Fprintf(w, `function __volar_at
  set -l words
  set -l skip
  for word in (commandline -opc)[2..-1]
    if test -n "$skip"
      set skip
    else if contains -- $word %s
      set skip 1
    else if not string match -q -- '-*' $word
      set -a words $word
    end
  end
  test "$words" = "$argv[1]"; or begin
    test -n "$argv[2]"; and string match -q -- "$argv[1] *" "$words"
  end
end
complete -c volar -f
`, strings.Join(slices.Compact(valued), " "))
	global := points[0].flags // sorted by path, the top is first
	for _, p := range points {
		at, below := " -n "+shellQuote("__volar_at '"+p.path+"'"), " -n "+shellQuote("__volar_at '"+p.path+"' more")
		if p.path == "" {
			below = ""
		}
		for _, word := range p.words {
			fmt.Fprintf(w, "complete -c volar%s -a %s\n", at, shellQuote(word))
		}
		if p.dynamic != "" {
			fmt.Fprintf(w, "complete -c volar%s -a %s\n", below, shellQuote("("+listCommand(p.dynamic)+")"))
		}
		if p.files {
			fmt.Fprintf(w, "complete -c volar%s -F\n", below)
		}
		for _, flag := range p.flags {
			if p.path != "" && slices.Contains(global, flag) {
				continue
			}
			option := "-s " + strings.TrimPrefix(flag, "-")
			if name, long := strings.CutPrefix(flag, "--"); long {
				option = "-l " + name
			}
			fmt.Fprintf(w, "complete -c volar%s %s%s\n", below, option, fishValue(p.valued, flag))
		}
	}
}

// fishValue is what complete(1) needs to know about a flag's value.
func fishValue(valued []valuedFlag, flag string) string {
	for _, v := range valued {
		switch {
		case v.name != flag:
		case v.dynamic != "":
			return " -x -a " + shellQuote("("+listCommand(v.dynamic)+")")
		case len(v.words) > 0:
			return " -x -a " + shellQuote(strings.Join(v.words, " "))
		default:
			return " -r"
		}
	}
	return ""
}

// shellQuote quotes s for bash and fish. Names of commands and flags hold no
// backslashes.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
