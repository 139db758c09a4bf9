package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// Exit statuses of a command that could not be started, as shells and container
// engines have them.
const (
	exitNotFound  = 127
	exitCannotRun = 126
)

// startError is why a command could not be started, with the exit status that
// stands for it.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// cannotStart gives the error as the exit status that its cause has.
func cannotStart(cause, err error) error {
	if errors.Is(cause, fs.ErrNotExist) {
		return &startError{exitNotFound, err}
	}
	return &startError{exitCannotRun, err}
}

// lookupProgram finds the program for argv[0], as execvp(3) would from the
// directory dir.
func lookupProgram(files Files, name, dir, search string) (string, error) {
	if strings.Contains(name, "/") {
		abs := name
		if !path.IsAbs(name) {
			abs = path.Join(dir, name)
		}
		if err := executable(files, abs); err != nil {
			return "", cannotStart(err, fmt.Errorf("command %q: %w", name, err))
		}
		return abs, nil
	}
	denied := error(nil)
	for _, p := range strings.Split(search, ":") {
		abs := path.Join(dir, p, name)
		if path.IsAbs(p) {
			abs = path.Join(p, name)
		}
		err := executable(files, abs)
		if err == nil {
			return abs, nil
		}
		if denied == nil && !errors.Is(err, fs.ErrNotExist) {
			denied = cannotStart(err, fmt.Errorf("command %q: %w", name, err))
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &startError{exitNotFound, fmt.Errorf("command %q is in none of the directories of PATH=%s", name, search)}
}

func executable(files Files, name string) error {
	info, err := files.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory", name)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable (mode %v)", name, info.Mode())
	}
	return nil
}

// explainStart says what an error of execve(2) means for a program that is
// there and executable.
func explainStart(files Files, p Process, err error) error {
	why := ""
	switch {
	case errors.Is(err, syscall.ENOENT):
		if executable(files, p.Path) == nil {
			why = ": its interpreter or dynamic loader is not in the image"
		}
	case errors.Is(err, syscall.ENOEXEC):
		why = ": not a program for this machine (another architecture, or a script without #!)"
	case errors.Is(err, syscall.EACCES):
		why = fmt.Sprintf(": uid %d may not execute it or enter %s", p.User.Uid, p.Dir)
	}
	return cannotStart(err, fmt.Errorf("start %s: %w%s", p.Path, err, why))
}
