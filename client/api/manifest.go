package api

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"strings"
	"unicode/utf8"
)

// Manifest is a plugin manifest, schema version 1: what a VM of this plugin
// runs, from which artifacts, with which resources. It is published as JSON
// Schema in docs/schemas/plugin-manifest-v1.json.
type Manifest struct {
	Schema        string `json:"$schema,omitempty"`        // ignored; editors use it
	SchemaVersion string `json:"schema_version,omitempty"` // "1", "1.0" or "v1"; empty means 1
	Name          string `json:"name"`
	Version       string `json:"version"`
	Runtime       string `json:"runtime,omitempty"` // default: Name
	Image         string `json:"image,omitempty"`   // where the artifact came from; informational
	ImageDigest   string `json:"image_digest,omitempty"`
	Enabled       *bool  `json:"enabled,omitempty"` // default true

	Rootfs    *Rootfs        `json:"rootfs,omitempty"`
	Initramfs *Initramfs     `json:"initramfs,omitempty"`
	Disks     []ManifestDisk `json:"disks,omitempty"`
	Root      *Root          `json:"root,omitempty"` // what is writable, for a rootfs

	Volumes []VolumeMount `json:"volumes,omitempty"`
	Tmpfs   []Tmpfs       `json:"tmpfs,omitempty"`
	Ports   []Port        `json:"ports,omitempty"`

	Resources   Resources         `json:"resources"`
	Workload    *Workload         `json:"workload,omitempty"`
	HealthCheck *HealthCheck      `json:"health_check,omitempty"`
	Restart     *Restart          `json:"restart,omitempty"`
	DependsOn   []Dependency      `json:"depends_on,omitempty"` // VMs that have to be up before one of these is started
	Actions     map[string]Action `json:"actions,omitempty"`
	OpenAPI     string            `json:"openapi,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	CloudInit   *CloudInit        `json:"cloud_init,omitempty"`
	Network     *Network          `json:"network,omitempty"`
	Devices     *Devices          `json:"devices,omitempty"`
	Kernel      string            `json:"kernel,omitempty"`     // name of an imported kernel; default: "volant" for a rootfs, if there is one, else the default one
	Hypervisor  string            `json:"hypervisor,omitempty"` // HypervisorAuto (default), HypervisorCH or HypervisorQEMU
	Hostname    string            `json:"hostname,omitempty"`   // default: the VM's name
}

// Modes of Root.
const (
	RootDisk     = "disk"      // changes go to a disk of the VM's own, and stay until it is deleted (default)
	RootMemory   = "ephemeral" // changes go to the guest's memory, and are lost when it stops
	RootReadOnly = "read-only" // there are no changes
)

// Root says where a VM keeps what it changes in its root file system.
type Root struct {
	Mode   string `json:"mode,omitempty"`
	SizeMB int    `json:"size_mb,omitempty"` // MiB, of the disk or the memory; default DefaultRootMB, for memory half of the guest's
}

// Rootfs is a root file system image: erofs, squashfs or ext4. VMs share it and
// never write to it; Root says where their changes go.
type Rootfs struct {
	URL      string `json:"url"`
	Checksum string `json:"checksum,omitempty"`
	Format   string `json:"format,omitempty"` // "raw" (default) or "qcow2"
}

// Agent kinds of Initramfs.Agent.
const (
	AgentHost  = "host"  // volantd puts its own agent in front of the archive (default)
	AgentImage = "image" // the archive carries kestrel as /init
	AgentNone  = "none"  // the archive's /init is the workload itself; there is no agent
)

// Initramfs is an application archive that the kernel unpacks as its root.
type Initramfs struct {
	URL      string `json:"url"`
	Checksum string `json:"checksum,omitempty"` // "sha256:" and 64 hex digits
	Agent    string `json:"agent,omitempty"`    // AgentHost, AgentImage or AgentNone
}

// ManifestDisk is a further disk.
type ManifestDisk struct {
	Name     string `json:"name"`
	Source   string `json:"source"`
	Checksum string `json:"checksum,omitempty"`
	Format   string `json:"format,omitempty"`
	Readonly bool   `json:"readonly,omitempty"`
	Target   string `json:"target,omitempty"`
}

// Resources is what a VM gets.
type Resources struct {
	CPUCores int `json:"cpu_cores"`
	MemoryMB int `json:"memory_mb"` // MiB
}

// Workload types.
const (
	WorkloadHTTP = "http" // serves HTTP at BaseURL
	WorkloadExec = "exec" // any process
)

// Workload is the process that the VM exists for.
type Workload struct {
	Type        string            `json:"type"`
	Entrypoint  []string          `json:"entrypoint"`
	BaseURL     string            `json:"base_url,omitempty"` // required for WorkloadHTTP: "http://127.0.0.1:8080"
	Env         map[string]string `json:"env,omitempty"`
	Workdir     string            `json:"workdir,omitempty"`
	User        string            `json:"user,omitempty"` // name or uid[:gid]
	StopSignal  string            `json:"stop_signal,omitempty"`
	StopTimeout int               `json:"stop_timeout_ms,omitempty"` // milliseconds
	TTY         bool              `json:"tty,omitempty"`             // runs on a terminal
	Init        bool              `json:"init,omitempty"`            // runs below a small init, where it would be process 1 (a rootfs)
	Stdin       bool              `json:"stdin,omitempty"`           // its standard input stays open for clients that attach; else it is /dev/null
}

// Action is an HTTP call that the workload offers by name.
type Action struct {
	Description string `json:"description,omitempty"`
	Method      string `json:"method"`
	Path        string `json:"path"`
	TimeoutMS   int    `json:"timeout_ms,omitempty"`
}

// CloudInit is a NoCloud seed.
type CloudInit struct {
	Datasource    string        `json:"datasource,omitempty"`
	SeedMode      string        `json:"seed_mode,omitempty"`
	UserData      *CloudInitDoc `json:"user_data,omitempty"`
	MetaData      *CloudInitDoc `json:"meta_data,omitempty"`
	NetworkConfig *CloudInitDoc `json:"network_config,omitempty"`
}

// CloudInitDoc is one document of a seed.
type CloudInitDoc struct {
	Inline  bool   `json:"inline,omitempty"`
	Content string `json:"content,omitempty"`
	Path    string `json:"path,omitempty"`
}

// What a Manifest may say of the hypervisor of its VMs.
const (
	HypervisorAuto = "auto" // the one that volantd chose for new VMs
	HypervisorCH   = "cloud-hypervisor"
	HypervisorQEMU = "qemu"
)

// ValidateHypervisor checks what a VM is to run with; field is the path used in
// errors.
func ValidateHypervisor(field, name string) error {
	return oneOf(field, name, "", HypervisorAuto, HypervisorCH, HypervisorQEMU)
}

// Network modes.
const (
	NetworkBridged = "bridged" // a NIC with a static address on the bridge (default)
	NetworkVsock   = "vsock"   // no NIC; only the agent channel
	NetworkDHCP    = "dhcp"
)

// Network is how the VM is connected.
type Network struct {
	Mode       string `json:"mode,omitempty"`
	Subnet     string `json:"subnet,omitempty"`
	Gateway    string `json:"gateway,omitempty"`
	AutoAssign bool   `json:"auto_assign,omitempty"`
}

// Devices are host devices passed through.
type Devices struct {
	PCIPassthrough []string `json:"pci_passthrough,omitempty"`
	Allowlist      []string `json:"allowlist,omitempty"`
}

// Limits of a manifest. They are generous; they exist so that no manifest can
// exhaust the daemon.
const (
	MaxManifestSize   = 1 << 20 // bytes of JSON
	MaxCPUCores       = 64
	MinMemoryMB       = 32 // below it no kernel of ours boots
	MaxMemoryMB       = 1 << 20
	maxListLength     = 1024
	maxManifestString = 64 << 10 // bytes of any one value
	maxLabelKey       = 253      // bytes
	maxLabelValue     = 4096     // bytes
)

// Validate checks m as schema version 1 asks. The error is an *Error with
// CodeInvalid whose message begins with the field's path.
func (m *Manifest) Validate() error {
	switch m.SchemaVersion {
	case "", "1", "1.0", "v1":
	default:
		return fieldErr("schema_version", "%q is not known; this Volant understands version 1", m.SchemaVersion)
	}
	if err := ValidateName("plugin", m.Name); err != nil {
		return fieldErr("name", "%v", err)
	}
	if strings.TrimSpace(m.Version) == "" {
		return fieldErr("version", "is missing")
	}
	if m.Rootfs == nil && m.Initramfs == nil {
		return fieldErr("initramfs", "is missing: a manifest needs either initramfs or rootfs")
	}
	if m.Rootfs != nil && m.Initramfs != nil {
		return fieldErr("rootfs", "stands beside initramfs: a manifest has exactly one of them")
	}
	if r := m.Rootfs; r != nil {
		if err := checkArtifact("rootfs", r.URL, r.Checksum); err != nil {
			return err
		}
		if err := oneOf("rootfs.format", r.Format, "", "raw", "qcow2"); err != nil {
			return err
		}
	}
	if i := m.Initramfs; i != nil {
		if err := checkArtifact("initramfs", i.URL, i.Checksum); err != nil {
			return err
		}
		if err := oneOf("initramfs.agent", i.Agent, "", AgentHost, AgentImage, AgentNone); err != nil {
			return err
		}
	}
	for i, d := range m.Disks {
		at := fmt.Sprintf("disks[%d]", i)
		if err := ValidateName("disk", d.Name); err != nil {
			return fieldErr(at+".name", "%v", err)
		}
		if d.Source == "" {
			return fieldErr(at+".source", "is missing")
		}
		if d.Checksum != "" {
			if _, err := ParseDigest(d.Checksum); err != nil {
				return fieldErr(at+".checksum", "%v", err)
			}
		}
		if err := oneOf(at+".format", d.Format, "", "raw", "qcow2"); err != nil {
			return err
		}
	}
	if err := ValidateResources("resources", m.Resources); err != nil {
		return err
	}
	if err := m.validateWorkload(); err != nil {
		return err
	}
	if err := m.validateMounts(); err != nil {
		return err
	}
	if err := m.validateRest(); err != nil {
		return err
	}
	return nil
}

// ValidateResources checks CPU and memory; field is the path used in errors.
func ValidateResources(field string, r Resources) error {
	if r.CPUCores < 1 || r.CPUCores > MaxCPUCores {
		return fieldErr(field+".cpu_cores", "is %d; give 1 to %d", r.CPUCores, MaxCPUCores)
	}
	if r.MemoryMB < MinMemoryMB || r.MemoryMB > MaxMemoryMB {
		return fieldErr(field+".memory_mb", "is %d; give %d to %d (MiB)", r.MemoryMB, MinMemoryMB, MaxMemoryMB)
	}
	return nil
}

func (m *Manifest) validateWorkload() error {
	w := m.Workload
	agentless := m.Initramfs != nil && m.Initramfs.Agent == AgentNone
	if w == nil {
		if agentless {
			return nil
		}
		return fieldErr("workload", "is missing: say what the VM runs")
	}
	if err := oneOf("workload.type", w.Type, WorkloadHTTP, WorkloadExec); err != nil {
		return err
	}
	if len(w.Entrypoint) == 0 || w.Entrypoint[0] == "" {
		if !agentless {
			return fieldErr("workload.entrypoint", "is missing: give the program and its arguments as a list")
		}
	}
	if len(w.Entrypoint) > maxListLength {
		return fieldErr("workload.entrypoint", "has %d elements; at most %d are allowed", len(w.Entrypoint), maxListLength)
	}
	for i, a := range w.Entrypoint {
		if err := checkString(fmt.Sprintf("workload.entrypoint[%d]", i), a); err != nil {
			return err
		}
	}
	switch {
	case w.BaseURL != "":
		u, err := url.Parse(w.BaseURL)
		if err != nil || u.Scheme != "http" || u.Host == "" {
			return fieldErr("workload.base_url", "%q is not an http URL such as http://127.0.0.1:8080", w.BaseURL)
		}
	case w.Type == WorkloadHTTP:
		return fieldErr("workload.base_url", "is missing: an http workload says where it serves, such as http://127.0.0.1:8080")
	}
	if w.Workdir != "" && !path.IsAbs(w.Workdir) {
		return fieldErr("workload.workdir", "%q is not an absolute path", w.Workdir)
	}
	if w.StopTimeout < 0 {
		return fieldErr("workload.stop_timeout_ms", "is negative")
	}
	if err := validateUser("workload.user", w.User); err != nil {
		return err
	}
	if err := validateSignal("workload.stop_signal", w.StopSignal); err != nil {
		return err
	}
	return ValidateEnv("workload.env", w.Env)
}

// ValidateEnv checks names and values of environment variables.
func ValidateEnv(field string, env map[string]string) error {
	if len(env) > maxListLength {
		return fieldErr(field, "has %d variables; at most %d are allowed", len(env), maxListLength)
	}
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return fieldErr(field, "%q is not a variable name", k)
		}
		if err := checkString(field+"."+k, v); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manifest) validateRest() error {
	if m.HealthCheck != nil {
		baseURL := ""
		if m.Workload != nil {
			baseURL = m.Workload.BaseURL
		}
		if err := validateHealth("health_check", *m.HealthCheck, baseURL, false); err != nil {
			return err
		}
	}
	if m.Restart != nil {
		if err := validateRestart("restart", *m.Restart); err != nil {
			return err
		}
	}
	if err := validateDependencies("depends_on", m.DependsOn); err != nil {
		return err
	}
	for name, a := range m.Actions {
		if a.Method == "" || !strings.HasPrefix(a.Path, "/") {
			return fieldErr("actions."+name, "needs a method and a path that begins with /")
		}
	}
	if n := m.Network; n != nil {
		if err := oneOf("network.mode", n.Mode, "", NetworkBridged, NetworkVsock, NetworkDHCP); err != nil {
			return err
		}
	}
	if m.Kernel != "" {
		if err := ValidateName("kernel", m.Kernel); err != nil {
			return fieldErr("kernel", "%v", err)
		}
	}
	if err := ValidateHypervisor("hypervisor", m.Hypervisor); err != nil {
		return err
	}
	if err := ValidateHostname("hostname", m.Hostname); err != nil {
		return err
	}
	if err := validatePorts("ports", m.Ports, false); err != nil {
		return err
	}
	return ValidateLabels("labels", m.Labels)
}

// validateMounts checks what is mounted in the guest, the root included.
func (m *Manifest) validateMounts() error {
	if m.Root != nil {
		if m.Rootfs == nil {
			return fieldErr("root", "only a rootfs has one; an initramfs is all in the guest's memory")
		}
		if err := validateRoot("root", *m.Root); err != nil {
			return err
		}
	}
	if err := validateMounts(m.Volumes, m.Tmpfs); err != nil {
		return err
	}
	if m.Initramfs != nil && m.Initramfs.Agent == AgentNone && len(m.Volumes)+len(m.Tmpfs) > 0 {
		return fieldErr("volumes", "without an agent nobody mounts them")
	}
	return nil
}

// ValidateLabels checks labels: printable keys and values of bounded length.
func ValidateLabels(field string, labels map[string]string) error {
	if len(labels) > maxListLength {
		return fieldErr(field, "has %d entries; at most %d are allowed", len(labels), maxListLength)
	}
	for k, v := range labels {
		if k == "" || len(k) > maxLabelKey || len(v) > maxLabelValue || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fieldErr(field, "%.40q is not a usable label: keys have 1 to %d bytes, values at most %d, both UTF-8", k, maxLabelKey, maxLabelValue)
		}
	}
	return nil
}

// ParseDigest returns the hex part of a digest "sha256:<64 lower-case hex>".
func ParseDigest(digest string) (string, error) {
	hexPart, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hexPart) != 64 || strings.ToLower(hexPart) != hexPart {
		return "", Errorf(CodeInvalid, "%.80q is not a digest of the form sha256:<64 lower-case hex digits>", digest)
	}
	if _, err := hex.DecodeString(hexPart); err != nil {
		return "", Errorf(CodeInvalid, "%q is not a digest of the form sha256:<64 lower-case hex digits>", digest)
	}
	return hexPart, nil
}

func checkArtifact(field, rawURL, checksum string) error {
	if rawURL == "" {
		return fieldErr(field+".url", "is missing")
	}
	if err := checkString(field+".url", rawURL); err != nil {
		return err
	}
	if checksum == "" {
		return nil
	}
	if _, err := ParseDigest(checksum); err != nil {
		return fieldErr(field+".checksum", "%v", err)
	}
	return nil
}

func checkString(field, s string) error {
	if len(s) > maxManifestString {
		return fieldErr(field, "has %d bytes; at most %d are allowed", len(s), maxManifestString)
	}
	if strings.ContainsRune(s, 0) {
		return fieldErr(field, "holds a NUL byte")
	}
	return nil
}

func oneOf(field, got string, allowed ...string) error {
	var names []string
	for _, a := range allowed {
		if got == a {
			return nil
		}
		if a != "" {
			names = append(names, a)
		}
	}
	if got == "" {
		return fieldErr(field, "is missing; give one of %s", strings.Join(names, ", "))
	}
	return fieldErr(field, "%q is not known; give one of %s", got, strings.Join(names, ", "))
}

func fieldErr(field, format string, args ...any) *Error {
	return Errorf(CodeInvalid, "%s: %s", field, fmt.Sprintf(format, args...))
}
