package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// segmentGap is the fewest zero bytes between two segments. A legacy lz4
// stream has no end mark: the kernel ends it at the end of the image or at a
// block length of zero, so four zero bytes must follow. Everywhere else they
// are harmless, and one rule is easier to trust than two.
const segmentGap = 4

// Concat writes finished segments one behind the other so that the kernel
// unpacks all of them in order, later ones over earlier ones. A segment is a
// cpio archive, plain or compressed, or an earlier result of Concat. Each
// begins at a multiple of four bytes, behind at least four zero bytes. Empty
// segments are passed over; one that begins like no segment is refused. It
// returns the bytes written.
func Concat(dst io.Writer, segments ...io.Reader) (int64, error) {
	cw := &countWriter{w: dst}
	for i, s := range segments {
		br := bufio.NewReaderSize(s, 64<<10)
		head, err := br.Peek(6)
		if err != nil && !errors.Is(err, io.EOF) {
			return cw.n, fmt.Errorf("initramfs segment %d: %w", i, err)
		}
		if len(head) == 0 {
			continue
		}
		if string(head) != magicNewc && string(head) != magicCRC {
			_, ok, err := detect(head)
			if !ok && !errors.Is(err, ErrUnsupported) {
				return cw.n, fmt.Errorf("initramfs segment %d: %w", i, ErrFormat)
			}
		}
		if cw.n > 0 {
			var zero [segmentGap + 3]byte
			if _, err := cw.Write(zero[:segmentGap+(-cw.n&3)]); err != nil {
				return cw.n, err
			}
		}
		if _, err := io.Copy(cw, br); err != nil {
			return cw.n, fmt.Errorf("initramfs segment %d: %w", i, err)
		}
	}
	return cw.n, nil
}
