package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/volantvm/volant/client/api"
)

// Blob says whether a blob is stored (api.CodeNotFound if not), and its size.
func (c *Client) Blob(ctx context.Context, digest string) (b api.Blob, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/blobs/" + url.PathEscape(digest)}, nil, &b)
	return b, err
}

// PutBlob stores size bytes of r, which must have the digest. r is not closed.
func (c *Client) PutBlob(ctx context.Context, digest string, r io.Reader, size int64) (b api.Blob, err error) {
	req := request{
		method: http.MethodPut, path: "/blobs/" + url.PathEscape(digest), size: size, slow: true,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	}
	if size > 0 {
		req.body = io.NopCloser(r) // else package http closes it
	}
	_, err = c.call(ctx, req, nil, &b)
	return b, err
}
