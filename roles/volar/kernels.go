package volar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/volantvm/volant/build/kernel"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/initramfs"
)

type kernelsCmd struct {
	Import  kernelImportCmd  `cmd:"" help:"Import a kernel image: vmlinuz or vmlinux."`
	List    kernelListCmd    `cmd:"" help:"List kernels."`
	Default kernelDefaultCmd `cmd:"" help:"Make a kernel the one of VMs that name none."`
	Remove  kernelRemoveCmd  `cmd:"" help:"Remove a kernel that no VM uses."`
}

type kernelImportCmd struct {
	File    string `arg:"" complete:"files" help:"The kernel image, such as /boot/vmlinuz-6.1.0-56-cloud-amd64."`
	Name    string `help:"Name to give it (default: its version, dots as hyphens)." placeholder:"NAME"`
	Modules string `help:"Take the modules that a guest needs from this folder: /lib/modules/VERSION, or a root folder that holds it." placeholder:"DIR"`
	Default bool   `help:"Make it the default kernel."`
}

// Run unpacks the kernel, packs its modules, and uploads both.
func (cmd *kernelImportCmd) Run(c *cli) (err error) {
	if cmd.Name != "" {
		if err := api.ValidateName("kernel", cmd.Name); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp("", "volar-kernel-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	img, err := kernel.ImportFile(c.ctx, cmd.File, tmp)
	if err != nil {
		return kernelError(err)
	}
	in := api.KernelImport{Name: cmd.Name, Version: img.Version, Digest: img.Digest, Default: cmd.Default}
	if in.Name == "" {
		in.Name = kernelName(img.Version)
		if err := api.ValidateName("kernel", in.Name); err != nil {
			return &hintError{err, "give it a name with --name"}
		}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	if cmd.Modules != "" {
		segment := filepath.Join(tmp, "modules.cpio")
		if err := packModules(c.ctx, cmd.Modules, img.Version, segment); err != nil {
			return fmt.Errorf("modules of %s: %w", img.Version, err)
		}
		if in.Modules, err = c.upload(cl, segment, ""); err != nil {
			return err
		}
	}
	if _, err := c.upload(cl, img.Path, img.Digest); err != nil {
		return err
	}
	k, err := cl.ImportKernel(c.ctx, in)
	if err != nil {
		return err
	}
	return c.print(k, []string{k.Name}, func(w io.Writer) { row(w, fmt.Sprintf("%s %s imported%s", k.Name, k.Version, defaultWord(k))) })
}

func defaultWord(k api.Kernel) string {
	if k.Default {
		return ", the default kernel"
	}
	return ""
}

// kernelError says what to do about a kernel that cannot be used. err names the
// file.
func kernelError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "give the path of a vmlinuz or vmlinux"
	case errors.Is(err, kernel.ErrNoPVH):
		hint = "Debian's linux-image-cloud-amd64 and linux-image-amd64 have it"
	case errors.Is(err, kernel.ErrNotKernel), errors.Is(err, kernel.ErrArch), errors.Is(err, kernel.ErrCompression):
		hint = "an x86-64 vmlinuz (bzImage) or vmlinux is needed"
	}
	if hint == "" {
		return err
	}
	return &hintError{err, hint}
}

// kernelName makes a name of a version: "6.1.0-56-cloud-amd64" becomes
// "6-1-0-56-cloud-amd64".
func kernelName(version string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		}
		return '-'
	}, version)
	return strings.Trim(name[:min(len(name), api.MaxNameLength)], "-")
}

// packModules writes the initramfs segment with what an appliance's guest loads
// of the kernel version to file.
func packModules(ctx context.Context, dir, version, file string) error {
	tree, err := moduleTree(dir, version)
	if err != nil {
		return err
	}
	modules, err := kernel.SelectModules(ctx, os.DirFS(tree), version, kernel.ApplianceModules())
	if err != nil {
		return err
	}
	var a initramfs.Archive
	for _, m := range modules {
		if err := a.Add(initramfs.Entry{Name: m.Path, Mode: 0o644, Data: m.Data}); err != nil {
			return err
		}
	}
	if err := a.Add(initramfs.Entry{Name: kernel.ModuleOrderPath, Mode: 0o644, Data: kernel.ModuleOrder(modules)}); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = a.WriteTo(f)
	return errors.Join(err, f.Close())
}

// moduleTree returns the folder of the kernel's modules: dir, or one of the
// places below it where distributions put them.
func moduleTree(dir, version string) (string, error) {
	places := []string{dir, filepath.Join(dir, version), filepath.Join(dir, "lib/modules", version), filepath.Join(dir, "usr/lib/modules", version)}
	for i, p := range places {
		if st, err := os.Stat(filepath.Join(p, "kernel")); err == nil && st.IsDir() {
			return places[i], nil
		}
	}
	return "", &hintError{fmt.Errorf("there are none in %s", dir), "give /lib/modules/" + version + " or the folder that an unpacked linux-image package made"}
}

type kernelListCmd struct{}

// Run lists kernels.
func (kernelListCmd) Run(c *cli) error {
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	list, err := cl.Kernels(c.ctx)
	if err != nil {
		return err
	}
	names := make([]string, len(list))
	for i, k := range list {
		names[i] = k.Name
	}
	return c.print(list, names, func(w io.Writer) {
		row(w, "NAME", "VERSION", "DEFAULT", "MODULES", "SIZE", "AGE")
		for _, k := range list {
			row(w, k.Name, k.Version, yesNo(k.Default), yesNo(k.Modules != ""), size(k.Size), age(c.now(), k.CreatedAt))
		}
	})
}

type kernelDefaultCmd struct {
	Name string `arg:"" help:"Name of the kernel." complete:"kernels"`
}

// Run sets the default kernel.
func (cmd *kernelDefaultCmd) Run(c *cli) error {
	if err := api.ValidateName("kernel", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	k, err := cl.DefaultKernel(c.ctx, cmd.Name)
	if err != nil {
		return err
	}
	return c.print(k, []string{k.Name}, func(w io.Writer) { row(w, k.Name+" is the default kernel") })
}

type kernelRemoveCmd struct {
	Name string `arg:"" help:"Name of the kernel." complete:"kernels"`
}

// Run removes a kernel. With -o json or yaml it prints it as it was.
func (cmd *kernelRemoveCmd) Run(c *cli) error {
	if err := api.ValidateName("kernel", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	list, err := cl.Kernels(c.ctx)
	if err != nil {
		return err
	}
	if err := cl.RemoveKernel(c.ctx, cmd.Name); err != nil {
		return err
	}
	var was api.Kernel // stays empty only if it came after we looked
	for _, k := range list {
		if k.Name == cmd.Name {
			was = k
		}
	}
	return c.print(was, []string{cmd.Name}, func(w io.Writer) { row(w, cmd.Name+" removed") })
}
