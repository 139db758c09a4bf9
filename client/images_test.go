package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

func TestImages(t *testing.T) {
	ctx := t.Context()
	c := connect(t, &httpapitest.Service{})
	var steps []string
	pull := api.ImagePull{Reference: "registry.example:5000/team/app:1", Auth: &api.RegistryAuth{Username: "u"}}
	img, err := c.PullImage(ctx, pull, func(p api.ImageProgress) { steps = append(steps, p.Step) })
	if err != nil || !slices.Equal(img.References, []string{"registry.example:5000/team/app:1"}) {
		t.Fatalf("PullImage = %+v, %v", img, err)
	}
	if fmt.Sprint(steps) != "[resolve download]" {
		t.Errorf("progress %v", steps)
	}
	for _, name := range []string{"registry.example:5000/team/app:1", img.ID, img.ID[7:19]} {
		if got, err := c.Image(ctx, name); err != nil || got.ID != img.ID {
			t.Errorf("Image(%q) = %+v, %v", name, got.ID, err)
		}
	}
	loaded, err := c.LoadImage(ctx, "", api.FormInitramfs, strings.NewReader("one:1\ntwo:2\n"), nil)
	if err != nil || len(loaded) != 2 || loaded[1].Initramfs == "" {
		t.Errorf("LoadImage = %+v, %v", loaded, err)
	}
	if loaded, err = c.LoadImage(ctx, "mine:3", "", strings.NewReader("x"), nil); err != nil || loaded[0].References[0] != "docker.io/library/mine:3" {
		t.Errorf("LoadImage by name = %+v, %v", loaded, err)
	}
	if _, err := c.LoadImage(ctx, "", "", strings.NewReader(""), nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("LoadImage of nothing: %v, want invalid", err)
	}
	if list, err := c.Images(ctx, nil); err != nil || len(list) != 4 {
		t.Errorf("Images = %d, %v", len(list), err)
	}
	if out, err := c.RemoveImage(ctx, "registry.example:5000/team/app:1", false); err != nil || !slices.Equal(out.Removed, []string{img.ID}) {
		t.Errorf("RemoveImage = %+v, %v", out, err)
	}
	if _, err := c.RemoveImage(ctx, "registry.example:5000/team/app:1", true); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("RemoveImage again: %v, want not found", err)
	}
	if out, err := c.PruneImages(ctx, api.ImagePrune{All: true}); err != nil || len(out.Removed) != 3 || out.Freed == 0 {
		t.Errorf("PruneImages = %+v, %v", out, err)
	}
}

func TestPullFails(t *testing.T) {
	c := connect(t, &httpapitest.Service{Pulling: func(context.Context) error {
		return api.Errorf(api.CodeDenied, "the registry wants other credentials").WithHint("log in")
	}})
	_, err := c.PullImage(t.Context(), api.ImagePull{Reference: "x"}, nil)
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeDenied || e.Hint != "log in" {
		t.Errorf("PullImage = %+v, want the daemon's error", err)
	}

	begun := make(chan struct{})
	c = connect(t, &httpapitest.Service{Pulling: func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if _, err := c.PullImage(ctx, api.ImagePull{Reference: "x"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("PullImage that was cancelled = %v, want canceled", err)
	}
}

// A pull that takes long, and is silent, is not given up.
func TestSlowPull(t *testing.T) {
	c := connect(t, &httpapitest.Service{Pulling: func(context.Context) error {
		time.Sleep(300 * time.Millisecond) // several heartbeats of the server, which are no progress
		return nil
	}})
	n := 0
	if _, err := c.PullImage(t.Context(), api.ImagePull{Reference: "x"}, func(api.ImageProgress) { n++ }); err != nil || n != 2 {
		t.Errorf("PullImage = %v after %d pieces of progress, want 2", err, n)
	}
}

func TestVolumes(t *testing.T) {
	ctx := t.Context()
	c := connect(t, &httpapitest.Service{})
	v, err := c.CreateVolume(ctx, api.VolumeCreate{Name: "data", SizeMB: 64, Labels: map[string]string{"a": "b"}})
	if err != nil || v.SizeMB != 64 || v.Labels["a"] != "b" {
		t.Fatalf("CreateVolume = %+v, %v", v, err)
	}
	if _, err := c.CreateVolume(ctx, api.VolumeCreate{Name: "data"}); api.CodeOf(err) != api.CodeExists {
		t.Errorf("CreateVolume again: %v, want exists", err)
	}
	if got, err := c.Volume(ctx, "data"); err != nil || got.Name != "data" {
		t.Errorf("Volume = %+v, %v", got, err)
	}
	if list, err := c.Volumes(ctx, nil); err != nil || len(list) != 1 {
		t.Errorf("Volumes = %+v, %v", list, err)
	}
	if err := c.RemoveVolume(ctx, "data"); err != nil {
		t.Error(err)
	}
	if err := c.RemoveVolume(ctx, "data"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("RemoveVolume again: %v, want not found", err)
	}
}
