// Package fledge is the command line of the image builder: it parses, calls
// package build, and prints. Results go to stdout, progress and warnings to
// stderr; with -o json stdout is one JSON document.
package fledge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/volantvm/volant/build"
	"github.com/volantvm/volant/build/dockerfile"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/roles/cmdline"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// grammar is the whole command line.
type grammar struct {
	Version kong.VersionFlag `help:"Print the version and exit."`

	Build   buildCmd   `cmd:"" help:"Build the artifact and manifest of a fledge.toml."`
	Inspect inspectCmd `cmd:"" help:"List what an archive holds, like ls -l, or say what a disk is."`
	Verify  verifyCmd  `cmd:"" help:"Check a manifest and the digest of the artifact beside it."`
	Ver     versionCmd `cmd:"" name:"version" help:"Print the version."`
}

// console is what commands print to.
type console struct {
	stdout, stderr io.Writer
	version        string
}

func (c *console) warnf(format string, args ...any) {
	fmt.Fprintf(c.stderr, "fledge: "+format+"\n", args...)
}

// Main runs fledge with args, which do not include the program's name, and
// returns its exit status: 0 done, 1 failed, 2 wrong usage. It blocks until
// done or ctx ends.
func Main(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer, version string) (status int) {
	defer cmdline.Exit(&status)
	c := &console{stdout: stdout, stderr: stderr, version: version}
	parser, err := cmdline.New("fledge", "fledge makes what Volant boots: of programs and files, of OCI images, of Dockerfiles.",
		version, &grammar{}, stdout, stderr,
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(c),
	)
	if err != nil {
		c.warnf("%v", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	cmd, err := parser.Parse(args)
	if err != nil {
		c.warnf("%v", err)
		fmt.Fprintln(stderr, "hint: fledge --help")
		return exitUsage
	}
	if err := cmd.Run(); err != nil {
		var usage usageError
		if errors.As(err, &usage) {
			c.warnf("%v", err)
			fmt.Fprintln(stderr, "hint: fledge build --help")
			return exitUsage
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			c.warnf("%s", line)
		}
		if hint := hintFor(err); hint != "" {
			fmt.Fprintln(stderr, "hint:", hint)
		}
		return exitFailed
	}
	return exitOK
}

// defaultRecipe is what is built when nothing is named.
const defaultRecipe = "fledge.toml"

// usageError is a command line that parses and means nothing.
type usageError struct{ error }

// noRecipeError says that there is no recipe to build.
type noRecipeError struct{ error }

func hintFor(err error) string {
	var noRecipe noRecipeError
	switch {
	case errors.As(err, &noRecipe):
		return "run fledge build in the folder of a fledge.toml, or name one with -c"
	case errors.Is(err, dockerfile.ErrNoBuilder):
		return "install one of " + strings.Join(dockerfile.Names(), ", ") + ": on Debian, apt-get install buildah"
	case errors.Is(err, context.Canceled):
		return "the build was interrupted; nothing was written"
	}
	return ""
}

type versionCmd struct{}

func (versionCmd) Run(c *console) error {
	_, err := fmt.Fprintln(c.stdout, "fledge", c.version)
	return err
}

type buildCmd struct {
	Dockerfile string `arg:"" optional:"" placeholder:"DOCKERFILE" help:"A Dockerfile to build the image from, without a recipe or in the place of its source."`

	Config   string `short:"c" placeholder:"FILE" help:"The recipe (default: fledge.toml here, when there is no DOCKERFILE)."`
	Manifest string `short:"m" placeholder:"FILE" help:"The plugin's manifest in TOML, YAML or JSON, when the recipe has no [manifest] section."`
	Output   string `short:"o" placeholder:"NAME" help:"Write NAME.cpio or NAME.img, and NAME.manifest.json (default: the manifest's name, here)."`
	Quiet    bool   `short:"q" help:"Print no progress."`

	Initramfs bool              `name:"output-initramfs" help:"Make an initramfs of an image, not a disk."`
	Context   string            `placeholder:"DIR" help:"Folder that the Dockerfile copies from (default: its own)."`
	Target    string            `placeholder:"STAGE" help:"Stage of the Dockerfile to build (default: the last)."`
	BuildArg  map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"Argument of the Dockerfile; may be given several times."`
	Builder   string            `placeholder:"NAME" help:"Builder of Dockerfiles: buildctl, docker, podman or buildah (default: the first of these that works)."`

	RegistryMirror []string `placeholder:"REGISTRY=MIRROR" help:"Ask MIRROR (HOST[:PORT][/PATH]) before REGISTRY; may be given several times."`
	PlainHTTP      []string `name:"plain-http" placeholder:"REGISTRY" help:"Speak to REGISTRY (HOST[:PORT]) without TLS; may be given several times."`
}

func (b *buildCmd) Run(ctx context.Context, c *console) error {
	o := build.Options{Recipe: b.Config, Manifest: b.Manifest, Output: b.Output, Initramfs: b.Initramfs, Builder: b.Builder}
	switch {
	case strings.HasSuffix(b.Dockerfile, ".toml"):
		return usageError{fmt.Errorf("%s is a recipe: give it with -c", b.Dockerfile)}
	case b.Dockerfile != "":
		o.Dockerfile = &dockerfile.Spec{File: b.Dockerfile, Context: b.Context, Target: b.Target, Args: b.BuildArg}
	case b.Context != "" || b.Target != "" || len(b.BuildArg) > 0:
		return usageError{errors.New("--context, --target and --build-arg need a DOCKERFILE; a recipe says them in [source]")}
	case b.Config == "":
		o.Recipe = defaultRecipe
	}
	var err error
	if o.Registry, err = build.ParseRegistry(b.RegistryMirror, b.PlainHTTP); err != nil {
		return usageError{err}
	}
	o.Credentials = oci.Credentials
	o.Registry.UserAgent = "fledge/" + c.version

	p := &progress{w: c.stderr}
	o.Warn = p.warn
	if !b.Quiet {
		o.Progress = p.step
	}
	defer p.stop()
	r, err := build.Build(ctx, o)
	var missing *fs.PathError
	if errors.As(err, &missing) && b.Config == "" && missing.Path == o.Recipe && errors.Is(err, fs.ErrNotExist) {
		return noRecipeError{err}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s %s\n%s\n", r.Artifact, r.Digest, r.ManifestPath)
	return err
}

type verifyCmd struct {
	Manifest string `arg:"" placeholder:"MANIFEST" help:"The manifest, beside its artifact."`
}

func (v *verifyCmd) Run(c *console) error {
	r, err := build.Verify(v.Manifest)
	if err != nil {
		return err
	}
	holds := fmt.Sprintf("%d entries", r.Entries)
	if r.Filesystem != nil {
		holds = fmt.Sprintf("%s of %d inodes", r.Filesystem.Type, r.Filesystem.Inodes)
	}
	_, err = fmt.Fprintf(c.stdout, "%s: plugin %s %s, %s, %d bytes, %s, %s: ok\n",
		v.Manifest, r.Manifest.Name, r.Manifest.Version, r.Artifact, r.Size, holds, r.Digest)
	return err
}
