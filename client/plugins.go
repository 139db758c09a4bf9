package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volantvm/volant/client/api"
)

func pluginPath(name, rest string) string { return "/plugins/" + url.PathEscape(name) + rest }

// InstallPlugin installs a manifest whose artifacts were uploaded.
func (c *Client) InstallPlugin(ctx context.Context, m api.Manifest) (p api.Plugin, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/plugins"}, m, &p)
	return p, err
}

// Plugins lists the plugins that sel selects by their manifests' labels, by name.
func (c *Client) Plugins(ctx context.Context, sel api.Selector) ([]api.Plugin, error) {
	var list struct {
		Plugins []api.Plugin `json:"plugins"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/plugins", query: selecting(sel)}, nil, &list)
	return list.Plugins, err
}

// Plugin returns one plugin.
func (c *Client) Plugin(ctx context.Context, name string) (p api.Plugin, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: pluginPath(name, "")}, nil, &p)
	return p, err
}

// Manifest returns a plugin's manifest.
func (c *Client) Manifest(ctx context.Context, name string) (m api.Manifest, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: pluginPath(name, "/manifest")}, nil, &m)
	return m, err
}

// EnablePlugin switches a plugin on or off for new VMs.
func (c *Client) EnablePlugin(ctx context.Context, name string, enabled bool) (p api.Plugin, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: pluginPath(name, "/enabled")}, api.PluginEnable{Enabled: enabled}, &p)
	return p, err
}

// RemovePlugin removes a plugin that no VM uses.
func (c *Client) RemovePlugin(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: pluginPath(name, "")}, nil, nil)
	return err
}
