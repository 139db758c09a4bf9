package row

import "context"

// Claim is a request that is to take effect once, whose idempotency key and
// digest are new. It travels in the context of the store's methods: the first
// of them that changes what the request is about writes key, digest and result
// in the same transaction. It belongs to one goroutine at a time.
type Claim struct {
	Key    string
	Digest string // of the request, in hex
	Taken  bool   // the effect, and that there was one, are on disk
	Result []byte // of the effect, in JSON; set with Taken
}

type claimKey struct{}

// WithClaim returns a context that carries c.
func WithClaim(ctx context.Context, c *Claim) context.Context {
	return context.WithValue(ctx, claimKey{}, c)
}

// ClaimOf returns the claim that ctx carries, nil for none.
func ClaimOf(ctx context.Context) *Claim {
	c, _ := ctx.Value(claimKey{}).(*Claim)
	return c
}
