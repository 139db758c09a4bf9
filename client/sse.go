package client

import (
	"bufio"
	"io"
	"strings"
)

// message is one server-sent event.
type message struct {
	id, event, data string
}

// sseReader parses a stream of server-sent events as the HTML standard section
// 9.2.6 says, except that lines end in LF or CRLF only.
type sseReader struct{ sc *bufio.Scanner }

func newSSEReader(r io.Reader) *sseReader {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	return &sseReader{sc}
}

// next returns the next event, or io.EOF at the stream's end. alive is called
// for every line, comments too. An event has at most maxLine bytes of data.
func (s *sseReader) next(alive func()) (message, error) {
	var m message
	var data []string
	size := 0
	for s.sc.Scan() {
		alive()
		line := s.sc.Text()
		if line == "" {
			if data == nil {
				m.event = ""
				continue
			}
			m.data = strings.Join(data, "\n")
			return m, nil
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			if !strings.ContainsRune(value, 0) {
				m.id = value
			}
		case "event":
			m.event = value
		case "data":
			if size += len(value) + 1; size > maxLine {
				return message{}, bufio.ErrTooLong
			}
			data = append(data, value)
		}
	}
	if err := s.sc.Err(); err != nil {
		return message{}, err
	}
	return message{}, io.EOF
}
