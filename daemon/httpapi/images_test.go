package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// TestImageRoutes holds the wire form of images and volumes in
// testdata/images.txt.
func TestImageRoutes(t *testing.T) {
	f := serve(t, &httpapitest.Service{ImageConfig: api.ImageConfig{
		Entrypoint: []string{"/e"}, Cmd: []string{"c"}, ExposedPorts: []string{"80/tcp"}, Env: []string{"A=b"},
	}})
	var out bytes.Buffer
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/api/v1/images", ""},
		{"GET", "/api/v1/volumes", ""},
		{"POST", "/api/v1/images/pull", `{"reference": "nginx:alpine", "auth": {"username": "u", "password": "p"}}`},
		{"POST", "/api/v1/images/pull", `{"reference": ""}`},
		{"POST", "/api/v1/images/pull", `{"refrence": "x"}`},
		{"GET", "/api/v1/images/nginx:alpine", ""},
		{"GET", "/api/v1/images/docker.io/library/nginx:alpine", ""},
		{"GET", "/api/v1/images/registry.example:5000/team/app@sha256:00", ""},
		{"GET", "/api/v1/images/", ""},
		{"GET", "/api/v1/images/a//b", ""},
		{"GET", "/api/v1/images/nginx?force=true", ""},
		{"POST", "/api/v1/vms", `{"image": "nginx:alpine", "ports": [{"port": 80}], "volumes": [{"name": "data", "target": "/data"}], "auto_remove": true}`},
		{"POST", "/api/v1/vms", `{"image": "nginx:alpine", "volumes": [{"name": "data", "target": "data"}]}`},
		{"POST", "/api/v1/vms", `{"image": "none"}`},
		{"DELETE", "/api/v1/images/nginx:alpine", ""},
		{"GET", "/api/v1/volumes", ""},
		{"POST", "/api/v1/volumes", `{"name": "more", "size_mb": 64, "labels": {"a": "b"}}`},
		{"POST", "/api/v1/volumes", `{"name": "more"}`},
		{"POST", "/api/v1/volumes", `{"name": "small", "size_mb": 1}`},
		{"GET", "/api/v1/volumes/more", ""},
		{"GET", "/api/v1/volumes/..", ""},
		{"DELETE", "/api/v1/volumes/data", ""},
		{"DELETE", "/api/v1/volumes/more", ""},
		{"DELETE", "/api/v1/vms/nginx-1?wait=deleted", ""},
		{"POST", "/api/v1/images/prune", ""},
		{"POST", "/api/v1/images/prune", `{"all": true}`},
		{"DELETE", "/api/v1/images/nginx:alpine?force=perhaps", ""},
		{"GET", "/api/v1/events?follow=false&type=IMAGE_PULLED,VOLUME_CREATED,VOLUME_REMOVED", ""},
	} {
		resp, data := f.do(t, c.method, c.path, c.body)
		fmt.Fprintf(&out, "%s %s", c.method, c.path)
		if c.body != "" {
			fmt.Fprintf(&out, " %s", c.body)
		}
		fmt.Fprintf(&out, "\n%d %s\n%s\n\n", resp.StatusCode, resp.Header.Get("Content-Type"), bytes.TrimSpace(data))
	}
	golden(t, "images.txt", out.Bytes())
	if a := f.svc.PulledWith(); a == nil || a.Password != "p" {
		t.Errorf("the pull had credentials %+v", a)
	}
	if strings.Contains(f.log.String(), `"p"`) {
		t.Error("the log holds a password")
	}
}

// An archive is read while progress is already told of it, and the images come
// in the order of the archive.
func TestLoadImage(t *testing.T) {
	f := serve(t, &httpapitest.Service{})
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://volant/api/v1/images/load?form=initramfs", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	go func() {
		io.WriteString(w, "one:1\n")
		time.Sleep(10 * time.Millisecond)
		io.WriteString(w, "two:2\n")
		w.Close()
	}()
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got []string
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		var p api.ImageProgress
		if err := json.Unmarshal(sc.Bytes(), &p); err != nil {
			t.Fatalf("%s: %v", sc.Bytes(), err)
		}
		switch {
		case p.Image != nil:
			got = append(got, p.Image.References[0], p.Image.Disk)
		case p.Error != nil:
			got = append(got, p.Error.Message)
		case p.Step != "":
			got = append(got, fmt.Sprint(p.Step, " ", p.Done))
		}
	}
	if want := "[flatten 12 docker.io/library/one:1  docker.io/library/two:2 ]"; fmt.Sprint(got) != want {
		t.Errorf("load = %v, want %s", got, want)
	}
	resp2, body := f.do(t, "POST", "/api/v1/images/load?form=tape", "")
	if resp2.StatusCode != 400 || !strings.Contains(string(body), "form") {
		t.Errorf("load in a form of a kind = %d %s", resp2.StatusCode, body)
	}
}

// What fails after there was progress is the last line; what fails before is a
// status.
func TestPullFails(t *testing.T) {
	f := serve(t, &httpapitest.Service{Pulling: func(context.Context) error {
		return api.Errorf(api.CodeInvalid, "layer 2 is cut short")
	}})
	resp, body := f.do(t, "POST", "/api/v1/images/pull", `{"reference": "x"}`)
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	var last api.ImageProgress
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || resp.StatusCode != 200 || last.Error == nil || last.Error.Code != api.CodeInvalid {
		t.Errorf("pull = %d %s, want the error as the last line", resp.StatusCode, body)
	}
	f = serve(t, &httpapitest.Service{Err: map[string]error{"PullImage": api.Errorf(api.CodeUnavailable, "no registry")}})
	if resp, body := f.do(t, "POST", "/api/v1/images/pull", `{"reference": "x"}`); resp.StatusCode != 503 {
		t.Errorf("pull = %d %s, want 503", resp.StatusCode, body)
	}
}

// The work ends when the client leaves, and when the server ends.
func TestPullEnds(t *testing.T) {
	for name, leave := range map[string]func(f *fixture, cancel func()){
		"client leaves": func(_ *fixture, cancel func()) { cancel() },
		"server ends":   func(f *fixture, _ func()) { go f.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan struct{})
			f := serve(t, &httpapitest.Service{Pulling: func(ctx context.Context) error {
				close(begun)
				<-ctx.Done()
				close(ended)
				return ctx.Err()
			}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "POST", "http://volant/api/v1/images/pull", strings.NewReader(`{"reference": "x"}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := f.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			<-begun
			leave(f, cancel)
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Fatal("the work goes on")
			}
		})
	}
}
