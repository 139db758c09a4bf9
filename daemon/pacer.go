package daemon

import "time"

// pacer bounds a rate in the long run: a bucket of burst that fills at rate, both
// in the same unit. It begins full. It is not safe for concurrent use.
type pacer struct {
	rate, burst float64 // rate is per second

	spent float64 // of the bucket
	at    time.Time
}

// spend takes n out of the bucket and returns how long to wait before going on.
func (p *pacer) spend(now time.Time, n int) time.Duration {
	if !p.at.IsZero() {
		p.spent = max(0, p.spent-now.Sub(p.at).Seconds()*p.rate)
	}
	p.at = now
	p.spent += float64(n)
	if p.spent <= p.burst {
		return 0
	}
	return time.Duration((p.spent - p.burst) / p.rate * float64(time.Second))
}
