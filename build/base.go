package build

import (
	"io/fs"

	"github.com/volantvm/volant/initramfs"
)

// addBase adds what programs expect of any system, where the mappings have not
// put something else: mount points, the two device nodes that are wanted
// before devtmpfs is mounted, and the user database with root in it.
func addBase(t *tree) error {
	const origin = "the base system"
	for _, name := range [...]string{"dev", "etc", "proc", "root", "run", "sys", "tmp"} {
		if t.absent(name) {
			if err := t.addDir(name, origin); err != nil {
				return err
			}
		}
	}
	for _, d := range [...]struct {
		name         string
		mode         fs.FileMode
		major, minor uint32 // Documentation/admin-guide/devices.txt
	}{
		{"dev/console", 0o600, 5, 1},
		{"dev/null", 0o666, 1, 3},
	} {
		if !t.fits(d.name) {
			continue
		}
		e := initramfs.Entry{Name: d.name, Mode: fs.ModeDevice | fs.ModeCharDevice | d.mode, Major: d.major, Minor: d.minor}
		if err := t.add(&node{Entry: e, origin: origin}); err != nil {
			return err
		}
	}
	for _, f := range [...]struct{ name, data string }{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"etc/group", "root:x:0:\nnogroup:x:65534:\n"},
		{"etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
	} {
		if !t.fits(f.name) {
			continue
		}
		if err := t.addData(f.name, 0o644, f.data, origin); err != nil {
			return err
		}
	}
	return nil
}

// fits reports whether name is free and its path leads through directories.
func (t *tree) fits(name string) bool {
	if _, ok := t.nodes[name]; ok {
		return false
	}
	at, err := t.parentOf("/" + name)
	return err == nil && at == name
}

// addBusybox adds busybox and links for its applets that nothing else took.
func addBusybox(t *tree, host string, fi fs.FileInfo) error {
	const origin = "[source] busybox"
	if err := t.addFile("bin/busybox", host, fi, 0o755, origin); err != nil {
		return err
	}
	for _, applet := range [...]string{
		"ash", "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "dmesg", "echo",
		"env", "expr", "false", "find", "free", "grep", "head", "hostname", "id", "ip", "kill", "ln", "ls", "mkdir", "mknod",
		"mktemp", "more", "mount", "mv", "nc", "ping", "printf", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "sh",
		"sleep", "sort", "stat", "sync", "tail", "tar", "tee", "test", "top", "touch", "tr", "true", "umount", "uname", "uniq",
		"vi", "wc", "wget", "which", "xargs",
	} {
		if name := "bin/" + applet; t.fits(name) {
			if err := t.addSymlink(name, "busybox", origin); err != nil {
				return err
			}
		}
	}
	return nil
}
