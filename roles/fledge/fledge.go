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
	parser, err := cmdline.New("fledge", "fledge packs programs and files into a bootable appliance for Volant.",
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

// noRecipeError says that there is no recipe to build.
type noRecipeError struct{ error }

func hintFor(err error) string {
	var noRecipe noRecipeError
	switch {
	case errors.As(err, &noRecipe):
		return "run fledge build in the folder of a fledge.toml, or name one with -c"
	case errors.Is(err, build.ErrStrategy):
		return `strategy = "initramfs" packs [mappings] into an appliance`
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
	Config   string `short:"c" default:"fledge.toml" placeholder:"FILE" help:"The recipe (default: fledge.toml here)."`
	Manifest string `short:"m" placeholder:"FILE" help:"The plugin's manifest in TOML, YAML or JSON, when the recipe has no [manifest] section."`
	Output   string `short:"o" placeholder:"NAME" help:"Write NAME.cpio and NAME.manifest.json (default: the manifest's name, here)."`
	Quiet    bool   `short:"q" help:"Print no progress."`
}

func (b *buildCmd) Run(ctx context.Context, c *console) error {
	p := &progress{w: c.stderr}
	o := build.Options{Recipe: b.Config, Manifest: b.Manifest, Output: b.Output, Warn: p.warn}
	if !b.Quiet {
		o.Progress = p.step
	}
	defer p.stop()
	r, err := build.Build(ctx, o)
	var missing *fs.PathError
	if errors.As(err, &missing) && missing.Path == b.Config && errors.Is(err, fs.ErrNotExist) {
		return noRecipeError{err}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s %s\n%s\n", r.Archive, r.Digest, r.ManifestPath)
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
