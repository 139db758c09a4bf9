package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// drain reads all frames of b through a reader that returns at most step bytes
// at a time. Payloads are copied.
func drain(t testing.TB, b []byte, step int) []frame {
	t.Helper()
	var r io.Reader = &stepReader{b: b, step: step}
	fr := newFrameReader(r, -1)
	var frames []frame
	for {
		f, err := fr.next()
		if err == io.EOF {
			return frames
		}
		if err != nil {
			t.Fatalf("next() = %v, want frames and io.EOF", err)
		}
		if len(fr.buf) != maxFrameLen {
			t.Fatalf("the buffer grew to %d bytes", len(fr.buf))
		}
		f.payload = bytes.Clone(f.payload)
		frames = append(frames, f)
	}
}

type stepReader struct {
	b    []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.step)], r.b)
	r.b = r.b[n:]
	return n, nil
}

func sameFrame(a, b frame) bool {
	return a.typ == b.typ && a.epoch == b.epoch && bytes.Equal(a.payload, b.payload)
}

func TestFramesRoundTrip(t *testing.T) {
	big := bytes.Repeat([]byte("VLK\x03"), maxPayload/4)
	want := []frame{
		{typ: frameHello, epoch: 1},
		{typ: frameAck, epoch: 0xffffffff},
		{typ: frameData, epoch: 7, payload: []byte{}},
		{typ: frameData, epoch: 7, payload: []byte("x")},
		{typ: frameData, epoch: 7, payload: big},
		{typ: frameData, epoch: 7, payload: big[:maxPayload-1]},
		{typ: frameBye, epoch: 7},
	}
	var b []byte
	for _, f := range want {
		b = appendFrame(b, f)
	}
	for _, step := range []int{1, 7, headerLen, maxFrameLen, 1 << 20} {
		got := drain(t, b, step)
		if len(got) != len(want) {
			t.Fatalf("step %d: got %d frames, want %d", step, len(got), len(want))
		}
		for i := range want {
			if !sameFrame(got[i], want[i]) {
				t.Errorf("step %d: frame %d = %v %v, %d bytes, want %v %v, %d bytes", step, i,
					got[i].typ, got[i].epoch, len(got[i].payload), want[i].typ, want[i].epoch, len(want[i].payload))
			}
		}
	}
}

func TestFramesAreFoundInGarbage(t *testing.T) {
	good := frame{typ: frameData, epoch: 42, payload: []byte("after the storm")}
	whole := appendFrame(nil, frame{typ: frameData, epoch: 41, payload: bytes.Repeat([]byte{0xaa}, maxPayload)})
	flipped := bytes.Clone(whole)
	flipped[headerLen+5] ^= 1
	tests := []struct {
		name string
		junk []byte
		pad  bool // needs the zeros that a host sends first
	}{
		{"one byte", []byte("V"), false},
		{"half the magic", []byte("VL"), false},
		{"magic only", []byte("VLK"), false},
		{"header of an unknown type", []byte("VLK\x09\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), false},
		{"flipped bit", flipped, false},
		{"zeros", make([]byte, 3*maxFrameLen), false},
		{"torn header", whole[:9], true},
		{"torn payload", whole[:headerLen+100], true},
		{"all but a byte", whole[:len(whole)-1], true},
		{"headers that announce the most", bytes.Repeat(whole[:headerLen], 500), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(tt.junk)
			if tt.pad {
				b = append(b, make([]byte, maxFrameLen)...)
			}
			b = appendFrame(b, good)
			for _, step := range []int{3, 4096} {
				got := drain(t, b, step)
				if len(got) != 1 || !sameFrame(got[0], good) {
					t.Errorf("step %d: got %d frames, want the one that follows the junk", step, len(got))
				}
			}
		})
	}
}

func TestFrameReaderLimit(t *testing.T) {
	f := appendFrame(nil, frame{typ: frameAck, epoch: 1})
	fr := newFrameReader(bytes.NewReader(append(make([]byte, 10), f...)), 10)
	if _, err := fr.next(); err != nil {
		t.Errorf("next() after 10 bytes of junk = %v, want a frame: the limit is 10", err)
	}
	fr = newFrameReader(bytes.NewReader(append(make([]byte, 11), f...)), 10)
	if _, err := fr.next(); !errors.Is(err, errGarbage) {
		t.Errorf("next() after 11 bytes of junk = %v, want errGarbage", err)
	}
}

func TestFrameReaderSurvivesReadErrors(t *testing.T) {
	b := appendFrame(nil, frame{typ: frameData, epoch: 1, payload: []byte("split by a timeout")})
	fr := newFrameReader(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(b))), -1)
	if _, err := fr.next(); !errors.Is(err, iotest.ErrTimeout) {
		t.Fatalf("next() = %v, want the reader's error", err)
	}
	f, err := fr.next()
	if err != nil || string(f.payload) != "split by a timeout" {
		t.Errorf("next() = %q, %v, want the whole frame", f.payload, err)
	}
}

func FuzzFrameReader(f *testing.F) {
	whole := appendFrame(nil, frame{typ: frameData, epoch: 9, payload: []byte("hello")})
	f.Add([]byte{}, uint16(1))
	f.Add(whole, uint16(3))
	f.Add(whole[:len(whole)-2], uint16(1000))
	f.Add([]byte("VLKVLKVLK\x03\x00\x00\x00\x00\x40\x00\x00\x00"), uint16(5))
	f.Fuzz(func(t *testing.T, junk []byte, step uint16) {
		last := frame{typ: frameHello, epoch: 0x5eed5eed}
		b := append(bytes.Clone(junk), make([]byte, maxFrameLen)...)
		b = appendFrame(b, last)
		got := drain(t, b, int(step)+1)
		if len(got) == 0 || !sameFrame(got[len(got)-1], last) {
			t.Fatalf("the frame after %d bytes of junk was not found", len(junk))
		}
		// What was found is what its wire form says.
		for _, f := range got[:len(got)-1] {
			if !bytes.Contains(b, appendFrame(nil, f)) {
				t.Fatalf("found a frame that is not in the input: %v", f)
			}
		}
	})
}

func BenchmarkFrameReader(b *testing.B) {
	payload := make([]byte, maxPayload)
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	whole := appendFrame(nil, frame{typ: frameData, epoch: 1, payload: payload})
	b.SetBytes(int64(len(whole)))
	var r stepReader
	fr := newFrameReader(&r, 0)
	for b.Loop() {
		r = stepReader{whole, 1 << 20}
		if _, err := fr.next(); err != nil {
			b.Fatal(err)
		}
	}
}
