package oci_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/oci"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"nginx", "docker.io/library/nginx:latest"},
		{"nginx:alpine", "docker.io/library/nginx:alpine"},
		{"docker://nginx", "docker.io/library/nginx:latest"},
		{"docker.io/library/nginx:alpine", "docker.io/library/nginx:alpine"},
		{"docker.io/nginx", "docker.io/library/nginx:latest"},
		{"index.docker.io/nginx", "docker.io/library/nginx:latest"},
		{"registry-1.docker.io/team/app", "docker.io/team/app:latest"},
		{"team/app", "docker.io/team/app:latest"},
		{"host:5000/team/app@" + digest, "host:5000/team/app@" + digest},
		{"host:5000/app:1.2@" + digest, "host:5000/app:1.2@" + digest},
		{"localhost/app", "localhost/app:latest"},
		{"HOST/app", "host/app:latest"},
		{"127.0.0.1:5000/app:V1", "127.0.0.1:5000/app:V1"},
		{"[::1]:5000/app", "[::1]:5000/app:latest"},
		{"quay.io/a/b-c/d__e.f---g:_x", "quay.io/a/b-c/d__e.f---g:_x"},
		{strings.Repeat("a", 128) + ":" + strings.Repeat("t", 128), "docker.io/library/" + strings.Repeat("a", 128) + ":" + strings.Repeat("t", 128)},
	} {
		ref, err := oci.ParseReference(tt.in)
		if err != nil || ref.String() != tt.want {
			t.Errorf("ParseReference(%q) = %q, %v; want %q", tt.in, ref.String(), err, tt.want)
		}
	}
}

func TestParseReferenceErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "is empty"},
		{"docker://", "is empty"},
		{"https://docker.io/nginx", "without it"},
		{"Nginx", "names are lower case, write nginx"},
		{"nginx:", "is not a tag"},
		{"nginx:-x", "is not a tag"},
		{"nginx:" + strings.Repeat("t", 129), "is not a tag"},
		{"nginx@sha256:12", "is not a digest"},
		{"nginx@sha512:" + strings.Repeat("0", 128), "is not a digest"},
		{"nginx@", "is not a digest"},
		{strings.Repeat("ab", 32), "is an image's ID"},
		{"a//b", "is not a name"},
		{"a/", "is not a name"},
		{"a..b", "is not a name"},
		{"a___b", "is not a name"},
		{"a.-b", "is not a name"},
		{"../etc", "is not a registry"},
		{"host.example/../etc", "is not a name"},
		{"host:0/app", "is not a registry"},
		{"host:65536/app", "is not a registry"},
		{"host:/app", "is not a registry"},
		{"-h.example/app", "is not a registry"},
		{"[::1/app", "is not a registry"},
		{"user:pw@host.example/app", "is not a digest"},
		{"host.example/a b", "is not a name"},
		{"nginx\n", "is not a name"},
		{"host.example/" + strings.Repeat("a", 255), "at most 255"},
		{strings.Repeat("a", 5000), "at most 4096"},
	} {
		ref, err := oci.ParseReference(tt.in)
		if err == nil || !errors.Is(err, oci.ErrReference) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ParseReference(%.60q) = %v, %v; want an error with %q", tt.in, ref, err, tt.want)
		}
	}
}

// FuzzParseReference: what parses has a full form that parses to the same
// reference, and that no URL or path misunderstands.
func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"nginx", "docker://nginx:alpine", "host:5000/a/b:c@" + digest, "[::1]:5000/a", "a__b/c--d.e", "A.b/c", "a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := oci.ParseReference(s)
		if err != nil {
			if !errors.Is(err, oci.ErrReference) || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("ParseReference(%q): error %q", s, err)
			}
			return
		}
		full := ref.String()
		again, err := oci.ParseReference(full)
		if err != nil || again != ref {
			t.Fatalf("ParseReference(%q) = %+v, whose full form %q gives %+v, %v", s, ref, full, again, err)
		}
		if strings.Contains(full, "..") && strings.Contains(ref.Name(), "..") || strings.ContainsAny(full, " \\?#%\n\x00") || strings.Contains(full, "//") {
			t.Fatalf("ParseReference(%q) let %q through", s, full)
		}
	})
}
