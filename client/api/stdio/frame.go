package stdio

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Protocol is the token that the header Upgrade carries.
const Protocol = "volant-stdio/1"

const (
	// HeaderLen is the length of a frame without its payload, in bytes.
	HeaderLen = 5
	// MaxPayload bounds the payload of a frame, in bytes.
	MaxPayload = 64 << 10
	// Window is how much input may be under way to a process, in bytes.
	Window = 64 << 10
	// maxExit bounds the payload of an Exit frame, in bytes, and maxError the
	// text in it, which JSON makes six times as long at the worst.
	maxExit  = 8 << 10
	maxError = 1 << 10
	// maxSignal bounds the name of a signal: "SIGRTMIN+15" is the longest.
	maxSignal = 16
)

// Type says what a Frame is.
type Type byte

const (
	Stdin      Type = 1
	StdinClose Type = 2
	Resize     Type = 3
	Signal     Type = 4

	Stdout Type = 16
	Stderr Type = 17
	Exit   Type = 18
	Taken  Type = 19
)

// String returns the type's name.
func (t Type) String() string {
	switch t {
	case Stdin:
		return "stdin"
	case StdinClose:
		return "stdin-close"
	case Resize:
		return "resize"
	case Signal:
		return "signal"
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	case Exit:
		return "exit"
	case Taken:
		return "taken"
	}
	return fmt.Sprintf("type %d", byte(t))
}

// Frame is one frame. Which of the fields count depends on the Type.
type Frame struct {
	Type Type
	Data []byte     // of Stdin, Stdout, Stderr
	Size Size       // of Resize
	Name string     // of Signal
	N    int        // of Taken, bytes, 1 to Window
	Exit ExitStatus // of Exit
}

// Size is a terminal's, in characters.
type Size struct {
	Rows, Cols uint16
}

// ExitStatus is how a process ended. Its codes are those that shells and
// container tools use: 125 when Volant could not do its part, 126 when the
// command could not be executed, 127 when it was not found.
type ExitStatus struct {
	Code   int    `json:"code"`             // exit status, 0 to 255; 128+n when signal n ended it
	Signal string `json:"signal,omitempty"` // "SIGKILL"
	Error  string `json:"error,omitempty"`  // why it did not run, or was not seen to its end
}

// Exit codes of a process that did not run.
const (
	CodeFailed        = 125 // Volant could not do its part
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// ErrMalformed says that what came is not of this protocol.
var ErrMalformed = errors.New("malformed frame")

func malformed(t Type, format string, args ...any) error {
	return fmt.Errorf("%w: %v: %s", ErrMalformed, t, fmt.Sprintf(format, args...))
}

// appendFrame appends the wire form of f to b. It refuses what decode would,
// and shortens an Exit's Error that is too long.
func appendFrame(b []byte, f Frame) ([]byte, error) {
	start := len(b)
	b = append(b, byte(f.Type), 0, 0, 0, 0)
	switch f.Type {
	case Stdin, Stdout, Stderr:
		if len(f.Data) > MaxPayload {
			return b[:start], malformed(f.Type, "%d bytes exceed the limit of %d", len(f.Data), MaxPayload)
		}
		b = append(b, f.Data...)
	case StdinClose:
	case Resize:
		b = binary.BigEndian.AppendUint16(b, f.Size.Rows)
		b = binary.BigEndian.AppendUint16(b, f.Size.Cols)
	case Signal:
		if !validSignal(f.Name) {
			return b[:start], malformed(f.Type, "%.20q is not the name of a signal", f.Name)
		}
		b = append(b, f.Name...)
	case Exit:
		e := f.Exit
		if err := e.check(); err != nil {
			return b[:start], err
		}
		if len(e.Error) > maxError {
			e.Error = e.Error[:maxError-3] + "..." // Marshal replaces a character that was cut
		}
		j, err := json.Marshal(e)
		if err != nil {
			return b[:start], err
		}
		b = append(b, j...)
	case Taken:
		if f.N < 1 || f.N > Window {
			return b[:start], malformed(f.Type, "%d is not within 1 to %d", f.N, Window)
		}
		b = binary.BigEndian.AppendUint32(b, uint32(f.N))
	default:
		return b[:start], malformed(f.Type, "is unknown")
	}
	binary.BigEndian.PutUint32(b[start+1:], uint32(len(b)-start-HeaderLen))
	return b, nil
}

// checkHeader checks type and length of a frame before its payload is read.
func checkHeader(t Type, size uint32) error {
	lowest, highest := uint32(0), uint32(MaxPayload)
	switch t {
	case Stdin, Stdout, Stderr:
	case StdinClose:
		highest = 0
	case Resize, Taken:
		lowest, highest = 4, 4
	case Signal:
		lowest, highest = 1, maxSignal
	case Exit:
		lowest, highest = 2, maxExit
	default:
		return malformed(t, "is unknown")
	}
	if size < lowest || size > highest {
		return malformed(t, "has %d bytes, takes %d to %d", size, lowest, highest)
	}
	return nil
}

// decode makes a Frame of a payload that checkHeader let pass. Its Data is the
// payload itself.
func decode(t Type, payload []byte) (Frame, error) {
	f := Frame{Type: t}
	switch t {
	case Stdin, Stdout, Stderr:
		f.Data = payload
	case Resize:
		f.Size = Size{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])}
	case Signal:
		f.Name = string(payload)
		if !validSignal(f.Name) {
			return Frame{}, malformed(t, "%.20q is not the name of a signal", f.Name)
		}
	case Exit:
		if err := json.Unmarshal(payload, &f.Exit); err != nil {
			return Frame{}, malformed(t, "%v", err)
		}
		if err := f.Exit.check(); err != nil {
			return Frame{}, err
		}
	case Taken:
		n := binary.BigEndian.Uint32(payload)
		if n < 1 || n > Window {
			return Frame{}, malformed(t, "%d is not within 1 to %d", n, Window)
		}
		f.N = int(n)
	}
	return f, nil
}

func (e *ExitStatus) check() error {
	switch {
	case e.Code < 0 || e.Code > 255:
		return malformed(Exit, "code %d is not within 0 to 255", e.Code)
	case e.Signal != "" && !validSignal(e.Signal):
		return malformed(Exit, "%.20q is not the name of a signal", e.Signal)
	}
	return nil
}

// validSignal accepts what a name of a signal is made of; whether there is one
// of that name is known in the guest.
func validSignal(s string) bool {
	if s == "" || len(s) > maxSignal {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '+' && c != '-' {
			return false
		}
	}
	return true
}
