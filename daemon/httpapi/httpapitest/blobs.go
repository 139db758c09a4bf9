package httpapitest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"

	"github.com/volantvm/volant/client/api"
)

func (s *Service) Blob(_ context.Context, digest string) (api.Blob, error) {
	s.lock()
	defer s.mu.Unlock()
	size, ok := s.blobs[digest]
	if !ok {
		return api.Blob{}, api.Errorf(api.CodeNotFound, "there is no blob %s", digest)
	}
	return api.Blob{Digest: digest, Size: size}, nil
}

func (s *Service) PutBlob(_ context.Context, digest string, r io.Reader) (api.Blob, error) {
	s.lock()
	s.puts++
	err := s.Err["PutBlob"]
	s.mu.Unlock()
	if err != nil {
		return api.Blob{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return api.Blob{}, err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return api.Blob{}, api.Errorf(api.CodeInvalid, "the bytes have digest %s, not %s", got, digest)
	}
	s.lock()
	defer s.mu.Unlock()
	s.blobs[digest] = n
	return api.Blob{Digest: digest, Size: n}, nil
}

// Puts returns how many uploads of blobs were begun.
func (s *Service) Puts() int {
	s.lock()
	defer s.mu.Unlock()
	return s.puts
}
