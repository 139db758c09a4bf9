package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"time"
)

// VMConfig is what of a VM can be changed after its creation. The rest, such as
// what it is made from, its address and its disks, is the VM itself.
//
// Labels, AutoRemove and TTLSeconds take effect at once, all else at the next
// start.
type VMConfig struct {
	CPUCores      int               `json:"cpu_cores"`
	MemoryMB      int               `json:"memory_mb"`        // MiB
	Kernel        string            `json:"kernel,omitempty"` // by name; empty for the default one
	KernelCmdline string            `json:"kernel_cmdline,omitempty"`
	Env           map[string]string `json:"env,omitempty"` // over the plugin's or image's; it may hold secrets
	Labels        map[string]string `json:"labels,omitempty"`
	Ports         []Port            `json:"ports,omitempty"` // published where HostPort is set

	Command     []string     `json:"command,omitempty"` // all of it, the entrypoint included
	Workdir     string       `json:"workdir,omitempty"`
	User        string       `json:"user,omitempty"`
	StopSignal  string       `json:"stop_signal,omitempty"`
	StopTimeout int          `json:"stop_timeout_ms,omitempty"` // milliseconds
	TTY         bool         `json:"tty,omitempty"`
	Stdin       bool         `json:"stdin,omitempty"`
	Hostname    string       `json:"hostname,omitempty"` // default: the VM's name
	Restart     *Restart     `json:"restart,omitempty"`
	HealthCheck *HealthCheck `json:"health_check,omitempty"`

	AutoRemove bool  `json:"auto_remove,omitempty"`
	TTLSeconds int64 `json:"ttl_seconds,omitempty"` // after its creation the VM is deleted; 0 for never
}

// MaxConfigVersions is how many versions of a VM's configuration are kept.
const MaxConfigVersions = 100

// MaxTTLSeconds bounds a VM's life: ten years.
const MaxTTLSeconds = 10 * 366 * 24 * 60 * 60

// VMConfigVersion is one version of a VM's configuration. Version 1 is what the
// VM was created with, and every change makes the next one.
type VMConfigVersion struct {
	VM      string    `json:"vm"`
	Version int       `json:"version"`
	Time    time.Time `json:"updated_at"`
	By      string    `json:"by,omitempty"`      // who asked for it: "uid 1000"
	From    int       `json:"from,omitempty"`    // the earlier version that it was made of
	Changed []string  `json:"changed,omitempty"` // against the version before: "memory_mb", "env.MODE"
	// Pending is set for the newest version while the VM runs with an earlier one.
	Pending bool     `json:"pending,omitempty"`
	Config  VMConfig `json:"config"`
}

// VMConfigChange asks for a change of a VM's configuration.
type VMConfigChange struct {
	// Patch says what changes, as a JSON merge patch (RFC 7396) of a VMConfig:
	// null takes away.
	Patch json.RawMessage
	// Version is an earlier version that takes the place of the present one before
	// Patch is applied, 0 for none.
	Version int
	// Expect is the version that is to be changed; with another one the change is
	// refused. 0 for whichever it is.
	Expect int
	// Restart starts the VM anew, for all of it to take effect.
	Restart bool
	By      string
}

// VMRename asks for another name of a VM.
type VMRename struct {
	Name string `json:"name"`
}

// Merge returns c with a JSON merge patch applied. The result is valid as far as
// that can be judged alone; errors have CodeInvalid and begin with the field's path.
func (c VMConfig) Merge(patch []byte) (VMConfig, error) {
	if len(patch) == 0 {
		return c, c.Validate()
	}
	data, err := json.Marshal(c)
	if err != nil {
		return VMConfig{}, err
	}
	var base, change any
	if err := decodeTree(data, &base); err != nil {
		return VMConfig{}, err
	}
	if err := decodeTree(patch, &change); err != nil {
		return VMConfig{}, jsonErr(patch, err)
	}
	if _, ok := change.(map[string]any); !ok {
		return VMConfig{}, Errorf(CodeInvalid, "the change of a configuration is a JSON object")
	}
	if data, err = json.Marshal(mergePatch(base, change)); err != nil {
		return VMConfig{}, err
	}
	var out VMConfig
	if err := DecodeStrict(data, &out); err != nil {
		return VMConfig{}, err
	}
	return out, out.Validate()
}

func decodeTree(data []byte, dst *any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return dec.Decode(dst)
}

// mergePatch is the algorithm of RFC 7396, section 2.
func mergePatch(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = make(map[string]any, len(p))
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = mergePatch(t[k], v)
		}
	}
	return t
}

// Validate checks what can be judged of c without knowing what the VM runs.
func (c *VMConfig) Validate() error {
	if err := ValidateResources("config", Resources{CPUCores: c.CPUCores, MemoryMB: c.MemoryMB}); err != nil {
		return err
	}
	if err := ValidateEnv("env", c.Env); err != nil {
		return err
	}
	if err := ValidateLabels("labels", c.Labels); err != nil {
		return err
	}
	return ValidateTTL(c.TTLSeconds)
}

// ValidateTTL checks how long a VM may live.
func ValidateTTL(seconds int64) error {
	if seconds < 0 || seconds > MaxTTLSeconds {
		return fieldErr("ttl_seconds", "is %d; give 1 to %d, or 0 for no end", seconds, int64(MaxTTLSeconds))
	}
	return nil
}

// Changes names the fields in which o differs from c, those of env and labels
// one by one, sorted.
func (c VMConfig) Changes(o VMConfig) []string {
	var out []string
	a, b := reflect.ValueOf(c), reflect.ValueOf(o)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		x, y := a.Field(i).Interface(), b.Field(i).Interface()
		if m, ok := x.(map[string]string); ok {
			out = append(out, changedKeys(name, m, y.(map[string]string))...)
			continue
		}
		// As JSON, where no list and an empty one are the same.
		if u, v := asJSON(x), asJSON(y); u != v && !(a.Field(i).IsZero() && v == "[]") && !(b.Field(i).IsZero() && u == "[]") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func asJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return "" // none of a configuration's fields fails
	}
	return string(data)
}

func changedKeys(field string, a, b map[string]string) (out []string) {
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			out = append(out, field+"."+k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, field+"."+k)
		}
	}
	return out
}
