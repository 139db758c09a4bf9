package api_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/volantvm/volant/client/api"
)

func config() api.VMConfig {
	return api.VMConfig{CPUCores: 1, MemoryMB: 128, Env: map[string]string{"A": "1", "B": "2"}, Command: []string{"/app"}, Restart: &api.Restart{Policy: "always"}}
}

func TestConfigMerge(t *testing.T) {
	for _, c := range []struct {
		patch   string
		want    func(*api.VMConfig)
		changed []string
	}{
		{`{}`, func(*api.VMConfig) {}, nil},
		{``, func(*api.VMConfig) {}, nil},
		{`{"memory_mb": 256}`, func(c *api.VMConfig) { c.MemoryMB = 256 }, []string{"memory_mb"}},
		{`{"env": {"A": null, "C": "3"}}`, func(c *api.VMConfig) { c.Env = map[string]string{"B": "2", "C": "3"} }, []string{"env.A", "env.C"}},
		{`{"env": null}`, func(c *api.VMConfig) { c.Env = nil }, []string{"env.A", "env.B"}},
		{`{"command": ["/app", "-v"], "restart": null}`, func(c *api.VMConfig) { c.Command, c.Restart = []string{"/app", "-v"}, nil }, []string{"command", "restart"}},
		{`{"labels": {"x": ""}}`, func(c *api.VMConfig) { c.Labels = map[string]string{"x": ""} }, []string{"labels.x"}},
		{`{"ports": []}`, func(c *api.VMConfig) { c.Ports = []api.Port{} }, nil},
	} {
		want := config()
		c.want(&want)
		got, err := config().Merge([]byte(c.patch))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Merge(%s) = %+v, %v, want %+v", c.patch, got, err, want)
		}
		if changed := config().Changes(got); !slices.Equal(changed, c.changed) {
			t.Errorf("Merge(%s) changes %q, want %q", c.patch, changed, c.changed)
		}
	}
	for _, patch := range []string{`null`, `[]`, `1`, `{`, `{"cpu_cores": 0}`, `{"nope": 1}`, `{"env": {"A": 1}}`, `{"env": {"": "x"}}`, `{"ttl_seconds": 1e30}`} {
		if got, err := config().Merge([]byte(patch)); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("Merge(%s) = %+v, %v, want invalid", patch, got, err)
		}
	}
}

// What was merged is valid, and merging it again changes nothing.
func FuzzConfigMerge(f *testing.F) {
	for _, s := range []string{`{"memory_mb": 256}`, `{"env": {"A": null}}`, `{"restart": {"policy": "never"}}`, `{"ports": [{"port": 80}]}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, patch []byte) {
		c, err := config().Merge(patch)
		if err != nil {
			return
		}
		whole, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Merge(whole)
		if err != nil || len(c.Changes(again)) != 0 {
			t.Errorf("Merge(%s) of itself = %+v, %v, want %+v", patch, again, err, c)
		}
	})
}
