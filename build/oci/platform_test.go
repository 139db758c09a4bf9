package oci_test

import (
	"errors"
	"testing"

	"github.com/volantvm/volant/build/oci"
)

func TestParsePlatform(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", oci.ThisPlatform().String()},
		{"linux/amd64", "linux/amd64"},
		{"arm64", "linux/arm64"},
		{"linux/aarch64/v8", "linux/arm64"},
		{"linux/arm", "linux/arm/v7"},
		{"Linux/x86_64", "linux/amd64"},
		{"linux/amd64/v3", "linux/amd64/v3"},
	} {
		if got, err := oci.ParsePlatform(tt.in); err != nil || got.String() != tt.want {
			t.Errorf("ParsePlatform(%q) = %v, %v; want %s", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"/", "linux/", "linux/amd64/v1/x", "linux/am d64", "linux/\n"} {
		if got, err := oci.ParsePlatform(in); !errors.Is(err, oci.ErrPlatform) {
			t.Errorf("ParsePlatform(%q) = %v, %v; want ErrPlatform", in, got, err)
		}
	}
}
