package dockerfile

import (
	"maps"
	"path/filepath"
	"slices"
)

// builder is one of the programs that can build a Dockerfile.
type builder struct {
	name   string     // of the program too
	probes [][]string // each succeeds where the builder works
	plan   func(s Spec, tag string) plan
}

// plan is what to run, in the folder where archiveName is to appear. tag is a
// name for the image while the builder's store holds it; undo removes that.
type plan struct {
	steps [][]string
	undo  []string // nil: nothing to undo
}

// Names returns the builders that are known, in the order they are asked.
func Names() []string {
	var names []string
	for _, b := range builders() {
		names = append(names, b.name)
	}
	return names
}

func builders() []builder {
	return []builder{
		{
			name: "buildctl",
			// Lists buildkitd's workers: fails without a daemon.
			probes: [][]string{{"buildctl", "debug", "workers"}},
			plan: func(s Spec, _ string) plan {
				argv := []string{
					"buildctl", "build", "--progress=plain", "--frontend=dockerfile.v0",
					"--local=context=" + s.Context, "--local=dockerfile=" + filepath.Dir(s.File),
					"--opt=filename=" + filepath.Base(s.File),
				}
				if s.Target != "" {
					argv = append(argv, "--opt=target="+s.Target)
				}
				argv = append(argv, s.args("--opt=build-arg:")...)
				return plan{steps: [][]string{append(argv, "--output=type=docker,dest="+archiveName)}}
			},
		},
		{
			name:   "docker",
			probes: [][]string{{"docker", "version", "--format={{.Server.Version}}"}, {"docker", "buildx", "version"}},
			// By way of the daemon's store: with its default store, dockerd's own
			// BuildKit cannot export an archive.
			plan: func(s Spec, tag string) plan {
				return plan{
					steps: [][]string{
						s.build([]string{"docker", "buildx", "build", "--progress=plain", "--load"}, tag),
						{"docker", "image", "save", "--output=" + archiveName, tag},
					},
					undo: []string{"docker", "image", "rm", tag},
				}
			},
		},
		{
			name:   "podman",
			probes: [][]string{{"podman", "info"}},
			plan: func(s Spec, tag string) plan {
				return plan{
					steps: [][]string{
						s.build([]string{"podman", "build", "--format=docker"}, tag),
						{"podman", "save", "--format=docker-archive", "--output=" + archiveName, tag},
					},
					undo: []string{"podman", "rmi", tag},
				}
			},
		},
		{
			name:   "buildah",
			probes: [][]string{{"buildah", "info"}},
			plan: func(s Spec, _ string) plan {
				return plan{steps: [][]string{s.build([]string{"buildah", "build", "--format=docker"}, "docker-archive:"+archiveName)}}
			},
		},
	}
}

// build completes the command line that docker, podman and buildah share.
func (s Spec) build(argv []string, tag string) []string {
	argv = append(argv, "--tag="+tag, "--file="+s.File)
	if s.Target != "" {
		argv = append(argv, "--target="+s.Target)
	}
	return append(append(argv, s.args("--build-arg=")...), s.Context)
}

// args returns the build arguments by name, each behind prefix.
func (s Spec) args(prefix string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(s.Args)) {
		out = append(out, prefix+k+"="+s.Args[k])
	}
	return out
}
