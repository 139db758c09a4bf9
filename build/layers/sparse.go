package layers

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// paxSparse is what GNU.sparse.* records say; GNU tar manual, "Storing Sparse
// Files", formats 0.0, 0.1 and 1.0.
type paxSparse struct {
	name         string
	size         int64 // of the file; -1 where it is not said
	hasSize      bool
	major, minor string
	runs         []int64 // offset, length, …
}

func (s *paxSparse) set(key, value string) (err error) {
	switch key {
	case "name":
		s.name = value
	case "size", "realsize":
		s.size, err = strconv.ParseInt(value, 10, 64)
		s.hasSize = true
	case "major":
		s.major = value
	case "minor":
		s.minor = value
	case "offset", "numbytes":
		// 0.0 repeats the two records in turn.
		if (key == "offset") != (len(s.runs)%2 == 0) {
			return errors.New("offsets and lengths do not alternate")
		}
		err = s.appendRun(value)
	case "map":
		s.runs = nil
		for v := range strings.SplitSeq(value, ",") {
			if err := s.appendRun(v); err != nil {
				return err
			}
		}
	}
	return err
}

func (s *paxSparse) appendRun(v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	s.runs = append(s.runs, n)
	return err
}

// sparse reports whether the records make a file sparse. A lone name or size
// does not, as archive/tar reads it.
func (s *paxSparse) sparse() bool { return s.major != "" || s.minor != "" || s.runs != nil }

// paxSparse sets h's extents from pax records, and for format 1.0 from the map
// that stands in front of the content.
func (t *tarReader) paxSparse(h *header, s paxSparse) error {
	if s.hasSize {
		h.size = s.size
	}
	switch {
	case s.major == "1" && s.minor == "0":
		return t.sparse10(h)
	case s.major == "" || s.major == "0":
		return t.setRuns(h, h.offset, h.length, s.runs)
	}
	return fmt.Errorf("%w: %s is sparse in the unknown format %s.%s", ErrFormat, quote(h.name), s.major, s.minor)
}

// sparse10 reads a map of decimal lines: the number of runs, then an offset
// and a length of each, padded to a block.
func (t *tarReader) sparse10(h *header) error {
	var (
		runs    []int64
		want    = int64(-1)
		partial []byte
	)
	for used := int64(0); ; {
		if used+blockSize > h.length {
			return fmt.Errorf("%w: the sparse map of %s is cut short", ErrFormat, quote(h.name))
		}
		b, err := t.read(h.offset+used, blockSize)
		if err != nil {
			return err
		}
		used += blockSize
		for want < 0 || int64(len(runs)) < 2*want {
			line, rest, ok := bytes.Cut(b, []byte{'\n'})
			if partial = append(partial, line...); len(partial) > 20 {
				return fmt.Errorf("%w: the sparse map of %s holds %s", ErrFormat, quote(h.name), quote(string(partial)))
			}
			if !ok {
				break
			}
			n, err := strconv.ParseInt(string(partial), 10, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("%w: the sparse map of %s holds %s", ErrFormat, quote(h.name), quote(string(partial)))
			}
			b, partial = rest, partial[:0]
			if want < 0 {
				if want = n; want > h.length/4 { // a run takes four bytes at least
					return fmt.Errorf("%w: the sparse map of %s announces %d runs", ErrFormat, quote(h.name), n)
				}
				continue
			}
			if err := t.used.more(12); err != nil { // half an Extent
				return err
			}
			runs = append(runs, n)
		}
		if want >= 0 && int64(len(runs)) >= 2*want {
			return t.setRuns(h, h.offset+used, h.length-used, runs)
		}
	}
}

// oldSparse reads GNU's own sparse header: four runs in it, more in the blocks
// that follow.
func (t *tarReader) oldSparse(h *header, b []byte) error {
	var err error
	if h.size, err = number(b[483:495]); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, quote(h.name), err)
	}
	var runs []int64
	read := func(b []byte, n int) error {
		for i := range n {
			field := b[i*24:][:24]
			if field[0] == 0 {
				return nil
			}
			off, err := number(field[:12])
			if err != nil {
				return err
			}
			length, err := number(field[12:])
			if err != nil {
				return err
			}
			runs = append(runs, off, length)
		}
		return nil
	}
	err = read(b[386:], 4)
	for more := b[482] != 0; err == nil && more; {
		if b, err = t.read(h.offset, blockSize); err != nil {
			return err
		}
		h.offset += blockSize
		more = b[504] != 0
		if err := t.used.more(blockSize); err != nil {
			return err
		}
		err = read(b, 21)
	}
	if err != nil {
		return fmt.Errorf("%w: the sparse map of %s: %w", ErrFormat, quote(h.name), err)
	}
	return t.setRuns(h, h.offset, h.length, runs)
}

// setRuns checks a sparse map and keeps it as extents. The content of the runs
// lies one behind the other at offset start of the layer.
func (t *tarReader) setRuns(h *header, start, stored int64, runs []int64) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: the sparse map of %s %s", ErrFormat, quote(h.name), why)
	}
	if len(runs)%2 != 0 {
		return bad("has an offset without a length")
	}
	if start+stored > t.size {
		return fmt.Errorf("%w: %s is cut short", ErrFormat, quote(h.name))
	}
	if err := t.used.more(int64(len(runs)) * 12); err != nil {
		return err
	}
	h.sparse = true
	end, sum := int64(0), int64(0)
	for i := 0; i < len(runs); i += 2 {
		off, length := runs[i], runs[i+1]
		switch {
		case off < end || length < 0 || length > h.size || off > h.size-length:
			return bad("is out of order or reaches beyond the file's end")
		case length > stored-sum:
			return bad("announces more than the archive holds")
		}
		end = off + length
		if length > 0 {
			if n := len(h.extents); n > 0 && h.extents[n-1].Offset+h.extents[n-1].Length == off {
				h.extents[n-1].Length += length
			} else {
				h.extents = append(h.extents, Extent{off, length, start + sum})
			}
		}
		sum += length
	}
	if sum != stored {
		return bad("leaves stored bytes over")
	}
	return nil
}
