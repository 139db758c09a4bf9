package oci

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volantvm/volant/client/api"
)

// configFile is what we read of an image configuration; fields that are not
// here may be anything.
type configFile struct {
	Created      *time.Time `json:"created"`
	Architecture string     `json:"architecture"`
	OS           string     `json:"os"`
	Variant      string     `json:"variant"`
	Config       struct {
		User         string
		ExposedPorts map[string]struct{}
		Env          []string
		Entrypoint   []string
		Cmd          []string
		Volumes      map[string]struct{}
		WorkingDir   string
		Labels       map[string]string
		StopSignal   string
		Healthcheck  *struct {
			Test                           []string
			Interval, Timeout, StartPeriod time.Duration
			Retries                        int
		}
	} `json:"config"`
	RootFS struct {
		DiffIDs []v1.Hash `json:"diff_ids"`
	} `json:"rootfs"`
}

// parseConfig reads an image configuration whose digest was checked; where
// names it in errors.
func parseConfig(where string, data []byte) (*configFile, error) {
	var c configFile
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, errorf(ErrInvalid, "%s: the image's configuration cannot be read: %w", where, err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" {
			return nil, errorf(ErrInvalid, "%s: diff ID %s is no sha256", where, clip(d.String()))
		}
	}
	in := &c.Config
	texts := [][]string{in.Env, in.Entrypoint, in.Cmd, {in.User, in.WorkingDir, in.StopSignal}}
	if h := in.Healthcheck; h != nil {
		texts = append(texts, h.Test)
		if h.Interval < 0 || h.Timeout < 0 || h.StartPeriod < 0 || h.Retries < 0 {
			return nil, errorf(ErrInvalid, "%s: the image's health check has a negative time or count", where)
		}
	}
	for _, list := range texts {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return nil, errorf(ErrInvalid, "%s: the image's configuration has a NUL byte in %s", where, clip(s))
			}
		}
	}
	return &c, nil
}

// platform is what the image says it is for; want where it does not say.
func (c *configFile) platform(want Platform) Platform {
	if c.OS == "" && c.Architecture == "" {
		return want
	}
	p := Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if p.OS == "" {
		p.OS = "linux"
	}
	return p.normal()
}

// image is the part of an Image that the configuration tells.
func (c *configFile) image() *Image {
	img := &Image{}
	if c.Created != nil {
		img.Created = c.Created.UTC()
	}
	in := &c.Config
	img.Config = api.ImageConfig{
		Entrypoint: in.Entrypoint, Cmd: in.Cmd, Env: in.Env,
		WorkingDir: in.WorkingDir, User: in.User, StopSignal: in.StopSignal,
		Volumes:      slices.Sorted(maps.Keys(in.Volumes)),
		ExposedPorts: slices.Sorted(maps.Keys(in.ExposedPorts)),
		Labels:       in.Labels,
	}
	if h := in.Healthcheck; h != nil && len(h.Test) > 0 {
		img.Config.Healthcheck = &api.ImageHealthcheck{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries,
		}
	}
	return img
}
