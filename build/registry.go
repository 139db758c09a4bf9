package build

import (
	"fmt"
	"strings"

	"github.com/volantvm/volant/build/oci"
)

// ParseRegistry reads how registries are spoken to as command lines give it:
// mirrors are "REGISTRY=MIRROR", of which a registry may have several, asked in
// their order; plainHTTP are names of registries and mirrors.
func ParseRegistry(mirrors, plainHTTP []string) (oci.Registry, error) {
	r := oci.Registry{PlainHTTP: plainHTTP}
	for _, m := range mirrors {
		registry, mirror, ok := strings.Cut(m, "=")
		if !ok || registry == "" || mirror == "" {
			return r, fmt.Errorf("registry mirror %q is not REGISTRY=MIRROR, such as docker.io=mirror.example:5000", clip(m))
		}
		if r.Mirrors == nil {
			r.Mirrors = make(map[string][]string)
		}
		r.Mirrors[registry] = append(r.Mirrors[registry], mirror)
	}
	return r, r.Check()
}
