package volar

import (
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

type imagesCmd struct {
	List    imageListCmd    `cmd:"" default:"1" help:"List images (also without the word list)."`
	Pull    imagePullCmd    `cmd:"" help:"Get images from their registries."`
	Load    imageLoadCmd    `cmd:"" help:"Get images from an archive, a folder, or a running Docker or Podman."`
	Inspect imageInspectCmd `cmd:"" help:"Show one image."`
	RM      imageRMCmd      `cmd:"" name:"rm" aliases:"remove,delete" help:"Remove references, and images that lost their last."`
	Prune   imagePruneCmd   `cmd:"" help:"Remove the images that no VM uses and no reference names, or with --all every one that no VM uses."`
}

type imageListCmd struct{ selectFlags }

// Run lists images, one line for each reference.
func (cmd *imageListCmd) Run(c *cli) error {
	sel, err := cmd.selector()
	if err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	list, err := cl.Images(c.ctx, sel)
	if err != nil {
		return err
	}
	var names []string
	for _, img := range list {
		names = append(names, referencesOf(img)...)
	}
	return c.print(list, names, func(w io.Writer) {
		row(w, "REFERENCE", "ID", "SIZE", "VMS", "PULLED", "USED")
		for _, img := range list {
			for _, ref := range referencesOf(img) {
				if ref == img.ID {
					ref = "-"
				}
				row(w, familiar(ref), shortID(img.ID), size(img.Size), img.VMs, age(c.now(), img.PulledAt), age(c.now(), img.LastUsed))
			}
		}
	})
}

// referencesOf returns the names of an image: its ID when it has no other.
func referencesOf(img api.Image) []string {
	if len(img.References) == 0 {
		return []string{img.ID}
	}
	return img.References
}

// shortID is the part of a digest that people use: 12 hex digits, as docker has
// it.
func shortID(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return hex[:min(len(hex), 12)]
}

// familiar writes a reference as people do: without what Docker Hub's have in
// front, and with a short digest.
func familiar(ref string) string {
	name, digest, pinned := strings.Cut(ref, "@")
	name = strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/")
	if pinned {
		return name + "@" + shortID(digest)
	}
	return name
}

type imagePullCmd struct {
	References []string `arg:"" name:"image" help:"References, such as nginx:alpine or registry.example:5000/team/app@sha256:…."`
	formFlags
}

// formFlags say of what and into what an image is made.
type formFlags struct {
	Platform  string `help:"Platform of the image, as linux/amd64 (default: this machine's)." placeholder:"OS/ARCH"`
	Initramfs bool   `help:"As an archive that VMs boot in memory, without a disk; for small images."`
}

func (f formFlags) form() api.ImageForm {
	if f.Initramfs {
		return api.FormInitramfs
	}
	return ""
}

// Run pulls images, one after the other.
func (cmd *imagePullCmd) Run(c *cli) error {
	return inTurn(c, cmd.References, func(ref string) (api.Image, error) { return c.pull(ref, cmd.formFlags) }, imageName, imageWords)
}

func imageName(img api.Image) string { return referencesOf(img)[0] }

func imageWords(img api.Image) string {
	return imageName(img) + " " + shortID(img.ID) + ", " + size(img.Size)
}

type imageLoadCmd struct {
	Source    string `arg:"" complete:"files" help:"An archive of docker save, skopeo or buildah (.tar, .tar.gz, .tar.zst; - for standard input), an OCI layout folder, or one of oci:DIR, oci-archive:FILE, docker-archive:FILE, docker-daemon:IMAGE, podman:IMAGE."`
	Name      string `help:"Reference to give it, when the source holds one image that does not say its own." placeholder:"REFERENCE"`
	Initramfs bool   `help:"Make the image into an archive that VMs boot in memory, without a disk; for small images."`
}

// Run loads the images of one source.
func (cmd *imageLoadCmd) Run(c *cli) error {
	src, err := c.localSource(cmd.Source)
	if err != nil {
		return err
	}
	images, err := c.load(src, cmd.Name, formFlags{Initramfs: cmd.Initramfs}.form())
	if err != nil {
		return err
	}
	names := make([]string, len(images))
	for i, img := range images {
		names[i] = imageName(img)
	}
	return c.print(images, names, func(w io.Writer) {
		for _, img := range images {
			row(w, imageWords(img))
		}
	})
}

type imageInspectCmd struct {
	Reference string `arg:"" name:"image" help:"Reference or ID of the image." complete:"images"`
}

// Run shows one image.
func (cmd *imageInspectCmd) Run(c *cli) error {
	name, err := imageArgument(cmd.Reference)
	if err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	img, err := cl.Image(c.ctx, name)
	if err != nil {
		return err
	}
	return c.print(img, []string{imageName(img)}, func(w io.Writer) {
		row(w, "ID:", img.ID)
		for _, ref := range img.References {
			row(w, "Reference:", ref)
		}
		row(w, "Platform:", img.Platform)
		row(w, "Layers:", img.Layers)
		row(w, "Size:", size(img.Size))
		for _, f := range []struct{ name, digest string }{{"Disk:", img.Disk}, {"Initramfs:", img.Initramfs}} {
			if f.digest != "" {
				row(w, f.name, f.digest)
			}
		}
		imageConfigRows(w, img.Config)
		row(w, "VMs:", img.VMs)
		if !img.CreatedAt.IsZero() {
			row(w, "Created:", img.CreatedAt.Format(time.RFC3339))
		}
		row(w, "Pulled:", img.PulledAt.Format(time.RFC3339))
		row(w, "Used:", img.LastUsed.Format(time.RFC3339))
	})
}

func imageConfigRows(w io.Writer, cfg api.ImageConfig) {
	for _, r := range []struct {
		name  string
		words []string
	}{
		{"Entrypoint:", quoted(cfg.Entrypoint)}, {"Command:", quoted(cfg.Cmd)}, {"Directory:", []string{cfg.WorkingDir}}, {"User:", []string{cfg.User}},
		{"Stop signal:", []string{cfg.StopSignal}}, {"Ports:", cfg.ExposedPorts}, {"Volumes:", cfg.Volumes},
	} {
		if text := strings.Join(r.words, " "); text != "" {
			row(w, r.name, text)
		}
	}
	if h := cfg.Healthcheck; h != nil {
		row(w, "Health check:", strings.Join(quoted(h.Test), " "))
	}
	for _, e := range cfg.Env {
		row(w, "Env:", e)
	}
	for _, k := range sortedKeys(cfg.Labels) {
		row(w, "Label:", k+"="+cfg.Labels[k])
	}
}

// quoted quotes the words that a shell would split.
func quoted(words []string) []string {
	out := make([]string, len(words))
	for i, s := range words {
		if out[i] = s; s == "" || strings.ContainsAny(s, " \t\n\"'\\$;&|<>()*?#~`") {
			out[i] = strconv.Quote(s)
		}
	}
	return out
}

type imageRMCmd struct {
	References []string `arg:"" name:"image" help:"References or IDs of the images." complete:"images"`
	Force      bool     `short:"f" help:"Remove an image that is named by its ID with all its references."`
}

// Run removes references and images.
func (cmd *imageRMCmd) Run(c *cli) error {
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	total := api.ImageRemoved{Untagged: []string{}, Removed: []string{}}
	failed := manyError(nil)
	for _, ref := range cmd.References {
		name, err := imageArgument(ref)
		var r api.ImageRemoved
		if err == nil {
			r, err = cl.RemoveImage(c.ctx, name, cmd.Force)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		total.Untagged, total.Removed, total.Freed = append(total.Untagged, r.Untagged...), append(total.Removed, r.Removed...), total.Freed+r.Freed
	}
	if len(failed) < len(cmd.References) || c.output != outputTable {
		err = c.printRemoved(total)
	}
	if len(failed) > 0 {
		return failed
	}
	return err
}

type imagePruneCmd struct {
	All       bool          `help:"Also images that a reference names."`
	UnusedFor time.Duration `help:"Spare images that were used in this time, such as 24h." placeholder:"TIME"`
}

// Run removes images and says what it freed.
func (cmd *imagePruneCmd) Run(c *cli) error {
	if cmd.UnusedFor < 0 || cmd.UnusedFor%time.Second != 0 {
		return usagef("--unused-for: %v is not a number of whole seconds, such as 24h", cmd.UnusedFor)
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	r, err := cl.PruneImages(c.ctx, api.ImagePrune{All: cmd.All, UnusedForSeconds: int64(cmd.UnusedFor / time.Second)})
	if err != nil {
		return err
	}
	return c.printRemoved(r)
}

// printRemoved prints what became of images.
func (c *cli) printRemoved(r api.ImageRemoved) error {
	names := append(append([]string{}, r.Untagged...), r.Removed...)
	return c.print(r, names, func(w io.Writer) {
		for _, ref := range r.Untagged {
			row(w, familiar(ref)+" untagged")
		}
		for _, id := range r.Removed {
			row(w, shortID(id)+" removed")
		}
		row(w, size(r.Freed)+" freed")
	})
}
