package api

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Docker's defaults of a HEALTHCHECK.
const (
	defaultCheckInterval = 30 * time.Second
	defaultCheckTimeout  = 30 * time.Second
	defaultCheckRetries  = 3
)

// ImageManifest returns the manifest of an image's workload: everything that its
// configuration says, without artifact, resources and kernel. An image that
// says nothing to run yields an empty Entrypoint, which Validate refuses.
//
// Labels that no VM may have (see ValidateLabels), an exposed port of another
// protocol than tcp and udp, and a variable without a value are left out: each
// is information, and thousands of images that run carry one. Errors have
// CodeInvalid and begin with the path in the configuration.
func ImageManifest(name string, cfg ImageConfig) (Manifest, error) {
	m := Manifest{SchemaVersion: "1", Name: name, Version: cfg.Labels["org.opencontainers.image.version"]}
	if strings.TrimSpace(m.Version) == "" {
		m.Version = "1"
	}
	w := &Workload{
		Type: WorkloadExec, Entrypoint: slices.Concat(cfg.Entrypoint, cfg.Cmd), User: cfg.User, StopSignal: cfg.StopSignal,
	}
	if cfg.WorkingDir != "" {
		w.Workdir = path.Join("/", cfg.WorkingDir) // Docker's: relative to the root
	}
	for _, kv := range cfg.Env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			continue
		}
		if w.Env == nil {
			w.Env = make(map[string]string, len(cfg.Env))
		}
		w.Env[k] = v
	}
	if err := ValidateEnv("config.Env", w.Env); err != nil {
		return Manifest{}, err
	}
	m.Workload = w
	var err error
	if m.HealthCheck, err = imageHealth(cfg.Healthcheck); err != nil {
		return Manifest{}, err
	}
	if m.Ports, err = imagePorts(cfg.ExposedPorts); err != nil {
		return Manifest{}, err
	}
	for k, v := range cfg.Labels {
		one := map[string]string{k: v}
		if len(m.Labels) == maxListLength || ValidateLabels("", one) != nil {
			continue
		}
		if m.Labels == nil {
			m.Labels = make(map[string]string, len(cfg.Labels))
		}
		m.Labels[k] = v
	}
	return m, nil
}

func imageHealth(h *ImageHealthcheck) (*HealthCheck, error) {
	if h == nil || len(h.Test) == 0 {
		return nil, nil
	}
	out := &HealthCheck{Retries: h.Retries}
	switch rest := h.Test[1:]; h.Test[0] {
	case "NONE":
		return nil, nil
	case "CMD":
		out.Exec = slices.Clone(rest)
	case "CMD-SHELL":
		if len(rest) != 1 {
			return nil, fieldErr("config.Healthcheck.Test", "CMD-SHELL takes one command line, not %d", len(rest))
		}
		out.Exec = []string{"/bin/sh", "-c", rest[0]}
	default:
		return nil, fieldErr("config.Healthcheck.Test", "%.40q is not known; it begins with NONE, CMD or CMD-SHELL", h.Test[0])
	}
	if len(out.Exec) == 0 || out.Exec[0] == "" {
		return nil, fieldErr("config.Healthcheck.Test", "names no command")
	}
	if h.Interval < 0 || h.Timeout < 0 || h.StartPeriod < 0 || h.Retries < 0 {
		return nil, fieldErr("config.Healthcheck", "has a negative number")
	}
	out.IntervalMS, out.TimeoutMS, out.StartPeriodMS = milliseconds(h.Interval), milliseconds(h.Timeout), milliseconds(h.StartPeriod)
	return out.asDocker(), nil
}

// asDocker fills in Docker's defaults for a check of a kind that Docker has.
func (h *HealthCheck) asDocker() *HealthCheck {
	if h == nil || len(h.Exec) == 0 {
		return h
	}
	out := *h
	out.IntervalMS = cmp.Or(out.IntervalMS, milliseconds(defaultCheckInterval))
	out.TimeoutMS = cmp.Or(out.TimeoutMS, milliseconds(defaultCheckTimeout))
	out.Retries = cmp.Or(out.Retries, defaultCheckRetries)
	return &out
}

// milliseconds rounds up: what is short is not none.
func milliseconds(d time.Duration) int { return int((d + time.Millisecond - 1) / time.Millisecond) }

// imagePorts reads ExposedPorts: "80", "80/tcp", "8000-8010/udp".
func imagePorts(exposed []string) ([]Port, error) {
	var out []Port
	for _, s := range exposed {
		span, proto, _ := strings.Cut(s, "/")
		proto = strings.ToLower(proto)
		if proto == "" {
			proto = ProtocolTCP
		}
		from, to, isRange := strings.Cut(span, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil || a < 1 || b < a {
			return nil, fieldErr("config.ExposedPorts", "%.40q is not a port such as 80/tcp", s)
		}
		if proto != ProtocolTCP && proto != ProtocolUDP {
			continue
		}
		if len(out)+int(b-a) >= maxListLength {
			return nil, fieldErr("config.ExposedPorts", "names more than %d ports", maxListLength)
		}
		for p := a; p <= b; p++ {
			out = append(out, Port{Port: int(p), Protocol: proto})
		}
	}
	return out, nil
}

// Compose lays a request over the manifest that its VM would have without it,
// by Docker's rules: what the request gives replaces what the manifest has.
// image is the configuration that the manifest was made of by ImageManifest; it
// says where the entrypoint ends and the command begins. With nil, for a plugin,
// all of the manifest's Entrypoint is Docker's Entrypoint.
//
//   - An Entrypoint replaces both, a Command only the command.
//   - Of a HealthCheck, what to ask and each number replace those that there are.
//   - Volumes, Tmpfs are added, except that one for a target that the manifest
//     mounts too takes its place.
//   - With a read-only root, what the image declares as its volumes stays
//     writable, as disks of the VM's own. Otherwise its writable root is enough.
//
// What belongs to one VM and not to what it runs (name, resources, environment,
// labels, address, published ports) is left as the manifest has it, so that VMs
// which differ only in these share a manifest; see MergePorts. m is not altered.
// The result is validated; errors have CodeInvalid.
func Compose(m Manifest, image *ImageConfig, req VMCreate) (Manifest, error) {
	m.Workload = composeWorkload(m.Workload, image, req)
	if req.Hostname != "" {
		m.Hostname = req.Hostname
	}
	if req.Kernel != "" {
		m.Kernel = req.Kernel
	}
	if req.Hypervisor != "" {
		m.Hypervisor = req.Hypervisor
	}
	if req.NetworkMode != "" {
		n := Network{}
		if m.Network != nil {
			n = *m.Network
		}
		n.Mode = req.NetworkMode
		m.Network = &n
	}
	if req.Root != nil {
		r := *req.Root
		m.Root = &r
	}
	baseURL := ""
	if m.Workload != nil {
		baseURL = m.Workload.BaseURL
	}
	m.HealthCheck = composeHealth(m.HealthCheck, baseURL, req.HealthCheck)
	if image != nil {
		m.HealthCheck = m.HealthCheck.asDocker()
	}
	if req.DependsOn != nil {
		m.DependsOn = slices.Clone(req.DependsOn)
	}
	if req.Restart != nil {
		r := *req.Restart
		m.Restart = &r
	}
	m.Volumes, m.Tmpfs = composeMounts(m, image, req)
	if m.Workload != nil && len(m.Workload.Entrypoint) == 0 && image != nil {
		return Manifest{}, Errorf(CodeInvalid, "command: the image has neither an entrypoint nor a command").WithHint("say what it is to run")
	}
	return m, m.Validate()
}

func composeWorkload(base *Workload, image *ImageConfig, req VMCreate) *Workload {
	if base == nil {
		if req.Entrypoint == nil && req.Command == nil {
			return nil
		}
		base = &Workload{Type: WorkloadExec}
	}
	w := *base
	entrypoint, command := w.Entrypoint, []string(nil)
	if image != nil {
		entrypoint, command = image.Entrypoint, image.Cmd
	}
	if req.Entrypoint != nil {
		entrypoint, command = *req.Entrypoint, nil
	}
	if req.Command != nil {
		command = *req.Command
	}
	w.Entrypoint = slices.Concat(entrypoint, command)
	if req.Workdir != "" {
		w.Workdir = req.Workdir
	}
	if req.User != "" {
		w.User = req.User
	}
	if req.StopSignal != "" {
		w.StopSignal = req.StopSignal
	}
	if req.StopTimeout != 0 {
		w.StopTimeout = req.StopTimeout
	}
	w.TTY = w.TTY || req.TTY
	w.Stdin = w.Stdin || req.Stdin
	w.Init = w.Init || req.Init
	return &w
}

func composeMounts(m Manifest, image *ImageConfig, req VMCreate) (volumes []VolumeMount, tmpfs []Tmpfs) {
	taken := make(map[string]bool, len(req.Volumes)+len(req.Tmpfs))
	for _, v := range req.Volumes {
		taken[v.Target] = true
	}
	for _, t := range req.Tmpfs {
		taken[t.Target] = true
	}
	for _, v := range m.Volumes {
		if !taken[v.Target] {
			volumes = append(volumes, v)
		}
	}
	for _, t := range m.Tmpfs {
		if !taken[t.Target] {
			tmpfs = append(tmpfs, t)
		}
	}
	volumes, tmpfs = append(volumes, req.Volumes...), append(tmpfs, req.Tmpfs...)
	if image == nil || m.Root == nil || m.Root.Mode != RootReadOnly {
		return volumes, tmpfs
	}
	for _, v := range volumes {
		taken[v.Target] = true
	}
	for _, t := range tmpfs {
		taken[t.Target] = true
	}
	for _, v := range image.Volumes {
		target := path.Join("/", v)
		if taken[target] || validateTarget("", target) != nil {
			continue
		}
		taken[target] = true
		volumes = append(volumes, VolumeMount{Target: target})
	}
	return volumes, tmpfs
}

// MergePorts returns the ports of a VM: those of its manifest, but for those
// that are not published and that the request names too, and then those of the
// request, which stand last. Of these, HostPort 0 asks for any host port.
func MergePorts(manifest, request []Port) []Port {
	var out []Port
	for _, p := range manifest {
		named := slices.ContainsFunc(request, func(r Port) bool {
			return r.Port == p.Port && r.protocol() == p.protocol()
		})
		if p.HostPort == 0 && named {
			continue
		}
		out = append(out, p)
	}
	return append(out, request...)
}

// MergeLabels lays labels over others.
func MergeLabels(under, over map[string]string) map[string]string {
	if len(under)+len(over) == 0 {
		return nil
	}
	out := make(map[string]string, len(under)+len(over))
	maps.Copy(out, under)
	maps.Copy(out, over)
	return out
}

// ImageName makes a name for what is made of an image out of a reference to it:
// the last part of its repository, in the letters that names may have. It leaves
// room for a hyphen and a number. "image" stands for what leaves nothing.
func ImageName(reference string) string {
	ref, _, _ := strings.Cut(reference, "@")
	ref = ref[strings.LastIndexByte(ref, '/')+1:]
	ref, _, _ = strings.Cut(ref, ":")
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, ref)
	const room = 12
	name = strings.Trim(name[:min(len(name), MaxNameLength-room)], "-")
	if name == "" {
		return "image"
	}
	return name
}
