package ipam

import "math/bits"

// bitmap marks which of the numbers 0..n-1 are in use.
type bitmap struct {
	words []uint64
	n     uint64
}

func newBitmap(n uint64) bitmap {
	return bitmap{words: make([]uint64, (n+63)/64), n: n}
}

// set marks i. Numbers of n and above are ignored.
func (b bitmap) set(i uint64) {
	if i < b.n {
		b.words[i/64] |= 1 << (i % 64)
	}
}

// firstClear returns the lowest number not marked, and false if all are.
func (b bitmap) firstClear() (uint64, bool) {
	for i, w := range b.words {
		if w != ^uint64(0) {
			n := uint64(i)*64 + uint64(bits.TrailingZeros64(^w))
			return n, n < b.n
		}
	}
	return 0, false
}
