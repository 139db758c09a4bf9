package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

const (
	// maxEvent bounds one event, in bytes; they have some 150.
	maxEvent = 64 << 10
	// maxEvents is how much of the file may hold events that were read. A guest
	// that resets a device over and over writes without end.
	maxEvents = 1 << 20
)

// event is one entry of the event monitor's file.
type event struct {
	Source string `json:"source"` // "vmm", "vm", "guest", "virtio-device"
	Event  string `json:"event"`
}

// decoder finds events in the bytes of the event monitor's file: indented JSON
// objects that begin and end in the first column, with blank lines between. What
// is not that, such as the rest of an event whose beginning was lost, is skipped.
// The zero value is ready.
type decoder struct {
	line   []byte // what has come of the current line
	object []byte // the lines of the current object; nil outside of one
	long   bool   // the line is longer than maxEvent and is being skipped
}

// write takes the next bytes and calls found for each event that ends in them.
func (d *decoder) write(b []byte, found func(event)) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		if len(d.line)+len(part) > maxEvent {
			d.line, d.object, d.long = nil, nil, true
		}
		if !d.long {
			d.line = append(d.line, part...)
		}
		if i < 0 {
			return
		}
		if !d.long {
			d.endLine(found)
		}
		d.line, d.long = d.line[:0], false
		b = b[i+1:]
	}
}

// endLine adds the line to the object that it belongs to.
func (d *decoder) endLine(found func(event)) {
	line := bytes.TrimRight(bytes.TrimLeft(d.line, "\x00"), " \r\x00") // zeros: where the file was given back
	if bytes.HasPrefix(line, []byte("{")) {
		d.object = []byte{} // whatever came before was cut off
	}
	if d.object == nil {
		return
	}
	if len(d.object)+len(line) > maxEvent {
		d.object = nil
		return
	}
	d.object = append(append(d.object, line...), '\n')
	whole := bytes.HasPrefix(line, []byte("}")) || bytes.HasPrefix(line, []byte("{")) && bytes.HasSuffix(line, []byte("}"))
	if !whole {
		return
	}
	if e, ok := parseEvent(d.object); ok {
		found(e)
	}
	d.object = nil
}

// parseEvent parses an object. If an event was cut off in the middle of a line
// the next one begins there, so that each brace at the end of a line is tried.
func parseEvent(b []byte) (event, bool) {
	for {
		var e event
		if json.Unmarshal(b, &e) == nil && e.Source != "" && e.Event != "" {
			return e, true
		}
		i := bytes.Index(b[1:], []byte("{\n"))
		if i < 0 {
			return event{}, false
		}
		b = b[1+i:]
	}
}

// exitOf tells from an event that the machine has ended, and how. It must be
// known that nobody but the guest can have caused it.
func exitOf(e event) (exit hv.Exit, ended bool) {
	switch {
	case e.Source == "guest" && e.Event == "panic":
		return hv.Exit{Reason: hv.ExitPanic, Detail: "the guest's kernel panicked"}, true
	case e.Source == "vm" && (e.Event == "rebooting" || e.Event == "rebooted"):
		return hv.Exit{Reason: hv.ExitReset, Detail: "the guest reset"}, true
	case e.Source == "vm" && e.Event == "shutdown":
		return hv.Exit{Reason: hv.ExitShutdown, Detail: "the guest powered off"}, true
	}
	return hv.Exit{}, false
}

// journal reads the event monitor's file as it grows. It is for one goroutine at
// a time.
type journal struct {
	file   *os.File // nil until the VMM has made it
	path   string
	offset int64 // of what is read next
	given  int64 // up to here the file was given back
	decoder
}

// read calls found for what was written since the last read.
func (j *journal) read(found func(event)) error {
	if j.file == nil {
		f, err := openJournal(j.path)
		if err != nil {
			return err
		}
		j.file = f
		// A predecessor may have given back the beginning.
		if start, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err == nil {
			j.offset, j.given = start, start
		}
	}
	fi, err := j.file.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < j.offset { // truncated: nobody should
		j.offset, j.given, j.decoder = 0, 0, decoder{}
	}
	b := make([]byte, 16<<10)
	for {
		n, err := j.file.ReadAt(b, j.offset)
		j.offset += int64(n)
		j.decoder.write(b[:n], found)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// openJournal opens the file, for writing too: to give back. A VMM that runs as
// another user makes it where it could put a link instead, to a file of ours.
func openJournal(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1) {
		err = fmt.Errorf("%s is no file, or has other names", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// giveBack frees the blocks of what was read, once it is much. The VMM goes on
// writing where it was, so that the file cannot be cut.
func (j *journal) giveBack() {
	if j.file == nil || j.offset-j.given < maxEvents {
		return
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if unix.Fallocate(int(j.file.Fd()), mode, j.given, j.offset-j.given) == nil {
		j.given = j.offset // else tried again at the next look
	}
}

func (j *journal) close() {
	if j.file != nil {
		j.file.Close() // nothing was written
	}
}

// readJournal finds in the events of a directory how a machine ended that nobody
// was attached to. What the guest did first counts: the rest is its clean-up.
func readJournal(dir string) (exit hv.Exit, ok bool) {
	j := journal{path: eventsPath(dir)}
	defer j.close()
	_ = j.read(func(e event) { // what could be read is better than nothing
		if x, ended := exitOf(e); ended && !ok {
			exit, ok = x, true
		}
	})
	return exit, ok
}
