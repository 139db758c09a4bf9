package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// account is who the workload runs as.
type account struct {
	syscall.Credential
	home string
}

// lookupUser finds "name", "uid", "name:group", "uid:gid" and their mixtures in
// the image's /etc/passwd and /etc/group; "" is root. As container runtimes
// have it: a number is never a name, and need not be in the files; its group is
// 0 then. The supplementary groups are those that list the user, unless a group
// is named.
func lookupUser(files Files, spec string) (account, error) {
	if spec == "" {
		spec = "0"
	}
	user, group, hasGroup := strings.Cut(spec, ":")
	passwd, err := readDatabase(files, "/etc/passwd")
	if err != nil {
		return account{}, err
	}
	groups, err := readDatabase(files, "/etc/group")
	if err != nil {
		return account{}, err
	}
	acct := account{home: "/"}
	name := ""
	uid, numeric := parseID(user)
	acct.Uid = uid
	entry := slices.IndexFunc(passwd, func(f []string) bool {
		if len(f) < 6 || !numeric {
			return len(f) >= 6 && f[0] == user
		}
		n, ok := parseID(f[2])
		return ok && n == uid
	})
	if entry >= 0 {
		f := passwd[entry]
		u, okU := parseID(f[2])
		g, okG := parseID(f[3])
		if !okU || !okG {
			return account{}, fmt.Errorf("user %q: malformed line in /etc/passwd", user)
		}
		name, acct.Uid, acct.Gid = f[0], u, g
		if strings.HasPrefix(f[5], "/") {
			acct.home = f[5]
		}
	} else if !numeric {
		return account{}, fmt.Errorf("user %q is not in the image's /etc/passwd", user)
	}
	if hasGroup {
		acct.Gid, err = lookupGroup(groups, group)
		return acct, err
	}
	for _, f := range groups {
		if name != "" && len(f) >= 4 && slices.Contains(strings.Split(f[3], ","), name) {
			if gid, ok := parseID(f[2]); ok && gid != acct.Gid {
				acct.Groups = append(acct.Groups, gid)
			}
		}
	}
	return acct, nil
}

func lookupGroup(groups [][]string, group string) (uint32, error) {
	if gid, ok := parseID(group); ok {
		return gid, nil
	}
	for _, f := range groups {
		if len(f) >= 3 && f[0] == group {
			if gid, ok := parseID(f[2]); ok {
				return gid, nil
			}
		}
	}
	return 0, fmt.Errorf("group %q is not in the image's /etc/group", group)
}

// parseID parses a uid or gid. The largest number means "no change" to the
// kernel and is refused.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && uint32(n) != ^uint32(0)
}

// readDatabase reads a file of colon-separated fields, passwd(5) or group(5).
// A file that is not there is empty.
func readDatabase(files Files, path string) ([][]string, error) {
	b, err := files.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var lines [][]string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' {
			lines = append(lines, strings.Split(line, ":"))
		}
	}
	return lines, nil
}
