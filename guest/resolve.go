package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through, as in
// path_resolution(7).
const maxLinks = 40

// resolve returns where name leads when files is the root: links are followed
// as the kernel does for a process with that root, absolute ones and ".." never
// lead out. The result is absolute and free of links and dots; from the first
// name that does not exist on it is taken literally. It holds for as long as
// nobody else changes the files, that is, before the workload starts.
func resolve(files Files, name string) (string, error) {
	at, rest := "/", name
	for links := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		target, err := files.Readlink(next)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", &fs.PathError{Op: "resolve", Path: name, Err: unix.ELOOP}
			}
			if path.IsAbs(target) {
				at = "/"
			}
			rest = target + "/" + rest
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR):
			at = next // not a link
		default:
			return "", err
		}
	}
	return at, nil
}

// resolveOwn is resolve for a path that something of the machine's is to be
// mounted at. It refuses one that leads into what the kernel or kestrel has
// mounted: an image must not choose what the guest sees of itself. What is
// below /dev, as /dev/shm, is the user's to choose.
func resolveOwn(files Files, name string) (string, error) {
	at, err := resolve(files, name)
	if err != nil {
		return "", err
	}
	for _, taken := range []string{"/proc", "/sys", "/dev"} {
		if at == "/" || at == taken || taken != "/dev" && strings.HasPrefix(at, taken+"/") {
			if clean := path.Clean(name); clean != at {
				return "", fmt.Errorf("%s leads to %s in this image, which is the machine's own", clean, at)
			}
			return "", fmt.Errorf("%s is the machine's own", at)
		}
	}
	return at, nil
}
