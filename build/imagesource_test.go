package build

import (
	"strings"
	"testing"

	"github.com/volantvm/volant/build/dockerfile"
)

func TestParseImageSource(t *testing.T) {
	for s, tt := range map[string]struct {
		want   imageSource
		plugin string
		err    string
	}{
		"nginx":                           {imageSource{"docker", "", "nginx"}, "nginx", ""},
		"docker://nginx:alpine":           {imageSource{"docker", "", "nginx:alpine"}, "nginx", ""},
		"registry.example:5000/a/b:1":     {imageSource{"docker", "", "registry.example:5000/a/b:1"}, "b", ""},
		"oci:layout":                      {imageSource{"oci", "layout", ""}, "layout", ""},
		"oci:/srv/layout:web:1.2":         {imageSource{"oci", "/srv/layout", "web:1.2"}, "web", ""},
		"oci:/srv/layout:latest":          {imageSource{"oci", "/srv/layout", "latest"}, "layout", ""}, // a tag alone
		"oci-archive:./Web_App.tar.gz":    {imageSource{"oci-archive", "./Web_App.tar.gz", ""}, "web-app", ""},
		"docker-archive:a.tar:team/web:1": {imageSource{"docker-archive", "a.tar", "team/web:1"}, "web", ""},
		"docker-daemon:web:1":             {imageSource{"docker-daemon", "", "web:1"}, "web", ""},
		"":                                {err: "is empty"},
		"oci:":                            {err: `"oci:" names no path: write oci:PATH`},
		"oci://x":                         {err: "without slashes"},
		"docker-daemon:":                  {err: "names no image"},
		"./layout":                        {err: "is a path"},
		"https://registry.example/nginx":  {err: "https://"},
		"docker-archive:a\x00b":           {err: "names no path"},
		"Nginx":                           {err: "lower case"},
		"nginx@sha256:" + strings.Repeat("z", 64): {err: "is not a digest"},
	} {
		got, err := parseImageSource(s)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("parseImageSource(%q) = %v, want %q", s, err, tt.err)
			}
			continue
		}
		if err != nil || got != tt.want || got.plugin() != tt.plugin {
			t.Errorf("parseImageSource(%q) = %+v, %v of plugin %q; want %+v of %q", s, got, err, got.plugin(), tt.want, tt.plugin)
		}
	}
	r := Recipe{dockerfile: &dockerfile.Spec{File: "/srv/Shop/Dockerfile"}}
	if got := r.imageName(); got != "shop" {
		t.Errorf("imageName = %q, want the Dockerfile's folder", got)
	}
	r.dockerfile.Context = "/srv/other"
	if got := r.imageName(); got != "other" {
		t.Errorf("imageName = %q, want the context's", got)
	}
}

func TestParseMiB(t *testing.T) {
	for s, want := range map[string]int{"1G": 1024, "512m": 512, "1025K": 2, "1048577": 2, "0": 0, "": -1, "G": -1, "1GB": -1, "-1M": -1, "+1M": -1, "1.5G": -1, "99999999999G": -1} {
		got, ok := parseMiB(s)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("parseMiB(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestParseRegistry(t *testing.T) {
	r, err := ParseRegistry([]string{"docker.io=one.example", "docker.io=two.example:5000/hub"}, []string{"two.example:5000"})
	if err != nil || strings.Join(r.Mirrors["docker.io"], " ") != "one.example two.example:5000/hub" || len(r.PlainHTTP) != 1 {
		t.Errorf("ParseRegistry = %+v, %v", r, err)
	}
	for _, bad := range []string{"docker.io", "=x", "docker.io=", "docker.io=http://x"} {
		if _, err := ParseRegistry([]string{bad}, nil); err == nil {
			t.Errorf("ParseRegistry(%q) = nil", bad)
		}
	}
}
