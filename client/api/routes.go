package api

// Prefix is what every versioned route begins with.
const Prefix = "/api/v1"

// DefaultSocket is where volantd listens unless told otherwise. Permission to
// open it is permission to use the API.
const DefaultSocket = "/run/volant/volantd.sock"

// Header names.
const (
	HeaderVersion    = "Volant-Version"    // on every response: the daemon's version
	HeaderRequestID  = "Volant-Request-Id" // on every response; also in the daemon's log
	HeaderTotalCount = "X-Total-Count"     // on lists: how many matched before limit and offset
)
