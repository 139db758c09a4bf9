package guest

import (
	"errors"
	"net"
	"testing"
	"time"
)

// eager is a connection whose handler winds up as soon as its read is woken, as
// that of a stream of the serial port may: before its writes fail.
type eager struct {
	net.Conn
	windUp func()
}

func (c *eager) SetDeadline(t time.Time) error {
	c.windUp()
	return c.Conn.SetDeadline(t)
}

// TestEndOthersTearsAnswers ends a connection whose handler then says that its
// answer is whole.
func TestEndOthersTearsAnswers(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go far.Read(make([]byte, 10)) // would take what is written
	var c conns
	e := &eager{Conn: near}
	ac := c.add(e)
	wrote := errors.New("the handler did not wind up")
	e.windUp = func() { _, wrote = ac.Write([]byte("0\r\n\r\n")) }
	if n := c.endOthers(t.Context()); n != 1 || !errors.Is(wrote, net.ErrClosed) {
		t.Errorf("endOthers() = %d, whose handler wrote with %v, want 1 and that it is closed", n, wrote)
	}
	if n := c.endOthers(t.Context()); n != 0 {
		t.Errorf("endOthers() again = %d", n)
	}
}
