package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volantvm/volant/build/dockerfile"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
)

// imageBuild is what a build of an image works on.
type imageBuild struct {
	archive string // that the Dockerfile's builder wrote
	image   *oci.Image
	tree    *imageTree
}

// config is the image's; zero before there is one.
func (i *imageBuild) config() api.ImageConfig {
	if i.image == nil {
		return api.ImageConfig{}
	}
	return i.image.Config
}

// describe says in the manifest which image it was made of.
func (i *imageBuild) describe(m *api.Manifest) {
	if i.image == nil {
		return
	}
	m.ImageDigest = i.image.ID()
	// An image of a Dockerfile has a name that was made up for the build.
	if m.Image == "" && i.archive == "" && len(i.image.References) > 0 {
		m.Image = i.image.References[0]
	}
}

func (i *imageBuild) close() error {
	if i.tree == nil {
		return nil
	}
	err := i.tree.Close()
	i.tree = nil
	return err
}

// imageSteps are those of a disk or archive of an image.
func (b *builder) imageSteps() []step {
	var steps []step
	if b.recipe.dockerfile != nil {
		steps = append(steps, step{"dockerfile", b.runDockerfile})
	}
	write := step{"disk", b.writeDisk}
	if b.recipe.Strategy == StrategyInitramfs {
		write = step{"archive", b.writeImageArchive}
	}
	return append(steps, step{"image", b.getImage}, step{"flatten", b.flattenImage}, step{"mappings", b.addImageFiles}, write)
}

// runDockerfile has the image built.
func (b *builder) runDockerfile(ctx context.Context) (string, error) {
	dir, err := b.temp()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "dockerfile")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	archive, name, err := dockerfile.Build(ctx, *b.recipe.dockerfile, dir, dockerfile.Options{
		Builder: b.opts.Builder,
		Output:  func(line string) { b.progress(Step{Name: "dockerfile", Detail: line}) },
		Passed:  func(why string) { b.warn("passed over a builder: %s", why) },
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", b.recipe.dockerfile.File, err)
	}
	b.image.archive = archive
	return "built by " + name, nil
}

// getImage brings the image's layers to this machine.
func (b *builder) getImage(ctx context.Context) (string, error) {
	dir, err := b.temp()
	if err != nil {
		return "", err
	}
	opts := oci.Options{Staging: filepath.Join(dir, "layers"), Progress: b.transfer("image")}
	src := b.recipe.image
	if b.image.archive != "" {
		src = imageSource{transport: transportDockerArchive, path: b.image.archive}
	}
	if b.image.image, err = b.fetchImage(ctx, src, opts); err != nil {
		if b.image.archive != "" {
			return "", err
		}
		return "", b.recipe.src.errorf("source.image", "%w", err)
	}
	img := b.image.image
	var size int64
	for _, l := range img.Layers {
		size += l.Size
	}
	return fmt.Sprintf("%s, %s, %d layers, %s", img.ID(), img.Platform, len(img.Layers), mib(size)), nil
}

// fetchImage gets the image from where it is.
func (b *builder) fetchImage(ctx context.Context, src imageSource, opts oci.Options) (*oci.Image, error) {
	switch src.transport {
	case transportRegistry:
		ref, err := oci.ParseReference(src.name)
		if err != nil {
			return nil, err
		}
		var auth *api.RegistryAuth
		if b.opts.Credentials != nil {
			if auth, err = b.opts.Credentials(ctx, ref); err != nil {
				return nil, err
			}
		}
		return b.opts.Registry.Pull(ctx, ref, auth, opts)
	case transportDaemon:
		return b.exportImage(ctx, src.name, opts)
	}
	opts.Select = src.name
	images, err := oci.LoadPath(ctx, b.recipe.hostPath(src.path), opts)
	if err != nil {
		return nil, err
	}
	return only(images)
}

// exportImage gets an image from the daemon that runs on this machine.
func (b *builder) exportImage(ctx context.Context, name string, opts oci.Options) (*oci.Image, error) {
	r, err := oci.Engine(ctx, oci.EngineSockets(), name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if ref, err := oci.ParseReference(name); err == nil { // it may be an ID
		opts.Name = ref
	}
	images, err := oci.Load(ctx, r, opts)
	if err != nil {
		return nil, err
	}
	return only(images)
}

// only returns the image of an archive or layout that has one.
func only(images []*oci.Image) (*oci.Image, error) {
	if len(images) == 1 {
		return images[0], nil
	}
	var names []string
	for _, img := range images {
		names = append(names, img.References...)
	}
	if len(names) == 0 {
		names = []string{"no names"}
	}
	return nil, fmt.Errorf("it holds %d images: name one behind the path and a colon; it has %s", len(images), clip(strings.Join(names, ", ")))
}

func (b *builder) flattenImage(ctx context.Context) (string, error) {
	t, err := flatten(ctx, b.image.image, layers.Limits{})
	if err != nil {
		return "", err
	}
	b.image.tree = t
	return "", nil
}

// transferPause is how often a transfer's progress is told.
const transferPause = 2 * time.Second

// transfer returns a function that tells of a transfer as progress of a step.
func (b *builder) transfer(step string) func(api.ImageProgress) {
	last := time.Now()
	return func(p api.ImageProgress) {
		if p.Step != "download" || time.Since(last) < transferPause {
			return
		}
		last = time.Now()
		detail := fmt.Sprintf("%.19s %s", p.Item, mib(p.Done))
		if p.Total > 0 {
			detail += " of " + mib(p.Total)
		}
		b.progress(Step{Name: step, Detail: detail})
	}
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// writeDisk writes the image's tree as a disk.
func (b *builder) writeDisk(ctx context.Context) (string, error) {
	o := DiskOptions{}
	if f := b.recipe.Filesystem; f != nil {
		o = DiskOptions{Type: f.Type, SizeBufferMB: f.SizeBufferMB, Preallocate: f.Preallocate, CompressionLevel: f.CompressionLevel}
	}
	return b.writeImage(func(f *os.File) (Written, error) { return WriteDisk(ctx, f, b.image.tree.Tree, o) })
}

// writeImageArchive writes the image's tree as an initramfs.
func (b *builder) writeImageArchive(ctx context.Context) (string, error) {
	return b.writeImage(func(f *os.File) (Written, error) {
		return WriteInitramfs(ctx, f, b.image.tree.Tree, b.recipe.compression())
	})
}

func (b *builder) writeImage(write func(*os.File) (Written, error)) (string, error) {
	var w Written
	err := writeWhole(b.result.Artifact, func(f *os.File) (err error) {
		w, err = write(f)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("write %s: %w", b.result.Artifact, err)
	}
	b.written = append(b.written, b.result.Artifact)
	b.result.Digest, b.result.Size, b.result.Entries = w.Digest, w.Size, w.Inodes
	if w.XattrsLost > 0 {
		b.warn("%d files lost their extended attributes, such as file capabilities, which this format cannot hold", w.XattrsLost)
	}
	return fmt.Sprintf("%s, %d inodes, %s", b.result.Artifact, w.Inodes, mib(w.Size)), nil
}
