package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volantvm/volant/client/api"
)

// Kernels lists kernels by name.
func (c *Client) Kernels(ctx context.Context) (list []api.Kernel, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/kernels"}, nil, &list)
	return list, err
}

// ImportKernel adds a kernel whose blobs were uploaded.
func (c *Client) ImportKernel(ctx context.Context, in api.KernelImport) (k api.Kernel, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/kernels"}, in, &k)
	return k, err
}

// DefaultKernel makes a kernel the one of VMs that name none.
func (c *Client) DefaultKernel(ctx context.Context, name string) (k api.Kernel, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/kernels/" + url.PathEscape(name) + "/default"}, nil, &k)
	return k, err
}

// RemoveKernel removes a kernel that no VM uses.
func (c *Client) RemoveKernel(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: "/kernels/" + url.PathEscape(name)}, nil, nil)
	return err
}
