package oci

import (
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Platform is what an image runs on.
type Platform struct {
	OS           string // "linux"
	Architecture string // as Go names it: "amd64", "arm64", "arm"
	Variant      string // of arm: "v7"; else mostly empty
}

// ThisPlatform is this machine's.
func ThisPlatform() Platform { return Platform{OS: "linux", Architecture: runtime.GOARCH}.normal() }

// ParsePlatform reads "linux/arm64", "linux/arm/v7" or "arm64"; empty is this
// machine's.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return ThisPlatform(), nil
	}
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" || len(p) > 32 || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" {
			return Platform{}, errorf(ErrPlatform, "%s is not a platform, write OS/ARCHITECTURE such as linux/arm64", clip(s))
		}
	}
	if len(parts) == 1 {
		parts = append([]string{"linux"}, parts...)
	}
	if len(parts) > 3 {
		return Platform{}, errorf(ErrPlatform, "%s is not a platform, write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT", clip(s))
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p.normal(), nil
}

func platformOf(p *v1.Platform) Platform {
	return Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.normal()
}

// normal gives each platform one spelling.
func (p Platform) normal() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "i386", "i686":
		p.Architecture = "386"
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"), p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// String is "linux/amd64" or "linux/arm/v7".
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// rank says how well an image for have runs where p is wanted: 0 not at all,
// more is better. An image for a lower variant of arm or amd64 runs too.
func (p Platform) rank(have Platform) int {
	switch {
	case p.OS != have.OS || p.Architecture != have.Architecture:
		return 0
	case p.Variant == have.Variant:
		return 100
	case p.Architecture != "arm" && have.Variant == "":
		return 1
	case (p.Architecture == "arm" || p.Architecture == "amd64") && len(p.Variant) == 2 && len(have.Variant) == 2 && have.Variant < p.Variant:
		return 1 + int(have.Variant[1]-'0')
	}
	return 0
}
