package qemu

import "time"

// rdtsc reads the processor's time stamp counter, after all earlier loads.
func rdtsc() uint64

// tscKHz measures the rate of this host's time stamp counter, in 50 ms. An
// emulated guest reads the host's counter, and cannot reliably calibrate it on
// a busy host: without being told the rate, its boot hangs (8 of 8 under load).
// The frequency in /proc/cpuinfo will not do, for it follows the processor's
// power saving.
func tscKHz() uint64 {
	t0, c0 := sample()
	time.Sleep(50 * time.Millisecond)
	t1, c1 := sample()
	return (c1 - c0) * uint64(time.Millisecond) / uint64(t1.Sub(t0))
}

// sample reads both clocks as close together as they came in 32 tries, so that
// being interrupted between them does not spoil the measurement.
func sample() (at time.Time, count uint64) {
	best := time.Hour
	for range 32 {
		before := time.Now()
		c := rdtsc()
		if gap := time.Since(before); gap < best {
			best, at, count = gap, before.Add(gap/2), c
		}
	}
	return at, count
}
