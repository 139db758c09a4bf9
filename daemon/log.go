package daemon

// Keys of log records. Messages are constants; what varies is under a key.
const (
	keyVM          = "vm"
	keyName        = "name"
	keyIncarnation = "incarnation"
	keyStep        = "step"
	keyDur         = "dur"
	keyErr         = "err"
	keyDriver      = "driver"
	keyAccel       = "accel"
	keyPID         = "pid"
	keyReason      = "reason"
	keyOp          = "op"
	keyCount       = "count"
	keyPath        = "path"
	keyDigest      = "digest"
	keyImage       = "image"
	keyTap         = "tap"
	keyStatus      = "status"
)
