package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

// kernel returns the kernel of that name, the default one for "". The error is
// an *api.Error that says what to do.
func (d *Daemon) kernel(ctx context.Context, name string) (api.Kernel, error) {
	k, err := d.store.Kernel(ctx, name)
	if !errors.Is(err, row.ErrNotFound) {
		return k, err
	}
	all, err := d.store.Kernels(ctx)
	if err != nil {
		return api.Kernel{}, err
	}
	if name == "" {
		if len(all) == 0 {
			return api.Kernel{}, api.Errorf(api.CodeConflict, "no kernel was imported yet").WithHint("volar kernels import FILE [--name NAME]")
		}
		return api.Kernel{}, api.Errorf(api.CodeConflict, "no kernel is the default").WithHint("volar kernels default %s", all[0].Name)
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	e := notFound("kernel", name, names)
	if e.Hint == "" {
		e = e.WithHint("volar kernels list shows what was imported")
	}
	return api.Kernel{}, e
}

// rootfsKernel is the kernel that VMs boot whose root is a disk and who name
// none, if it was imported: it has what containers need.
const rootfsKernel = "volant"

// bootKernel returns the kernel that a VM of this manifest boots now. want is the
// one that it asks for by name, if any.
func (d *Daemon) bootKernel(ctx context.Context, want string, m *api.Manifest) (api.Kernel, error) {
	if want == "" && (m.Rootfs != nil || m.ImageDigest != "") {
		k, err := d.store.Kernel(ctx, rootfsKernel)
		if !errors.Is(err, row.ErrNotFound) {
			return k, err
		}
	}
	return d.kernel(ctx, want)
}

// Kernels returns all kernels by name.
func (d *Daemon) Kernels(ctx context.Context) ([]api.Kernel, error) {
	ks, err := d.store.Kernels(ctx)
	return ks, d.publicError("list kernels", err)
}

// ImportKernel adds a kernel whose blobs were uploaded. Doing so again changes
// nothing. Codes: invalid (not an x86-64 ELF image), not_found (blobs), exists
// (another of that name).
func (d *Daemon) ImportKernel(ctx context.Context, in api.KernelImport) (api.Kernel, error) {
	if err := api.ValidateName("kernel", in.Name); err != nil {
		return api.Kernel{}, err
	}
	if strings.TrimSpace(in.Version) == "" || len(in.Version) > 256 {
		return api.Kernel{}, api.Errorf(api.CodeInvalid, "version: give what the image says, 1 to 256 bytes")
	}
	d.blobs.RLock()
	defer d.blobs.RUnlock()
	image, err := d.Blob(ctx, in.Digest)
	if err != nil {
		return api.Kernel{}, at("digest", err)
	}
	if in.Modules != "" {
		if _, err := d.Blob(ctx, in.Modules); err != nil {
			return api.Kernel{}, at("modules", err)
		}
	}
	if err := checkELF(d.blobPath(in.Digest)); err != nil {
		return api.Kernel{}, err
	}
	k, evs, err := d.store.CreateKernel(ctx, api.Kernel{
		Name: in.Name, Version: in.Version, Digest: in.Digest, Size: image.Size, Modules: in.Modules, Default: in.Default,
	}, api.Event{Type: api.EventKernelImported, Message: in.Version})
	if err != nil {
		return api.Kernel{}, d.publicError("import kernel", err)
	}
	d.bus.notify("", len(evs) > 0)
	return k, nil
}

// at puts the field in front of an *api.Error's message.
func at(field string, err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Message = field + ": " + e.Message
	return &c
}

// checkELF refuses what no VMM here could boot: the image must be an ELF file
// for x86-64 (ELF specification 1.2, e_ident and e_machine). Its PVH note is
// checked by whoever makes the image, and by the VMM.
func checkELF(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [20]byte
	_, err = io.ReadFull(f, head[:])
	const hint = "give an uncompressed vmlinux; volar kernels import unpacks a vmlinuz by itself"
	switch {
	case err != nil || string(head[:4]) != "\x7fELF":
		return api.Errorf(api.CodeInvalid, "digest: the image is not an ELF file").WithHint(hint)
	case head[4] != 2 || head[5] != 1 || binary.LittleEndian.Uint16(head[18:]) != 62:
		return api.Errorf(api.CodeInvalid, "digest: the image is an ELF file, but not for x86-64").WithHint(hint)
	}
	return nil
}

// DefaultKernel makes the kernel the one of VMs that name none. Codes:
// not_found.
func (d *Daemon) DefaultKernel(ctx context.Context, name string) (api.Kernel, error) {
	if _, err := d.namedKernel(ctx, name); err != nil {
		return api.Kernel{}, d.publicError("default kernel", err)
	}
	k, evs, err := d.store.DefaultKernel(ctx, name)
	if err != nil {
		return api.Kernel{}, d.publicError("default kernel", err)
	}
	d.bus.notify("", len(evs) > 0)
	return k, nil
}

// namedKernel is kernel for a request that must name one.
func (d *Daemon) namedKernel(ctx context.Context, name string) (api.Kernel, error) {
	if err := api.ValidateName("kernel", name); err != nil {
		return api.Kernel{}, err
	}
	return d.kernel(ctx, name)
}

// RemoveKernel removes a kernel; its blobs go later. Codes: not_found, conflict
// (VMs use it).
func (d *Daemon) RemoveKernel(ctx context.Context, name string) error {
	if _, err := d.namedKernel(ctx, name); err != nil {
		return d.publicError("remove kernel", err)
	}
	_, err := d.store.RemoveKernel(ctx, name, api.Event{Type: api.EventKernelRemoved})
	if errors.Is(err, row.ErrInUse) {
		return api.Errorf(api.CodeConflict, "kernel %s is in use by VMs", name).WithHint("stop or delete them first")
	}
	if err != nil {
		return d.publicError("remove kernel", fmt.Errorf("%w", err))
	}
	d.bus.notify("", true)
	return nil
}
