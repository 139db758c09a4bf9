package volar

import (
	"math"
	"strconv"
	"strings"
)

// parseMiB reads an amount of memory or disk and returns it in MiB, rounded up.
// A suffix b, k, m, g or t counts in powers of 1024, with or without a "b" or
// "ib" behind it, whatever the case; a plain number is MiB. Docker's plain
// numbers are bytes: none that it would take as memory is below 6,291,456, which
// as MiB is more than any VM can have, so none is silently misread.
func parseMiB(flag, s string, limit int) (int, error) {
	bad := func(why string) (int, error) {
		return 0, usagef("%s %q: %s; give an amount such as 512m or 1.5g (a plain number is MiB)", flag, s, why)
	}
	text := strings.ToLower(s)
	digits := strings.TrimRight(text, "bikmgt")
	factor := 1.0 // MiB
	switch suffix := text[len(digits):]; suffix {
	case "":
	case "b":
		factor = 1.0 / (1 << 20)
	case "k", "kb", "kib":
		factor = 1.0 / (1 << 10)
	case "m", "mb", "mib":
	case "g", "gb", "gib":
		factor = 1 << 10
	case "t", "tb", "tib":
		factor = 1 << 20
	default:
		return bad(strconv.Quote(suffix) + " is no unit")
	}
	if strings.Trim(digits, "0123456789.") != "" {
		return bad("it is not a number")
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return bad("it is not a number")
	}
	mib := math.Ceil(n * factor)
	if mib < 1 {
		return bad("it is nothing")
	}
	if mib > float64(limit) {
		return bad("it is more than " + size(int64(limit)<<20))
	}
	return int(mib), nil
}
