package wire

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// jsonReader reads the JSON (RFC 8259) of a boot configuration, field by field.
// encoding/json does the same by reflection, and took 29 of the 300 ms that an
// emulated guest has between its kernel and its workload. It accepts nothing that
// encoding/json refuses. After an error nothing is read any more, and what was
// read is worth nothing.
type jsonReader struct {
	b   []byte
	at  int
	err error
}

// maxDepth bounds how deep a value may be that is of no interest.
const maxDepth = 100

func (r *jsonReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s at byte %d of its JSON", what, r.at)
	}
}

// next skips white space and returns the byte behind, 0 at the end and after an
// error.
func (r *jsonReader) next() byte {
	for ; r.err == nil && r.at < len(r.b); r.at++ {
		switch c := r.b[r.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take skips white space and then c, if that is there.
func (r *jsonReader) take(c byte) bool {
	if r.next() != c || r.err != nil || r.at == len(r.b) {
		return false
	}
	r.at++
	return true
}

// word reads what has no quotes: a number, true, false or null.
func (r *jsonReader) word() string {
	r.next()
	from := r.at
	for r.err == nil && r.at < len(r.b) {
		switch c := r.b[r.at]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '+', c == '.':
			r.at++
			continue
		}
		break
	}
	return string(r.b[from:r.at])
}

// null reads null, if that is what comes: it changes nothing, as with
// encoding/json.
func (r *jsonReader) null() bool {
	if r.next() != 'n' {
		return false
	}
	if r.word() != "null" {
		r.fail("no value")
	}
	return true
}

// object reads an object; field reads the value of a key, or skips it.
func (r *jsonReader) object(field func(key string)) {
	r.list('{', '}', func() {
		if r.next() != '"' {
			r.fail("no key")
			return
		}
		var key string
		r.string(&key)
		if !r.take(':') {
			r.fail("no colon")
			return
		}
		field(key)
	})
}

// array reads an array, whose values element reads.
func (r *jsonReader) array(element func()) { r.list('[', ']', element) }

func (r *jsonReader) list(begin, end byte, element func()) {
	if r.null() {
		return
	}
	if !r.take(begin) {
		r.fail("no " + string(begin))
		return
	}
	for first := true; !r.take(end); first = false {
		if !first && !r.take(',') {
			r.fail("no comma")
		}
		if r.err != nil {
			return
		}
		element()
	}
}

func (r *jsonReader) string(s *string) {
	if r.null() {
		return
	}
	if !r.take('"') {
		r.fail("no string")
		return
	}
	from, plain := r.at, true
	for ; r.at < len(r.b); r.at++ {
		switch c := r.b[r.at]; {
		case c == '"':
			raw := r.b[from:r.at]
			r.at++
			if plain || utf8.Valid(raw) && !slices.Contains(raw, '\\') {
				*s = string(raw)
			} else if err := json.Unmarshal(r.b[from-1:r.at], s); err != nil {
				r.fail("bad string")
			}
			return
		case c == '\\':
			plain = false
			r.at++ // what comes behind is no end
		case c >= utf8.RuneSelf:
			plain = false
		case c < ' ':
			r.fail("control character")
			return
		}
	}
	r.fail("no end of the string")
}

// strings reads an array of strings; an empty one is not nil.
func (r *jsonReader) strings(list *[]string) {
	if r.next() == '[' {
		*list = []string{}
	}
	r.array(func() {
		var s string
		r.string(&s)
		*list = append(*list, s)
	})
}

func (r *jsonReader) bool(b *bool) {
	switch r.word() {
	case "true":
		*b = true
	case "false":
		*b = false
	case "null":
	default:
		r.fail("neither true nor false")
	}
}

// integer reads a number of the type of n, without fraction and exponent.
func integer[T ~int | ~int64 | ~uint32](r *jsonReader, n *T) {
	word := r.word()
	if word == "null" {
		return
	}
	v, err := strconv.ParseInt(word, 10, 64)
	// JSON knows neither a plus nor leading zeros.
	if err != nil || strconv.FormatInt(v, 10) != word && word != "-0" || int64(T(v)) != v {
		r.fail("no integer")
		return
	}
	*n = T(v)
}

// text reads a string as the text of something.
func (r *jsonReader) text(to encoding.TextUnmarshaler) {
	if r.null() {
		return
	}
	var s string
	if r.string(&s); r.err != nil {
		return
	}
	if err := to.UnmarshalText([]byte(s)); err != nil {
		r.fail(err.Error())
	}
}

// bytes reads a string of base64.
func (r *jsonReader) bytes(b *[]byte) {
	if r.null() {
		return
	}
	var s string
	r.string(&s)
	got, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		r.fail("no base64")
		return
	}
	*b = got
}

// skip reads a value that is of no interest.
func (r *jsonReader) skip() { r.skipTo(maxDepth) }

func (r *jsonReader) skipTo(depth int) {
	if depth == 0 {
		r.fail("too deep")
		return
	}
	switch c := r.next(); c {
	case '{':
		r.object(func(string) { r.skipTo(depth - 1) })
	case '[':
		r.array(func() { r.skipTo(depth - 1) })
	case '"':
		var s string
		r.string(&s)
	default:
		from := r.at
		if word := r.word(); word == "" || !json.Valid(r.b[from:r.at]) {
			r.fail("no value")
		}
	}
}

// end wants nothing but white space.
func (r *jsonReader) end() error {
	if r.next() != 0 || r.at < len(r.b) {
		r.fail("more than one value")
	}
	return r.err
}
