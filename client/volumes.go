package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volantvm/volant/client/api"
)

// Volumes lists the volumes that sel selects, by name.
func (c *Client) Volumes(ctx context.Context, sel api.Selector) (list []api.Volume, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/volumes", query: selecting(sel)}, nil, &list)
	return list, err
}

// Volume returns one volume.
func (c *Client) Volume(ctx context.Context, name string) (v api.Volume, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/volumes/" + url.PathEscape(name)}, nil, &v)
	return v, err
}

// CreateVolume makes an empty volume.
func (c *Client) CreateVolume(ctx context.Context, in api.VolumeCreate) (v api.Volume, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/volumes"}, in, &v)
	return v, err
}

// LabelVolume sets labels of a volume, or takes them away.
func (c *Client) LabelVolume(ctx context.Context, name string, in api.VolumeChange) (v api.Volume, err error) {
	_, err = c.call(ctx, request{method: http.MethodPatch, path: "/volumes/" + url.PathEscape(name)}, in, &v)
	return v, err
}

// RemoveVolume removes a volume that no VM mounts, with what it holds.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: "/volumes/" + url.PathEscape(name)}, nil, nil)
	return err
}
