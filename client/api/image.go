package api

import "time"

// Image is an OCI image that the daemon holds: its configuration, and its tree
// as a disk that VMs boot from.
type Image struct {
	// ID is the digest of the image's manifest for this machine's platform. The
	// same image under two references has one ID.
	ID         string   `json:"id"`
	References []string `json:"references"` // "docker.io/library/nginx:alpine", sorted; empty for one that lost its last
	Platform   string   `json:"platform"`   // "linux/amd64"
	Layers     int      `json:"layers"`
	// Disk is the digest of the root file system that VMs share, Initramfs that
	// of the same tree as an archive; empty while nobody asked for it.
	Disk      string      `json:"disk,omitempty"`
	Initramfs string      `json:"initramfs,omitempty"`
	Size      int64       `json:"size"` // bytes of both on the host
	Config    ImageConfig `json:"config"`
	CreatedAt time.Time   `json:"created_at,omitzero"` // as the image says
	PulledAt  time.Time   `json:"pulled_at"`
	LastUsed  time.Time   `json:"last_used"`
	VMs       int         `json:"vms"` // how many VMs were made from it and not deleted
}

// ImageConfig is what an image says of its workload: "config" of the OCI image
// configuration, and Healthcheck of Docker's.
type ImageConfig struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // "NAME=value"
	WorkingDir   string            `json:"working_dir,omitempty"`
	User         string            `json:"user,omitempty"` // name or id, with a group behind a colon
	StopSignal   string            `json:"stop_signal,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`       // paths, sorted
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", sorted
	Healthcheck  *ImageHealthcheck `json:"healthcheck,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// ImageHealthcheck is Docker's HEALTHCHECK. Test begins with "NONE", "CMD" or
// "CMD-SHELL". Zero values stand for Docker's defaults: 30 s, 30 s, 0, 3.
type ImageHealthcheck struct {
	Test        []string      `json:"test"`
	Interval    time.Duration `json:"interval_ns,omitempty"`
	Timeout     time.Duration `json:"timeout_ns,omitempty"`
	StartPeriod time.Duration `json:"start_period_ns,omitempty"`
	Retries     int           `json:"retries,omitempty"`
}

// RegistryAuth is how to log in to a registry. The client finds it in its
// user's configuration; the daemon uses it for one request and keeps it nowhere.
type RegistryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identity_token,omitempty"` // OAuth2 refresh token
	RegistryToken string `json:"registry_token,omitempty"` // bearer token
}

// ImageForm is what an image's tree is made into.
type ImageForm string

const (
	FormDisk      ImageForm = "disk"      // a read-only disk, shared by all VMs of the image (default)
	FormInitramfs ImageForm = "initramfs" // an archive that each VM unpacks into its memory
)

// ImagePull asks for an image from its registry.
type ImagePull struct {
	// Reference is as people write it: "nginx:alpine", "docker://nginx",
	// "registry.example:5000/team/app@sha256:…".
	Reference string        `json:"reference"`
	Platform  string        `json:"platform,omitempty"` // default: this machine's
	Form      ImageForm     `json:"form,omitempty"`
	Auth      *RegistryAuth `json:"auth,omitempty"`
}

// ImageProgress is one line of the answer to a pull or load. The last one has
// Image or Error set.
type ImageProgress struct {
	// Step is "resolve", "download", "flatten" or "write"; Item what it is
	// about, such as a layer's digest.
	Step string `json:"step,omitempty"`
	Item string `json:"item,omitempty"`
	// Done and Total count bytes; Total is 0 while it is not known.
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	Image *Image `json:"image,omitempty"` // it is there
	Error *Error `json:"error,omitempty"` // it could not be had; nothing is left but layers that the next try goes on from
}

// ImageRemoved says what a removal or pruning did.
type ImageRemoved struct {
	Untagged []string `json:"untagged"` // references
	Removed  []string `json:"removed"`  // IDs
	Freed    int64    `json:"freed"`    // bytes
}

// ImagePrune says which images to remove: those without a reference or, with
// All, every image that no VM uses.
type ImagePrune struct {
	All bool `json:"all,omitempty"`
	// UnusedForSeconds spares images that were used since.
	UnusedForSeconds int64 `json:"unused_for_seconds,omitempty"`
}
