package api

import "encoding/json"

// HeaderIdempotencyKey is a header of POST requests: a request whose key was
// used before, by the very same request, does nothing and is answered as the
// first one was; another request with that key is CodeConflict. Keys are kept
// for a day. A request that was refused has done nothing, and its key may be
// used again.
const HeaderIdempotencyKey = "Idempotency-Key"

// HeaderReplayed says, on a response, that it is that of an earlier request
// with the same key.
const HeaderReplayed = "Idempotency-Replayed"

// maxKeyLength bounds an idempotency key, in bytes.
const maxKeyLength = 255

// ValidateIdempotencyKey checks a key: 1 to 255 printable ASCII characters.
func ValidateIdempotencyKey(key string) error {
	if key == "" || len(key) > maxKeyLength {
		return Errorf(CodeInvalid, "header %s: has %d bytes; give 1 to %d", HeaderIdempotencyKey, len(key), maxKeyLength)
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return Errorf(CodeInvalid, "header %s: byte %d is not printable ASCII", HeaderIdempotencyKey, i+1)
		}
	}
	return nil
}

// Answer is what is kept of a request with an idempotency key that took effect.
// It crosses no wire.
type Answer struct {
	// Result is what came of it, in JSON, and Kind the name of that's type, such
	// as "VM"; empty for an effect that is not known as one.
	Kind   string
	Result json.RawMessage
	// Status, Media and Body are the HTTP response; Status is 0 when it is not
	// known: the daemon was killed before, or it was too large to be kept.
	Status int
	Media  string
	Body   []byte
}
