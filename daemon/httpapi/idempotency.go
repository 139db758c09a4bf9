package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"reflect"

	"github.com/volantvm/volant/client/api"
)

// maxKept is how large a response is kept for its idempotency key, in bytes. Of
// a larger one only the effect is.
const maxKept = 256 << 10

// keptResponse is a copy of what a handler sends.
type keptResponse struct {
	body bytes.Buffer
	over bool // there was more than maxKept
}

func (k *keptResponse) write(b []byte) {
	if k.over = k.over || k.body.Len()+len(b) > maxKept; !k.over {
		k.body.Write(b)
	}
}

// serve calls the route's handler, once only for an idempotency key.
func (s *Server) serve(rt route, w *response, r *http.Request) error {
	keys := r.Header.Values(api.HeaderIdempotencyKey)
	if len(keys) == 0 || rt.method != http.MethodPost {
		return rt.handle(s, w, r)
	}
	switch {
	case len(keys) > 1:
		return api.Errorf(api.CodeInvalid, "header %s: is given twice", api.HeaderIdempotencyKey)
	case rt.status == http.StatusSwitchingProtocols:
		return api.Errorf(api.CodeUnsupported, "header %s: what this route answers with are streams, which cannot be given again", api.HeaderIdempotencyKey).
			WithHint("leave it out")
	}
	key := keys[0]
	if err := api.ValidateIdempotencyKey(key); err != nil {
		return err
	}
	digest, err := requestDigest(rt, w, r)
	if err != nil {
		return err
	}
	ctx, answer, done, err := s.svc.BeginOnce(r.Context(), key, digest)
	if err != nil {
		return err
	}
	if done {
		return s.replay(rt, w, r, answer)
	}

	w.kept = &keptResponse{}
	undone := false
	defer func() { // also after a panic, of which it is not known what it leaves
		answer := api.Answer{Status: w.status, Media: w.Header().Get("Content-Type"), Body: w.kept.body.Bytes()}
		if w.status/100 != 2 || w.kept.over || w.failed || r.Context().Err() != nil {
			answer = api.Answer{}
		}
		if err := s.svc.EndOnce(ctx, answer, undone); err != nil {
			s.log.Warn("answer not kept", keyRequest, w.Header().Get(api.HeaderRequestID), keyErr, err)
		}
	}()
	err = rt.handle(s, w, r.WithContext(ctx))
	undone = (err != nil || w.failed) && !w.accepted
	return err
}

// requestDigest says whether two requests are the same: in method, path, query
// and body, but for a body that is uploaded, which may be large. The body can be
// read afterwards.
func requestDigest(rt route, w http.ResponseWriter, r *http.Request) (string, error) {
	h := sha256.New()
	for _, part := range []string{r.Method, r.URL.EscapedPath(), r.URL.Query().Encode()} {
		io.WriteString(h, part+"\n") //nolint:errcheck // a hash takes all
	}
	if rt.upload == "" && r.ContentLength != 0 {
		data, err := readBody(w, r)
		if err != nil {
			return "", err
		}
		h.Write(data)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// replay answers with what is kept of the first such request. If its response is
// not known, but its effect is, what it waited for is waited for again.
func (s *Server) replay(rt route, w *response, r *http.Request, a api.Answer) error {
	w.Header().Set(api.HeaderReplayed, "true")
	if a.Status != 0 {
		send(w, a.Status, a.Media, a.Body)
		return nil
	}
	var kind string
	if rt.reply != nil {
		kind = reflect.TypeOf(rt.reply).Name()
	}
	switch {
	case a.Kind == "" || a.Kind != kind:
		return api.Errorf(api.CodeConflict, "a request with this idempotency key was done, but what it was answered is not kept").
			WithHint("see what became of it; use another key to do it again")
	case a.Kind != reflect.TypeFor[api.VM]().Name():
		send(w, rt.status, mediaJSON, a.Result)
		return nil
	}
	var vm api.VM
	if err := json.Unmarshal(a.Result, &vm); err != nil {
		return err
	}
	q := newQuery(r)
	wt := q.wait(api.WaitRunning, api.WaitHealthy, api.WaitPaused, api.WaitStopped)
	if q.err != nil {
		return q.err
	}
	return s.replyVM(w, r, rt.status, vm, "was changed as asked", wt)
}
