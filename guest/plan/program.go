package plan

import (
	"encoding/binary"
	"hash/fnv"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// offset is where something is in a plan. While it is made, what is in the data,
// whose place depends on how many operations there are, counts from dataBase.
type offset uint32

const dataBase offset = 1 << 30

// program is a plan that is made.
type program struct {
	calls []*call
	mem   []byte
}

// call is an operation.
type call struct {
	op     op
	args   []arg
	errno  int32
	result offset
}

// arg is an argument of a call.
type arg struct {
	kind  byte
	value uint64
}

const (
	kindValue = iota
	kindAddress
	kindNumber
)

func value(v uintptr) arg  { return arg{kindValue, uint64(v)} }
func address(o offset) arg { return arg{kindAddress, uint64(o)} }
func number(o offset) arg  { return arg{kindNumber, uint64(o)} }

// call appends an operation. What must not be there must not be an argument:
// those that are missing are 0.
func (p *program) call(nr op, args ...arg) *call {
	c := &call{op: nr, args: args}
	p.calls = append(p.calls, c)
	return c
}

// allow has an error count as none.
func (c *call) allow(errno syscall.Errno) *call {
	c.errno = int32(errno)
	return c
}

// ignore has no error count.
func (c *call) ignore() *call {
	c.errno = -1
	return c
}

// into stores the result.
func (c *call) into(at offset) *call {
	c.result = at
	return c
}

// mkdir makes a directory that may be there.
func (p *program) mkdir(at string) {
	p.call(unix.SYS_MKDIR, p.text(at), value(0o755)).allow(unix.EEXIST)
}

func (p *program) mount(m Mount) *call {
	return p.call(unix.SYS_MOUNT, p.text(m.Source), p.text(m.Target), p.text(m.Type), value(m.Flags), p.text(m.Data))
}

// open stores the descriptor of a file at fd.
func (p *program) open(at string, flags uintptr, perm fs.FileMode, fd offset) *call {
	return p.call(unix.SYS_OPEN, p.text(at), value(flags|unix.O_CLOEXEC), value(uintptr(perm))).into(fd)
}

// calls are those that do one thing.
type calls []*call

func (c calls) allow(errno syscall.Errno) {
	for _, one := range c {
		one.allow(errno)
	}
}

func (c calls) ignore() {
	for _, one := range c {
		one.ignore()
	}
}

// write writes a file.
func (p *program) write(at string, flags uintptr, perm fs.FileMode, content []byte) calls {
	fd := p.space(4)
	return calls{
		p.open(at, unix.O_WRONLY|flags, perm, fd),
		p.call(unix.SYS_WRITE, number(fd), p.bytes(content), value(uintptr(len(content)))),
		p.call(unix.SYS_CLOSE, number(fd)),
	}
}

// data adds memory that holds b, at a multiple of 8.
func (p *program) data(b []byte) offset {
	p.mem = append(p.mem, make([]byte, -len(p.mem)&7)...)
	at := dataBase + offset(len(p.mem))
	p.mem = append(p.mem, b...)
	return at
}

func (p *program) space(n int) offset    { return p.data(make([]byte, n)) }
func (p *program) bytes(b []byte) arg    { return address(p.data(b)) }
func (p *program) text(s string) arg     { return address(p.data(append([]byte(s), 0))) }
func (p *program) pointer(at, to offset) { p.call(opPoint, address(at), address(to)) }

// strings is an array of pointers, as argv.
func (p *program) strings(list []string) arg {
	at := p.space(8 * (len(list) + 1))
	for i, s := range list {
		p.pointer(at+offset(8*i), p.data(append([]byte(s), 0)))
	}
	return address(at)
}

// link returns the plan.
func (p *program) link() []byte {
	base := offset(headSize + opSize*len(p.calls))
	place := func(at offset) offset {
		if at >= dataBase {
			return at - dataBase + base
		}
		return at
	}
	le := binary.LittleEndian
	body := make([]byte, 0, int(base)-headSize+len(p.mem))
	for _, c := range p.calls {
		body = le.AppendUint16(body, uint16(c.op))
		var kinds [6]byte
		var values [5]uint64
		for i, a := range c.args {
			if kinds[i], values[i] = a.kind, a.value; a.kind != kindValue {
				values[i] = uint64(place(offset(a.value)))
			}
		}
		body = append(body, kinds[:]...)
		body = le.AppendUint32(body, uint32(c.errno))
		body = le.AppendUint32(body, uint32(place(c.result)))
		for _, v := range values {
			body = le.AppendUint64(body, v)
		}
	}
	body = append(body, p.mem...)
	sum := fnv.New64a()
	sum.Write(body) // never fails
	head := make([]byte, 0, headSize+len(body))
	head = append(head, magic...)
	head = le.AppendUint32(head, uint32(headSize+len(body)))
	head = le.AppendUint32(head, uint32(len(p.calls)))
	head = le.AppendUint64(head, sum.Sum64())
	return append(append(head, make([]byte, headSize-len(head))...), body...)
}
