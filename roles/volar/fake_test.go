package volar

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// fakeDaemon is the scripted daemon of package httpapitest with images, volumes
// and workloads to attach to. It serves their routes itself; everything else is
// the real server's.
type fakeDaemon struct {
	*httpapitest.Service
	server http.Handler

	mu       sync.Mutex // guards the rest
	images   []api.Image
	pulls    []api.ImagePull
	volumes  []api.Volume
	requests []api.VMCreate
	made     map[string]api.VM // by ID: what a VM has beyond httpapitest's
	signals  chan string       // that workloads were sent
}

func newFakeDaemon(svc *httpapitest.Service) *fakeDaemon {
	d := &fakeDaemon{Service: svc, made: map[string]api.VM{}, signals: make(chan string, 16)}
	svc.Session = d.session
	d.server = httpapi.New(httpapi.Config{Service: d, Version: "1.2.3"})
	return d
}

// oclock is the fake's time of images and volumes, an hour before noon.
func oclock() time.Time { return noon().Add(-time.Hour) }

// registryImage returns what a registry has under a reference.
func registryImage(ref string) (api.Image, *api.Error) {
	cfg := api.ImageConfig{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}
	digit := "a"
	switch ref {
	case "docker.io/library/alpine:latest":
	case "docker.io/library/nginx:alpine":
		digit = "b"
		cfg = api.ImageConfig{
			Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}, WorkingDir: "/srv", User: "nginx", StopSignal: "SIGQUIT",
			ExposedPorts: []string{"443/tcp", "80/tcp"}, Volumes: []string{"/var/cache"}, Labels: map[string]string{"maintainer": "somebody"},
			Healthcheck: &api.ImageHealthcheck{Test: []string{"CMD-SHELL", "curl -f localhost"}},
		}
	case "docker.io/nothing-uses/this:1":
		digit = "c"
	case "private.example/app:1":
		return api.Image{}, api.Errorf(api.CodeDenied, "private.example refuses access to app:1").WithHint("log in with docker login private.example")
	default:
		return api.Image{}, api.Errorf(api.CodeNotFound, "there is no image %s", ref)
	}
	return api.Image{
		ID: "sha256:" + strings.Repeat(digit, 64), References: []string{ref}, Platform: "linux/amd64", Layers: 3, Size: 3 << 20, Config: cfg,
		CreatedAt: oclock().AddDate(0, -1, 0), PulledAt: oclock(), LastUsed: oclock(),
	}, nil
}

func (d *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /api/v1/images": d.listImages, "POST /api/v1/images/pull": d.pullImage, "POST /api/v1/images/load": d.loadImage, "POST /api/v1/images/prune": d.pruneImages,
		"GET /api/v1/images/{ref...}": d.getImage, "DELETE /api/v1/images/{ref...}": d.removeImage,
		"GET /api/v1/volumes": d.listVolumes, "POST /api/v1/volumes": d.createVolume, "GET /api/v1/volumes/{name}": d.getVolume, "DELETE /api/v1/volumes/{name}": d.removeVolume,
		"PATCH /api/v1/volumes/{name}": d.labelVolume,
		"POST /api/v1/vms":             d.nameVM,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(api.HeaderVersion, "1.2.3")
			if err := h(w, r); err != nil {
				e, ok := err.(*api.Error)
				if !ok {
					e = api.Errorf(api.CodeInternal, "%v", err)
				}
				w.WriteHeader(map[api.Code]int{api.CodeNotFound: 404, api.CodeConflict: 409, api.CodeExists: 409, api.CodeInvalid: 400}[e.Code])
				_ = json.NewEncoder(w).Encode(api.ErrorBody{Error: *e})
			}
		})
	}
	mux.Handle("/", d.server)
	mux.ServeHTTP(w, r)
}

// nameVM gives a VM that comes without a name one made of its image's.
func (d *fakeDaemon) nameVM(w http.ResponseWriter, r *http.Request) error {
	var req api.VMCreate
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return err
	}
	for n := 1; req.Name == ""; n++ {
		name := fmt.Sprintf("%s-%d", api.ImageName(req.Image), n)
		if _, err := d.Service.VM(r.Context(), name); err != nil {
			req.Name = name
		}
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	d.server.ServeHTTP(w, r)
	return nil
}

// imageLocked finds an image by reference or ID.
func (d *fakeDaemon) imageLocked(name string) (int, error) {
	full := name
	if ref, err := oci.ParseReference(name); err == nil {
		full = ref.String()
	}
	i := slices.IndexFunc(d.images, func(img api.Image) bool {
		return slices.Contains(img.References, full) || strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), strings.TrimPrefix(name, "sha256:"))
	})
	if i < 0 {
		return 0, api.Errorf(api.CodeNotFound, "there is no image %s", name).WithHint("volar images list shows what there is")
	}
	return i, nil
}

// selected returns those of list that the request selects.
func selected[T any](r *http.Request, list []T, labels func(T) map[string]string) ([]T, error) {
	s, err := api.ParseSelector(r.URL.Query().Get("selector"))
	out := []T{}
	for _, one := range list {
		if s.Matches(labels(one)) {
			out = append(out, one)
		}
	}
	return out, err
}

func (d *fakeDaemon) listImages(w http.ResponseWriter, r *http.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	images, err := selected(r, d.images, func(img api.Image) map[string]string { return img.Config.Labels })
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(images)
}

func (d *fakeDaemon) getImage(w http.ResponseWriter, r *http.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.imageLocked(r.PathValue("ref"))
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(d.images[i])
}

// keep stores an image in a form and answers with it.
func (d *fakeDaemon) keep(w io.Writer, img api.Image, form api.ImageForm) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.IndexFunc(d.images, func(o api.Image) bool { return o.ID == img.ID }); i >= 0 {
		img.Disk, img.Initramfs = d.images[i].Disk, d.images[i].Initramfs
		d.images = slices.Delete(d.images, i, i+1)
	}
	if form == api.FormInitramfs {
		img.Initramfs = img.ID
	} else {
		img.Disk = img.ID
	}
	d.images = append(d.images, img)
	return json.NewEncoder(w).Encode(api.ImageProgress{Image: &img})
}

func (d *fakeDaemon) pullImage(w http.ResponseWriter, r *http.Request) error {
	var in api.ImagePull
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return err
	}
	d.mu.Lock()
	d.pulls = append(d.pulls, in)
	d.mu.Unlock()
	for _, p := range []api.ImageProgress{{Step: "resolve"}, {Step: "download", Item: "sha256:c", Done: 1, Total: 2}} {
		if err := json.NewEncoder(w).Encode(p); err != nil {
			return err
		}
	}
	img, failed := registryImage(in.Reference)
	if failed != nil {
		return json.NewEncoder(w).Encode(api.ImageProgress{Error: failed})
	}
	img.Platform = cmp.Or(in.Platform, img.Platform)
	return d.keep(w, img, in.Form)
}

func (d *fakeDaemon) loadImage(w http.ResponseWriter, r *http.Request) error {
	dir, err := os.MkdirTemp("", "volar-test-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	opts := oci.Options{Staging: dir}
	if name := r.URL.Query().Get("name"); name != "" {
		if opts.Name, err = oci.ParseReference(name); err != nil {
			return api.Errorf(api.CodeInvalid, "%v", err)
		}
	}
	loaded, err := oci.Load(r.Context(), r.Body, opts)
	if err != nil {
		return json.NewEncoder(w).Encode(api.ImageProgress{Error: api.Errorf(api.CodeInvalid, "%v", err)})
	}
	for _, l := range loaded {
		img := api.Image{
			ID: l.ID(), References: l.References, Platform: l.Platform.String(), Layers: len(l.Layers), Size: 1 << 20, Config: l.Config,
			PulledAt: oclock(), LastUsed: oclock(),
		}
		if err := d.keep(w, img, api.ImageForm(r.URL.Query().Get("form"))); err != nil {
			return err
		}
	}
	return nil
}

func (d *fakeDaemon) removeImage(w http.ResponseWriter, r *http.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.imageLocked(r.PathValue("ref"))
	if err != nil {
		return err
	}
	img := d.images[i]
	for _, vm := range d.made {
		if vm.ImageID == img.ID {
			return api.Errorf(api.CodeConflict, "image %s is used by VMs", img.ID).WithHint("delete them first")
		}
	}
	d.images = slices.Delete(d.images, i, i+1)
	return json.NewEncoder(w).Encode(api.ImageRemoved{Untagged: img.References, Removed: []string{img.ID}, Freed: img.Size})
}

func (d *fakeDaemon) pruneImages(w http.ResponseWriter, r *http.Request) error {
	var in api.ImagePrune
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := api.ImageRemoved{Untagged: []string{}, Removed: []string{}}
	for _, img := range d.images {
		if in.UnusedForSeconds == 0 && (in.All || len(img.References) == 0) {
			out.Untagged, out.Removed, out.Freed = append(out.Untagged, img.References...), append(out.Removed, img.ID), out.Freed+img.Size
		}
	}
	d.images = slices.DeleteFunc(d.images, func(img api.Image) bool { return slices.Contains(out.Removed, img.ID) })
	return json.NewEncoder(w).Encode(out)
}

func (d *fakeDaemon) volumeLocked(name string) (int, error) {
	i := slices.IndexFunc(d.volumes, func(v api.Volume) bool { return v.Name == name })
	if i < 0 {
		return 0, api.Errorf(api.CodeNotFound, "there is no volume %q", name)
	}
	return i, nil
}

func (d *fakeDaemon) listVolumes(w http.ResponseWriter, r *http.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	volumes, err := selected(r, d.volumes, func(v api.Volume) map[string]string { return v.Labels })
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(volumes)
}

func (d *fakeDaemon) createVolume(w http.ResponseWriter, r *http.Request) error {
	var in api.VolumeCreate
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.volumeLocked(in.Name); err == nil {
		return api.Errorf(api.CodeExists, "there is a volume %q already", in.Name)
	}
	v := api.Volume{Name: in.Name, SizeMB: cmp.Or(in.SizeMB, api.DefaultVolumeMB), Used: 64 << 10, Labels: in.Labels, CreatedAt: oclock()}
	d.volumes = append(d.volumes, v)
	return json.NewEncoder(w).Encode(v)
}

func (d *fakeDaemon) getVolume(w http.ResponseWriter, r *http.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.volumeLocked(r.PathValue("name"))
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(d.volumes[i])
}

func (d *fakeDaemon) labelVolume(w http.ResponseWriter, r *http.Request) error {
	var in api.VolumeChange
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.volumeLocked(r.PathValue("name"))
	if err != nil {
		return err
	}
	v := &d.volumes[i]
	v.Labels = maps.Clone(v.Labels)
	for key, value := range in.Labels {
		if value == nil {
			delete(v.Labels, key)
			continue
		}
		v.Labels[key] = *value
	}
	return json.NewEncoder(w).Encode(*v)
}

func (d *fakeDaemon) removeVolume(w http.ResponseWriter, r *http.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.volumeLocked(r.PathValue("name"))
	if err != nil {
		return err
	}
	if v := d.volumes[i]; len(v.VMs) > 0 {
		return api.Errorf(api.CodeConflict, "volume %s is mounted by VM %s", v.Name, v.VMs[0]).WithHint("delete the VM first")
	}
	d.volumes = slices.Delete(d.volumes, i, i+1)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// CreateVM makes VMs of images too: httpapitest knows plugins only.
func (d *fakeDaemon) CreateVM(ctx context.Context, req api.VMCreate) (api.VM, error) {
	if err := req.Validate(); err != nil {
		return api.VM{}, err
	}
	extra := api.VM{Ports: slices.Clone(req.Ports), TTY: req.TTY, Stdin: req.Stdin, AutoRemove: req.AutoRemove}
	d.mu.Lock()
	d.requests = append(d.requests, req)
	for i := range extra.Ports {
		if p := &extra.Ports[i]; p.HostPort == 0 {
			p.HostPort = api.FirstHostPort + i
		}
	}
	if req.Image != "" {
		i, err := d.imageLocked(req.Image)
		if err != nil {
			d.mu.Unlock()
			return api.VM{}, err
		}
		extra.Image, extra.ImageID = req.Image, d.images[i].ID
		req.Plugin, req.Image, req.Form = "of-image", "", ""
	}
	for _, v := range req.Volumes {
		if _, err := d.volumeLocked(v.Name); err != nil && v.Name != "" {
			d.volumes = append(d.volumes, api.Volume{Name: v.Name, SizeMB: cmp.Or(v.SizeMB, api.DefaultVolumeMB), VMs: []string{req.Name}, Running: req.Name, CreatedAt: oclock()})
		}
	}
	d.mu.Unlock()
	if req.Plugin == "of-image" {
		m := api.Manifest{Name: "of-image", Version: "1", Resources: api.Resources{CPUCores: 1, MemoryMB: 256}}
		if _, err := d.InstallPlugin(ctx, m); err != nil {
			return api.VM{}, err
		}
	}
	vm, err := d.Service.CreateVM(ctx, req)
	if err != nil {
		return vm, err
	}
	d.mu.Lock()
	d.made[vm.ID] = extra
	d.mu.Unlock()
	return d.dress(vm), nil
}

// dress adds to a VM what httpapitest does not know of it.
func (d *fakeDaemon) dress(vm api.VM) api.VM {
	d.mu.Lock()
	defer d.mu.Unlock()
	extra := d.made[vm.ID]
	if extra.Image != "" {
		vm.Plugin = ""
	}
	vm.Image, vm.ImageID, vm.Ports, vm.TTY, vm.Stdin, vm.AutoRemove = extra.Image, extra.ImageID, extra.Ports, extra.TTY, extra.Stdin, extra.AutoRemove
	if vm.Status != api.VMRunning {
		vm.Exit = extra.Exit
	}
	return vm
}

func (d *fakeDaemon) VM(ctx context.Context, name string) (api.VM, error) {
	vm, err := d.Service.VM(ctx, name)
	return d.dress(vm), err
}

func (d *fakeDaemon) VMs(ctx context.Context, f api.VMFilter) ([]api.VM, int, error) {
	vms, total, err := d.Service.VMs(ctx, f)
	for i, vm := range vms {
		vms[i] = d.dress(vm)
	}
	return vms, total, err
}

func (d *fakeDaemon) WaitVM(ctx context.Context, name string, what api.VMWait) (api.VM, error) {
	vm, err := d.Service.WaitVM(ctx, name, what)
	return d.dress(vm), err
}

// StopVM ends what is attached too, and removes VMs that are to be removed.
func (d *fakeDaemon) StopVM(ctx context.Context, name string, how api.VMStop) (api.VM, error) {
	vm, err := d.Service.StopVM(ctx, name, how)
	if how.Force && err == nil {
		select {
		case d.signals <- "KILL":
		default:
		}
	}
	if vm = d.dress(vm); err == nil && vm.AutoRemove {
		return vm, d.DeleteVM(ctx, name, how)
	}
	return vm, err
}

// request returns the last request for a VM.
func (d *fakeDaemon) request() api.VMCreate {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.requests) == 0 {
		return api.VMCreate{}
	}
	req := d.requests[len(d.requests)-1]
	req.Volumes = slices.Clone(req.Volumes)
	return req
}

// VMAttach waits for a VM that is on its way, as the daemon does.
func (d *fakeDaemon) VMAttach(ctx context.Context, name string) (io.ReadWriteCloser, error) {
	vm, err := d.VM(ctx, name)
	if err != nil || vm.Image == "" {
		return d.Service.VMAttach(ctx, name)
	}
	if vm, err = d.WaitVM(ctx, name, api.WaitRunning); err != nil {
		return nil, err
	}
	if d.command()[0] == "gone" {
		d.finish(vm.Name, 7)
	}
	return d.Service.VMAttach(ctx, name)
}

// command is that of the last request.
func (d *fakeDaemon) command() []string {
	return append(slices.Clone(*cmp.Or(d.request().Command, &[]string{})), "", "", "")
}

// session runs the command of the last request as if it were the VM's workload:
// "echo WORDS", "cat", "fail TEXT STATUS", "wait" for a signal, "missing" for a
// program that is not there, "vanish" for a connection that breaks, "gone" for
// a workload that has ended before.
func (d *fakeDaemon) session(name string, e *api.Exec, in *stdio.Reader, out *stdio.Writer) {
	if vm, err := d.VM(context.Background(), name); e != nil || err != nil || vm.Image == "" {
		httpapitest.DefaultSession(name, e, in, out)
		return
	}
	exit := d.workload(d.command(), in, out)
	if exit == nil {
		return
	}
	d.finish(name, exit.Code)
	_ = out.Write(stdio.Frame{Type: stdio.Exit, Exit: *exit}) // the client may have gone
}

// finish ends a VM as its workload's end does.
func (d *fakeDaemon) finish(name string, code int) {
	vm, err := d.Service.VM(context.Background(), name)
	if err != nil {
		return
	}
	d.mu.Lock()
	extra := d.made[vm.ID]
	extra.Exit = &api.VMExit{Code: code, Time: oclock()}
	d.made[vm.ID] = extra
	d.mu.Unlock()
	_, _ = d.StopVM(context.Background(), vm.ID, api.VMStop{})
}

func (d *fakeDaemon) workload(command []string, in *stdio.Reader, out *stdio.Writer) *stdio.ExitStatus {
	stdout, stderr := out.Stream(stdio.Stdout), out.Stream(stdio.Stderr)
	switch command[0] {
	case "echo":
		fmt.Fprintln(stdout, strings.TrimSpace(strings.Join(command[1:], " ")))
	case "fail":
		fmt.Fprintln(stderr, command[1])
		code, _ := strconv.Atoi(command[2])
		return &stdio.ExitStatus{Code: code}
	case "vanish":
		return nil
	case "missing":
		return &stdio.ExitStatus{Code: stdio.CodeNotFound, Error: "missing: no such program in PATH"}
	case "cat", "wait":
		frames, done := make(chan stdio.Frame), make(chan struct{})
		defer close(done)
		go func() {
			defer close(frames)
			for {
				f, err := in.Next()
				if err != nil {
					return
				}
				f.Data = slices.Clone(f.Data)
				select {
				case frames <- f:
				case <-done:
					return
				}
			}
		}()
		if command[0] == "wait" {
			fmt.Fprintln(stdout, "waiting")
		}
		for {
			select {
			case sig := <-d.signals:
				return &stdio.ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: "SIG" + sig}
			case f, open := <-frames:
				switch {
				case !open: // who was attached has left
					return nil
				case f.Type == stdio.StdinClose && command[0] == "cat":
					return &stdio.ExitStatus{}
				case f.Type == stdio.Stdin:
					_, _ = stdout.Write(f.Data)
					_ = out.Write(stdio.Frame{Type: stdio.Taken, N: len(f.Data)})
				case f.Type == stdio.Signal && command[1] == "stubborn":
					fmt.Fprintln(stdout, "ignored", f.Name)
				case f.Type == stdio.Signal:
					fmt.Fprintln(stdout, "got", f.Name)
					return &stdio.ExitStatus{Code: 128 + int(unix.SignalNum(f.Name)), Signal: f.Name}
				}
			}
		}
	}
	return &stdio.ExitStatus{}
}
