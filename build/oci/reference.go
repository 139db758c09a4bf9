package oci

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// Names that stand for Docker Hub, and what a name without a registry or
// without a tag means.
const (
	dockerHub  = "docker.io"
	official   = "library/"
	defaultTag = "latest"
)

// Bounds of a reference, of the distribution specification.
const (
	maxReference  = 4096
	maxRepository = 255 // registry, slash and repository
	maxTag        = 128
)

// Reference names an image in a registry. The zero value names none.
type Reference struct {
	Registry   string // "docker.io", "registry.example:5000"
	Repository string // "library/nginx"
	Tag        string // "latest" where neither tag nor digest was given; empty beside a digest alone
	Digest     string // "sha256:" and 64 hex digits, or empty; it wins over the tag
}

// ParseReference reads a reference as people write it: "nginx",
// "nginx:alpine", "docker://nginx", "host:5000/team/app@sha256:…". The first
// part is a registry when it has a dot or a colon, or is "localhost"; else the
// image is Docker Hub's. Errors are ErrReference.
func ParseReference(s string) (Reference, error) {
	bad := func(format string, args ...any) (Reference, error) {
		return Reference{}, errorf(ErrReference, "image reference %s: "+format, append([]any{clip(s)}, args...)...)
	}
	if len(s) > maxReference {
		return bad("has %d bytes, at most %d are allowed", len(s), maxReference)
	}
	rest := strings.TrimPrefix(s, "docker://")
	if scheme, _, ok := strings.Cut(rest, "://"); ok {
		return bad("begins with %s, write REGISTRY/NAME:TAG without it", clip(scheme+"://"))
	}
	if rest == "" {
		return bad("is empty, write a name such as nginx:alpine")
	}
	var ref Reference
	rest, digest, pinned := strings.Cut(rest, "@")
	if pinned {
		if _, err := api.ParseDigest(digest); err != nil {
			return bad("%s is not a digest, write sha256: and 64 lower-case hex digits behind the @", clip(digest))
		}
		ref.Digest = digest
	}
	// A colon behind the last slash begins a tag; before it, a port.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		ref.Tag = rest[i+1:]
		rest = rest[:i]
		if !validTag(ref.Tag) {
			return bad("%s is not a tag: letters, digits, '_', '.' and '-', at most %d, the first no '.' or '-'", clip(ref.Tag), maxTag)
		}
	} else if !pinned {
		ref.Tag = defaultTag
	}
	ref.Registry, ref.Repository = dockerHub, rest
	if first, path, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(first, ".:[") || first == "localhost" || strings.ToLower(first) != first) {
		if !validRegistry(first) {
			return bad("%s is not a registry, write HOST or HOST:PORT", clip(first))
		}
		ref.Registry, ref.Repository = strings.ToLower(first), path
	}
	switch ref.Registry {
	case "index.docker.io", "registry-1.docker.io":
		ref.Registry = dockerHub
	}
	if ref.Registry == dockerHub && !strings.Contains(ref.Repository, "/") {
		if len(ref.Repository) == 64 && isHex(ref.Repository) {
			return bad("is an image's ID, write its name")
		}
		ref.Repository = official + ref.Repository
	}
	if !validRepository(ref.Repository) {
		if lower := strings.ToLower(ref.Repository); validRepository(lower) {
			return bad("names are lower case, write %s", strings.TrimPrefix(lower, official))
		}
		return bad("%s is not a name: lower-case letters and digits, with '.', '_', '__', '-' or '/' between them", clip(strings.TrimPrefix(ref.Repository, official)))
	}
	if len(ref.Registry)+1+len(ref.Repository) > maxRepository {
		return bad("registry and name have %d bytes, at most %d are allowed", len(ref.Registry)+1+len(ref.Repository), maxRepository)
	}
	return ref, nil
}

// Name is the reference without tag and digest: "docker.io/library/nginx".
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String is the full form, which parses to the same reference:
// "docker.io/library/nginx:alpine@sha256:…".
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// wanted is what a registry is asked for: the digest, else the tag.
func (r Reference) wanted() string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}

func validTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// validRepository checks parts of lower-case letters and digits, separated
// inside by one '.', one or two '_', or any number of '-'.
func validRepository(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || !isAlnum(part[0]) || !isAlnum(part[len(part)-1]) {
			return false
		}
		for i := 0; i < len(part); {
			if isAlnum(part[i]) {
				i++
				continue
			}
			from := i
			for i < len(part) && part[i] == part[from] {
				i++
			}
			switch n := i - from; {
			case !isAlnum(part[i]): // the last byte is alphanumeric, so there is one
				return false
			case part[from] == '.' && n == 1, part[from] == '_' && n <= 2, part[from] == '-':
			default:
				return false
			}
		}
	}
	return s != ""
}

// validRegistry checks HOST or HOST:PORT; HOST is a DNS name, an IPv4 address
// or an IPv6 address in brackets.
func validRegistry(s string) bool {
	host := s
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 || s[i+1] == '0' {
			return false
		}
		host = s[:i]
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		v6, ok = strings.CutSuffix(v6, "]")
		addr, err := netip.ParseAddr(v6)
		return ok && err == nil && addr.Is6() && addr.Zone() == ""
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !isAlnum(c) && (c < 'A' || c > 'Z') && c != '-' {
				return false
			}
		}
	}
	return true
}

// isAlnum reports whether c is a lower-case letter or a digit.
func isAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
