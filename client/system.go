package client

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/volantvm/volant/client/api"
)

// Health returns nil when the daemon answers.
func (c *Client) Health(ctx context.Context) error {
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/healthz", root: true}, nil, nil)
	return err
}

// OpenAPI returns the daemon's description of its API.
func (c *Client) OpenAPI(ctx context.Context) (doc json.RawMessage, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/openapi", root: true}, nil, &doc)
	return doc, err
}

// SystemInfo says what the daemon is and runs on.
func (c *Client) SystemInfo(ctx context.Context) (info api.SystemInfo, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/system/info"}, nil, &info)
	return info, err
}

// Doctor has the daemon look what can run VMs on its host.
func (c *Client) Doctor(ctx context.Context) (doc api.Doctor, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/system/doctor"}, nil, &doc)
	return doc, err
}

// SystemSummary counts what there is.
func (c *Client) SystemSummary(ctx context.Context) (sum api.SystemSummary, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/system/summary"}, nil, &sum)
	return sum, err
}
