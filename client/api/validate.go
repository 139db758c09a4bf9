package api

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxHostname is how long the kernel lets a host name be, in bytes
// (HOST_NAME_MAX of sethostname(2)).
const maxHostname = 64

// ValidateHostname checks a host name as RFC 1123, section 2.1, has it: labels
// of letters, digits and inner hyphens, between dots. "" is allowed.
func ValidateHostname(field, name string) error {
	if name == "" {
		return nil
	}
	if len(name) > maxHostname {
		return fieldErr(field, "%.20q... has %d bytes; at most %d are allowed", name, len(name), maxHostname)
	}
	for label := range strings.SplitSeq(name, ".") {
		if err := ValidateName("host", strings.ToLower(label)); err != nil {
			return fieldErr(field, "%q is not a host name: use letters, digits and inner hyphens, between dots", name)
		}
	}
	return nil
}

// Limits of what names a user, a signal and a path in the guest, in bytes.
const (
	maxUserLength   = 256
	maxSignalLength = 16
	maxPathLength   = 4095 // PATH_MAX of limits.h less its terminating zero
)

// validateUser checks "name", "uid", either with ":group".
func validateUser(field, user string) error {
	if len(user) > maxUserLength || strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r == 0x7f }) || strings.Count(user, ":") > 1 {
		return fieldErr(field, "%.40q is not a user such as www, 33 or 33:33", user)
	}
	return nil
}

// validateSignal checks the form of a signal's name or number; the guest knows
// which there are.
func validateSignal(field, sig string) error {
	for _, c := range []byte(sig) {
		letter := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (c < '0' || c > '9') && c != '+' && c != '-' || len(sig) > maxSignalLength {
			return fieldErr(field, "%.40q is not a signal such as SIGTERM", sig)
		}
	}
	return nil
}

// validateTarget checks where something is mounted in a guest.
func validateTarget(field, target string) error {
	switch {
	case target == "":
		return fieldErr(field, "is missing: say where it is mounted in the guest")
	case len(target) > maxPathLength || strings.ContainsRune(target, 0):
		return fieldErr(field, "%.40q... is not a path", target)
	case !path.IsAbs(target):
		return fieldErr(field, "%.80q is not an absolute path", target)
	case path.Clean(target) != target:
		return fieldErr(field, "%.80q is not in its shortest form, %.80q", target, path.Clean(target))
	case target == "/":
		return fieldErr(field, "/ is the root of the guest")
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if target == own || strings.HasPrefix(target, own+"/") {
			return fieldErr(field, "%.80q: %s is the guest's own", target, own)
		}
	}
	return nil
}

func validateRoot(field string, r Root) error {
	if err := oneOf(field+".mode", r.Mode, "", RootDisk, RootMemory, RootReadOnly); err != nil {
		return err
	}
	switch r.Mode {
	case RootReadOnly:
		if r.SizeMB != 0 {
			return fieldErr(field+".size_mb", "is %d, but a read-only root has nowhere to write", r.SizeMB)
		}
		return nil
	case RootMemory:
		if r.SizeMB < 0 || r.SizeMB > MaxMemoryMB {
			return fieldErr(field+".size_mb", "is %d; give 1 to %d (MiB)", r.SizeMB, MaxMemoryMB)
		}
		return nil
	}
	return ValidateDiskSize(field+".size_mb", r.SizeMB)
}

// ValidateDiskSize checks the size of a disk that the daemon makes, in MiB; 0
// is the default.
func ValidateDiskSize(field string, mib int) error {
	if mib != 0 && (mib < MinDiskMB || mib > MaxDiskMB) {
		return fieldErr(field, "is %d; give %d to %d (MiB)", mib, MinDiskMB, MaxDiskMB)
	}
	return nil
}

// validateMounts checks volumes and tmpfs, of a manifest or of a request.
func validateMounts(volumes []VolumeMount, tmpfs []Tmpfs) error {
	if len(volumes) > maxListLength {
		return fieldErr("volumes", "has %d entries; at most %d are allowed", len(volumes), maxListLength)
	}
	if len(tmpfs) > maxListLength {
		return fieldErr("tmpfs", "has %d entries; at most %d are allowed", len(tmpfs), maxListLength)
	}
	at := make(map[string]string, len(volumes)+len(tmpfs)) // field by target
	take := func(field, target string) error {
		if err := validateTarget(field+".target", target); err != nil {
			return err
		}
		if other := at[target]; other != "" {
			return fieldErr(field+".target", "%.80q is taken by %s", target, other)
		}
		at[target] = field
		return nil
	}
	named := make(map[string]string, len(volumes)) // field by volume
	for i, v := range volumes {
		field := fmt.Sprintf("volumes[%d]", i)
		if err := validateVolume(field, v); err != nil {
			return err
		}
		if other := named[v.Name]; v.Name != "" && other != "" {
			return fieldErr(field+".name", "%s is mounted by %s already: a disk has one place", v.Name, other)
		}
		named[v.Name] = field
		if err := take(field, v.Target); err != nil {
			return err
		}
	}
	for i, t := range tmpfs {
		field := fmt.Sprintf("tmpfs[%d]", i)
		if err := take(field, t.Target); err != nil {
			return err
		}
		if t.SizeMB < 0 || t.SizeMB > MaxMemoryMB {
			return fieldErr(field+".size_mb", "is %d; give 1 to %d (MiB)", t.SizeMB, MaxMemoryMB)
		}
		if _, err := t.Permissions(); err != nil {
			return fieldErr(field+".mode", "%v", err)
		}
	}
	return nil
}

func validateVolume(field string, v VolumeMount) error {
	switch {
	case v.Name != "" && v.Blob != "":
		return fieldErr(field, "has both name and blob; give one")
	case v.Blob != "":
		if _, err := ParseDigest(v.Blob); err != nil {
			return fieldErr(field+".blob", "%v", err)
		}
		if v.SizeMB != 0 {
			return fieldErr(field+".size_mb", "a blob has the size that it has")
		}
		return nil
	}
	if v.Name != "" {
		if err := ValidateName("volume", v.Name); err != nil {
			return fieldErr(field+".name", "%v", err)
		}
	}
	return ValidateDiskSize(field+".size_mb", v.SizeMB)
}

// Permissions returns Mode as permission bits, 0 for none given.
func (t Tmpfs) Permissions() (uint32, error) {
	if t.Mode == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(t.Mode, 8, 32)
	if err != nil || n > 0o7777 || n == 0 {
		return 0, fmt.Errorf("%.20q is not a mode such as 1777", t.Mode)
	}
	return uint32(n), nil
}

// ValidatePorts checks the ports of a VM: one that is published says where.
func ValidatePorts(field string, ports []Port) error { return validatePorts(field, ports, false) }

// validatePorts checks a list of ports. asked is set for those of a request,
// where host_port 0 asks for any.
func validatePorts(field string, ports []Port, asked bool) error {
	if len(ports) > maxListLength {
		return fieldErr(field, "has %d entries; at most %d are allowed", len(ports), maxListLength)
	}
	for i, p := range ports {
		at := fmt.Sprintf("%s[%d]", field, i)
		if p.Name != "" {
			if err := ValidateName("port", p.Name); err != nil {
				return fieldErr(at+".name", "%v", err)
			}
		}
		if err := oneOf(at+".protocol", p.Protocol, "", ProtocolTCP, ProtocolUDP); err != nil {
			return err
		}
		if p.Port < 1 || p.Port > 65535 {
			return fieldErr(at+".port", "is %d; give 1 to 65535", p.Port)
		}
		if p.HostPort < 0 || p.HostPort > 65535 {
			return fieldErr(at+".host_port", "is %d; give 1 to 65535", p.HostPort)
		}
		if p.HostIP != "" {
			ip, err := netip.ParseAddr(p.HostIP)
			if err != nil || !ip.Is4() {
				return fieldErr(at+".host_ip", "%.40q is not an IPv4 address", p.HostIP)
			}
			if p.HostPort == 0 && !asked {
				return fieldErr(at+".host_port", "is missing: a port with a host_ip is published")
			}
		}
		if j := slices.IndexFunc(ports[:i], p.Conflicts); j >= 0 {
			return fieldErr(at+".host_port", "%d is published by %s[%d] already", p.HostPort, field, j)
		}
	}
	return nil
}

// Validate checks what can be judged of a request without knowing plugins and
// images. The error is an *Error with CodeInvalid whose message begins with the
// field's path.
func (r *VMCreate) Validate() error {
	if r.Name != "" {
		if err := ValidateName("VM", r.Name); err != nil {
			return fieldErr("name", "%v", err)
		}
	}
	switch {
	case r.Plugin != "" && r.Image != "":
		return fieldErr("image", "stands beside plugin: a VM is made from one of them")
	case r.Image == "" && r.Form != "":
		return fieldErr("form", "only an image has one")
	}
	if err := oneOf("form", string(r.Form), "", string(FormDisk), string(FormInitramfs)); err != nil {
		return err
	}
	if err := ValidateEnv("env", r.Env); err != nil {
		return err
	}
	if err := ValidateLabels("labels", r.Labels); err != nil {
		return err
	}
	for _, list := range []struct {
		field string
		args  *[]string
	}{{"entrypoint", r.Entrypoint}, {"command", r.Command}} {
		if list.args == nil {
			continue
		}
		if n := len(*list.args); n > maxListLength {
			return fieldErr(list.field, "has %d elements; at most %d are allowed", n, maxListLength)
		}
		for i, a := range *list.args {
			if err := checkString(fmt.Sprintf("%s[%d]", list.field, i), a); err != nil {
				return err
			}
		}
	}
	if r.Workdir != "" && !path.IsAbs(r.Workdir) {
		return fieldErr("workdir", "%.80q is not an absolute path", r.Workdir)
	}
	if err := checkString("workdir", r.Workdir); err != nil {
		return err
	}
	if err := validateUser("user", r.User); err != nil {
		return err
	}
	if err := validateSignal("stop_signal", r.StopSignal); err != nil {
		return err
	}
	if err := ValidateTTL(r.TTLSeconds); err != nil {
		return err
	}
	if r.StopTimeout < 0 {
		return fieldErr("stop_timeout_ms", "is negative")
	}
	if err := ValidateHostname("hostname", r.Hostname); err != nil {
		return err
	}
	if err := oneOf("network_mode", r.NetworkMode, "", NetworkBridged, NetworkVsock, NetworkDHCP); err != nil {
		return err
	}
	if r.Root != nil {
		if err := validateRoot("root", *r.Root); err != nil {
			return err
		}
	}
	if r.HealthCheck != nil {
		if err := validateHealth("health_check", *r.HealthCheck, "", true); err != nil {
			return err
		}
	}
	if err := validateMounts(r.Volumes, r.Tmpfs); err != nil {
		return err
	}
	if err := validatePorts("ports", r.Ports, true); err != nil {
		return err
	}
	if err := validateDependencies("depends_on", r.DependsOn); err != nil {
		return err
	}
	if r.Restart != nil {
		if err := validateRestart("restart", *r.Restart); err != nil {
			return err
		}
		if r.AutoRemove && r.Restart.Policy != RestartNever {
			return fieldErr("auto_remove", "stands beside restart.policy %s: a VM is either removed when it ends, or started again", r.Restart.Policy)
		}
	}
	return nil
}
