package build

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// Error is a fault in an input file: what is wrong, and where.
type Error struct {
	File string // as the user named it
	Line int    // from 1; 0 when the fault is not in one line
	Key  string // path of the key, such as agent.url; may be empty
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(e.Line))
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key)
		b.WriteString(": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// source is an input file with the lines of its keys.
type source struct {
	file  string
	lines map[string]int // key path, as api's errors spell it, to line
}

// errorf is a fault at a key.
func (s *source) errorf(key, format string, args ...any) error {
	return &Error{File: s.file, Line: s.line(key), Key: key, Err: fmt.Errorf(format, args...)}
}

// line finds the line of a key, or of the nearest table around it.
func (s *source) line(key string) int {
	for key != "" {
		if n, ok := s.lines[key]; ok {
			return n
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return 0
}

// place gives an error of package api, whose message begins with the field's
// path, the file and line it is about. prefix is the path of the part that was
// decoded within the file, such as "manifest", or empty.
func (s *source) place(prefix string, err error) error {
	var ae *api.Error
	if err == nil || !errors.As(err, &ae) {
		return err
	}
	key, msg, ok := strings.Cut(ae.Message, ": ")
	if !ok || strings.ContainsAny(key, " \n") {
		key, msg = "", ae.Message
	}
	key = strings.Trim(prefix+"."+key, ".")
	return &Error{File: s.file, Line: s.line(key), Key: key, Err: errors.New(msg)}
}
