package volar

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// mounts is what --volume and --tmpfs ask for.
type mounts struct {
	volumes []api.VolumeMount
	// folders are the host's: each is packed and uploaded, and its digest then
	// stands in the volume.
	folders []hostFolder
	tmpfs   []api.Tmpfs
	notes   []string // for the user
}

// hostFolder is a folder of the host for volumes[volume].
type hostFolder struct {
	dir    string
	volume int
}

const volumeForms = "give NAME:/path[:ro|:nocopy|:size=1g] for a volume, /path for one of the VM's own, or /host/folder:/path[:ro] for a copy of a folder"

// parseMounts reads the values of --volume and --tmpfs.
func parseMounts(volumes, tmpfs []string) (mounts, error) {
	var m mounts
	targets := map[string]bool{}
	once := func(flag, spec, target string) error {
		if targets[target] {
			return usagef("%s %q: something is mounted on %s already", flag, spec, target)
		}
		targets[target] = true
		return nil
	}
	for _, spec := range volumes {
		target, err := m.addVolume(spec)
		if err == nil {
			err = once("--volume", spec, target)
		}
		if err != nil {
			return m, err
		}
	}
	for _, spec := range tmpfs {
		t, err := parseTmpfs(spec)
		if err == nil {
			err = once("--tmpfs", spec, t.Target)
		}
		if err != nil {
			return m, err
		}
		m.tmpfs = append(m.tmpfs, t)
	}
	return m, nil
}

// addVolume reads one value of --volume and returns where it is mounted.
func (m *mounts) addVolume(spec string) (target string, err error) {
	bad := func(hint, format string, args ...any) (string, error) {
		return "", &usageError{msg: fmt.Sprintf("--volume %q: %s", spec, fmt.Sprintf(format, args...)), hint: hint}
	}
	parts := strings.Split(spec, ":")
	if len(parts) == 1 {
		target, err := mountTarget(spec)
		if err != nil {
			return bad(volumeForms, "%v", err)
		}
		m.volumes = append(m.volumes, api.VolumeMount{Target: target})
		return target, nil
	}
	if len(parts) > 3 {
		return bad(volumeForms, "it has too many colons")
	}
	source := parts[0]
	if target, err = mountTarget(parts[1]); err != nil {
		return bad(volumeForms, "%v", err)
	}
	folder := isPath(source)
	v := api.VolumeMount{Target: target}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			key, value, _ := strings.Cut(o, "=")
			switch {
			case o == "ro":
				v.ReadOnly = true
			case o == "rw" && folder:
				return bad("leave out :rw, or use a named volume for what the VM writes", "a folder of the host reaches a microVM as a read-only copy: it has a disk, not the host's files")
			case o == "rw":
			case o == "nocopy" && !folder:
				v.NoCopy = true
			case key == "size" && !folder:
				if v.SizeMB, err = parseMiB("--volume size", value, api.MaxDiskMB); err != nil {
					return "", err
				}
				if v.SizeMB < api.MinDiskMB {
					return bad("", "a volume has at least %d MiB", api.MinDiskMB)
				}
			case o == "z", o == "Z": // SELinux labels, which concern no microVM
			default:
				return bad(volumeForms, "option %q is not known here", o)
			}
		}
	}
	if !folder {
		if err := api.ValidateName("volume", source); err != nil {
			return bad(volumeForms+"; a folder's path begins with / or ./", "%v", err)
		}
		v.Name = source
		m.volumes = append(m.volumes, v)
		return target, nil
	}
	st, err := os.Stat(source)
	switch {
	case err != nil && os.IsNotExist(err):
		return bad("make the folder first, or give NAME:"+target+" for a volume", "there is no folder %s", source)
	case err != nil:
		return bad("", "%v", err)
	case st.Mode().IsRegular():
		return bad("give the folder that it is in, or put the file into the image", "%s is a file; only whole folders can be mounted", source)
	case !st.IsDir():
		return bad("", "%s is a %s; only folders can be mounted", source, kindWords(st.Mode()))
	}
	abs, err := filepath.Abs(source)
	if err != nil {
		return "", err
	}
	switch abs {
	case "/", "/proc", "/sys", "/dev":
		return bad("name the folder that the VM needs", "%s is the host itself, and cannot be copied", abs)
	}
	m.notes = append(m.notes, fmt.Sprintf("--volume %s: the VM gets a read-only copy of the folder as it is now", abs))
	v.ReadOnly = true
	m.folders = append(m.folders, hostFolder{abs, len(m.volumes)})
	m.volumes = append(m.volumes, v)
	return target, nil
}

func kindWords(m fs.FileMode) string {
	switch {
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	}
	return "special file"
}

// mountTarget checks a path in the guest and returns it clean.
func mountTarget(s string) (string, error) {
	if !path.IsAbs(s) {
		return "", fmt.Errorf("%q is not an absolute path in the VM", s)
	}
	if slices.Contains(strings.Split(s, "/"), "..") {
		return "", fmt.Errorf("%q holds \"..\"", s)
	}
	clean := path.Clean(s)
	if clean == "/" {
		return "", fmt.Errorf("nothing can be mounted on the root itself")
	}
	return clean, nil
}

// parseTmpfs reads one value of --tmpfs: PATH[:size=64m,mode=1777].
func parseTmpfs(spec string) (t api.Tmpfs, err error) {
	target, options, _ := strings.Cut(spec, ":")
	if t.Target, err = mountTarget(target); err != nil {
		return t, usagef("--tmpfs %q: %v", spec, err)
	}
	if options == "" {
		return t, nil
	}
	for _, o := range strings.Split(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "size":
			if t.SizeMB, err = parseMiB("--tmpfs size", value, api.MaxMemoryMB); err != nil {
				return t, err
			}
		case key == "mode":
			mode, err := strconv.ParseUint(value, 8, 12)
			if err != nil {
				return t, usagef("--tmpfs %q: mode %q is not an octal number up to 7777", spec, value)
			}
			t.Mode = strconv.FormatUint(mode, 8)
		case o == "rw", o == "exec", o == "nosuid", o == "nodev": // it is so anyway
		default:
			return t, usagef("--tmpfs %q: option %q is not known here; give size= and mode=", spec, o)
		}
	}
	return t, nil
}
