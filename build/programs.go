package build

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// searchPath is the PATH a workload gets when its manifest sets none.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// checkScripts sees to it that scripts find their interpreters. For those that
// must run, guest paths in required, a missing one is an error; else a warning.
func checkScripts(t *tree, required []string, warn func(string, ...any)) error {
	must := make(map[string]bool)
	for _, p := range required {
		if at, n, err := t.resolve(p); err == nil && n != nil {
			must[at] = true
		}
	}
	for _, n := range t.sorted() {
		if n.host == "" || n.Mode&0o111 == 0 {
			continue
		}
		interp, arg, err := shebang(n.host)
		if err != nil {
			return err
		}
		if interp == "" {
			continue
		}
		lacking := ""
		if !t.runnable(interp) {
			lacking = interp
		} else if path.Base(interp) == "env" && arg != "" && !strings.ContainsAny(arg, "-=/ ") && t.lookPath(arg, searchPath) == "" {
			lacking = arg
		}
		switch {
		case lacking == "":
		case must[n.Name]:
			return fmt.Errorf("/%s (%s) is a script of %s, which is not in the image", n.Name, n.origin, lacking)
		default:
			warn("/%s (%s) is a script of %s, which is not in the image", n.Name, n.origin, lacking)
		}
	}
	return nil
}

// shebang returns the interpreter and its argument, as execve(2) reads them.
func shebang(host string) (interp, arg string, err error) {
	f, err := os.Open(host)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	var buf [256]byte // BINPRM_BUF_SIZE
	n, err := io.ReadFull(f, buf[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", "", err
	}
	line, ok := bytes.CutPrefix(buf[:n], []byte("#!"))
	if !ok {
		return "", "", nil
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	interp, arg, _ = strings.Cut(strings.TrimSpace(string(line)), " ")
	return interp, strings.TrimSpace(arg), nil
}

// runnable reports whether an absolute guest path leads to an executable file.
func (t *tree) runnable(guest string) bool {
	_, n, err := t.resolve(guest)
	return err == nil && n != nil && n.Mode&fs.ModeType == 0 && n.Mode&0o111 != 0
}

// lookPath finds a program in a search path; "" if it is in none.
func (t *tree) lookPath(name, searchPath string) string {
	for dir := range strings.SplitSeq(searchPath, ":") {
		if p := path.Join("/", dir, name); t.runnable(p) {
			return p
		}
	}
	return ""
}
