package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// EngineSockets lists the Unix sockets at which Docker or Podman may listen, in
// the order to try them: the one in $DOCKER_HOST, Docker's, the user's Podman's
// and the system's.
func EngineSockets() []string {
	var list []string
	add := func(path string) {
		if filepath.IsAbs(path) && !slices.Contains(list, path) {
			list = append(list, path)
		}
	}
	if path, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://"); ok {
		add(path)
	}
	add("/var/run/docker.sock")
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		add(filepath.Join(dir, "docker.sock")) // rootless Docker
		add(filepath.Join(dir, "podman", "podman.sock"))
	}
	add("/run/podman/podman.sock")
	return list
}

// Engine asks the Docker or Podman at one of the sockets for an image that it
// holds, as an archive for Load. name is what the engine's own user would
// write, also an image's ID. The first engine that has the image serves it; the
// caller closes the stream, which ends with ctx.
//
// Errors are ErrNotFound when no engine that answers has the image,
// ErrUnavailable when none answers, ErrUnauthorized when a socket may not be
// opened and no other has it, and ErrReference.
func Engine(ctx context.Context, sockets []string, name string) (io.ReadCloser, error) {
	name = strings.TrimPrefix(name, "docker://")
	if name == "" || len(name) > maxReference || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@[]") != "" || strings.Contains(name, "..") {
		return nil, errorf(ErrReference, "%s is not an image's name or ID", clip(name))
	}
	var errs []error
	for _, socket := range sockets {
		body, err := engine(ctx, socket, name)
		if err == nil {
			return body, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	// What an engine said counts for more than that another is not there.
	for _, kind := range []error{ErrInvalid, ErrNotFound, ErrUnauthorized} {
		for _, err := range errs {
			if errors.Is(err, kind) {
				return nil, err
			}
		}
	}
	return nil, errorf(ErrUnavailable, "no Docker or Podman is running at %s: start one, or save the image to an archive", strings.Join(sockets, ", "))
}

func engine(ctx context.Context, socket, name string) (io.ReadCloser, error) {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		DisableKeepAlives:  true,
		// No header timeout: an engine answers when it has gathered the image.
	}
	u := &url.URL{Scheme: "http", Host: "engine", Path: "/images/" + name + "/get"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errorf(ErrReference, "%s is not an image's name or ID: %w", clip(name), err)
	}
	resp, err := t.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, errorf(ErrUnauthorized, "%s may not be opened by you: join the group that owns it (docker), or become root", socket)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, errorf(ErrUnavailable, "nothing listens at %s", socket)
	case err != nil:
		return nil, errorf(ErrUnavailable, "ask the engine at %s: %w", socket, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var said struct{ Message, Cause string }
	_ = json.Unmarshal(body, &said) // the status says enough
	what := fmt.Sprintf("status %d, %s", resp.StatusCode, clip(said.Message))
	if resp.StatusCode == http.StatusNotFound {
		return nil, errorf(ErrNotFound, "%s: the engine at %s does not hold it (%s)", name, socket, what)
	}
	return nil, errorf(ErrInvalid, "%s: the engine at %s does not give it (%s)", name, socket, what)
}
