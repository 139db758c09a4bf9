package httpapi

import (
	"context"
	"io"
	"net/http"

	"github.com/volantvm/volant/client/api"
)

// Service is what the HTTP layer needs of the daemon. A name is a VM's name or
// id. Errors are *api.Error; any other is a fault of the daemon. Calls that
// change a VM return once the wish is durable: the daemon carries it out in the
// background, and WaitVM waits for it.
type Service interface {
	CreateVM(ctx context.Context, req api.VMCreate) (api.VM, error)
	VM(ctx context.Context, name string) (api.VM, error)
	// VMs also returns how many VMs match f without its limit and offset.
	VMs(ctx context.Context, f api.VMFilter) (vms []api.VM, total int, err error)
	StartVM(ctx context.Context, name string) (api.VM, error)
	StopVM(ctx context.Context, name string, how api.VMStop) (api.VM, error)
	RestartVM(ctx context.Context, name string, how api.VMStop) (api.VM, error)
	PauseVM(ctx context.Context, name string) (api.VM, error)
	ResumeVM(ctx context.Context, name string) (api.VM, error)
	// ScaleVM returns once a machine that is scaled while it runs has its new size.
	ScaleVM(ctx context.Context, name string, in api.VMScale) (api.VM, error)
	DeleteVM(ctx context.Context, name string, how api.VMStop) error
	// VMConfig returns a version of a VM's configuration, the newest for 0;
	// VMConfigHistory the newest ones first, all for a limit of 0. SetVMConfig
	// makes a further one: CodeConflict when in.Expect is not the present one.
	VMConfig(ctx context.Context, name string, version int) (api.VMConfigVersion, error)
	VMConfigHistory(ctx context.Context, name string, limit int) ([]api.VMConfigVersion, error)
	SetVMConfig(ctx context.Context, name string, in api.VMConfigChange) (api.VMConfigVersion, error)
	RenameVM(ctx context.Context, name, to string) (api.VM, error)
	// CheckWait refuses what WaitVM could only refuse after the VM was told to
	// start, restart or become another size.
	CheckWait(ctx context.Context, name string, what api.VMWait) error
	// WaitVM blocks until the VM has reached what, or can no longer reach it by
	// itself (CodeConflict, with the reason), or ctx ends (CodeTimeout). One that
	// was removed because it had ended has stopped: it is returned for a while.
	WaitVM(ctx context.Context, name string, what api.VMWait) (api.VM, error)
	// Stats yields a sample of what VMs use, with q.Follow again and again. A VM
	// that does not answer does not keep the others' waiting.
	Stats(ctx context.Context, q api.StatsQuery, yield func(api.StatsSample) error) error
	VMTimeline(ctx context.Context, name string) (api.Timeline, error)
	// VMLogs yields lines in batches, each valid until yield returns, until there
	// are no more; with q.Follow until the VM has ended for good.
	VMLogs(ctx context.Context, name string, q api.LogQuery, yield func([]api.LogEntry) error) error
	// VMWorkload proxies HTTP, upgrades included, to the workload's base URL
	// through the agent channel.
	VMWorkload(ctx context.Context, name string) (http.Handler, error)
	// VMExec runs a command in a VM, VMAttach connects with its workload, which
	// it waits for when the VM is on its way. The connection speaks
	// stdio.Protocol; the caller closes it. ctx bounds the asking only.
	VMExec(ctx context.Context, name string, e api.Exec) (io.ReadWriteCloser, error)
	VMAttach(ctx context.Context, name string) (io.ReadWriteCloser, error)
	// VMStat describes a file in a VM. VMCopyFrom returns an archive of it, which
	// the caller closes; an *api.Error of its Read came after an archive that
	// nobody takes for whole, any other may have left one that looks like it.
	// VMCopyTo unpacks an archive into a directory. ctx bounds all of it.
	VMStat(ctx context.Context, name, path string, follow bool) (api.File, error)
	VMCopyFrom(ctx context.Context, name, path string, follow bool) (io.ReadCloser, error)
	VMCopyTo(ctx context.Context, name, path string, keep bool, r io.Reader) error

	// InstallPlugin needs the artifacts' blobs to be there.
	InstallPlugin(ctx context.Context, m api.Manifest) (api.Plugin, error)
	Plugins(ctx context.Context) ([]api.Plugin, error)
	Plugin(ctx context.Context, name string) (api.Plugin, error)
	EnablePlugin(ctx context.Context, name string, enabled bool) (api.Plugin, error)
	RemovePlugin(ctx context.Context, name string) error // CodeConflict while VMs use it

	Blob(ctx context.Context, digest string) (api.Blob, error)
	// PutBlob reads r to its end, verifies the digest, and leaves nothing behind
	// on error.
	PutBlob(ctx context.Context, digest string, r io.Reader) (api.Blob, error)

	Images(ctx context.Context) ([]api.Image, error)
	// Image finds one by reference, ID, or the first digits of its ID.
	Image(ctx context.Context, name string) (api.Image, error)
	// PullImage calls progress meanwhile, and ends when ctx does.
	PullImage(ctx context.Context, pull api.ImagePull, progress func(api.ImageProgress)) (api.Image, error)
	// LoadImage reads an archive from r. On error it may return the images that
	// were there before.
	LoadImage(ctx context.Context, r io.Reader, name string, form api.ImageForm, progress func(api.ImageProgress)) ([]api.Image, error)
	RemoveImage(ctx context.Context, name string, force bool) (api.ImageRemoved, error) // CodeConflict while VMs use it
	PruneImages(ctx context.Context, in api.ImagePrune) (api.ImageRemoved, error)

	Volumes(ctx context.Context) ([]api.Volume, error)
	Volume(ctx context.Context, name string) (api.Volume, error)
	CreateVolume(ctx context.Context, in api.VolumeCreate) (api.Volume, error)
	LabelVolume(ctx context.Context, name string, in api.VolumeChange) (api.Volume, error)
	RemoveVolume(ctx context.Context, name string) error // CodeConflict while VMs mount it

	Kernels(ctx context.Context) ([]api.Kernel, error)
	ImportKernel(ctx context.Context, in api.KernelImport) (api.Kernel, error)
	DefaultKernel(ctx context.Context, name string) (api.Kernel, error)
	RemoveKernel(ctx context.Context, name string) error

	// BeginOnce begins a request with an idempotency key. If the request with that
	// digest took effect before, it returns what is kept of it, and true. Otherwise
	// the request is done with the context returned, and EndOnce called: undone
	// says that it may be done again, a is how it was answered, if that is known.
	BeginOnce(ctx context.Context, key, digest string) (context.Context, api.Answer, bool, error)
	EndOnce(ctx context.Context, a api.Answer, undone bool) error

	// Events yields the journal after f.After. With follow it then yields what
	// happens, until ctx ends or yield fails.
	Events(ctx context.Context, f api.EventFilter, follow bool, yield func(api.Event) error) error
	SystemInfo(ctx context.Context) (api.SystemInfo, error)
	Doctor(ctx context.Context) (api.Doctor, error)
	SystemSummary(ctx context.Context) (api.SystemSummary, error)
}
