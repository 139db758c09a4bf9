package roles

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// install is `volant install [--dir DIR]`: it links the role names to this
// binary. A link that is already right stays; a name that belongs to something
// else is left alone and is an error.
func install(args []string, stdout, stderr io.Writer) int {
	if only(args, "--help") || only(args, "-h") {
		fmt.Fprint(stdout, usage)
		return ExitOK
	}
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		fmt.Fprintf(stderr, "volant: find this binary: %v\n", err)
		return ExitFailed
	}
	dir := filepath.Dir(exe)
	switch {
	case len(args) == 0:
	case len(args) == 2 && args[0] == "--dir":
		dir = args[1]
	case len(args) == 1 && strings.HasPrefix(args[0], "--dir="):
		dir = strings.TrimPrefix(args[0], "--dir=")
	default:
		fmt.Fprint(stderr, "volant: usage: volant install [--dir DIR]\n")
		return ExitUsage
	}
	for _, name := range linkNames() {
		link := filepath.Join(dir, name)
		made, err := ensureLink(exe, link)
		if err != nil {
			fmt.Fprintf(stderr, "volant: %v\n", err)
			return ExitFailed
		}
		if made {
			fmt.Fprintf(stdout, "%s -> %s\n", link, exe)
		}
	}
	return ExitOK
}

// ensureLink makes link point to exe and reports whether it had to. A link to
// another volant binary is replaced in one step, so that upgrades work; a file
// that is no link, or a link to something else, is refused.
func ensureLink(exe, link string) (made bool, err error) {
	old, err := os.Readlink(link)
	switch {
	case err == nil && old == exe:
		return false, nil
	case err == nil && filepath.Base(old) != "volant":
		return false, fmt.Errorf("%s is a link to %s, which is not volant: remove it first", link, old)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		if _, statErr := os.Lstat(link); statErr == nil {
			return false, fmt.Errorf("%s exists and is no link: remove it first", link)
		}
		return false, err
	}
	tmp := fmt.Sprintf("%s.%d.tmp", link, os.Getpid())
	if err := os.Symlink(exe, tmp); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, link); err != nil {
		os.Remove(tmp)
		return false, err
	}
	return true, nil
}
