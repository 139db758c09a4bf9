package kernel

import "bytes"

const (
	bannerPrefix = "Linux version " // init/version-timestamp.c, linux_banner
	maxVersion   = 64               // __NEW_UTS_LEN, the longest uname -r
)

// bannerScanner finds the kernel's version in the bytes written to it. The prefix
// occurs elsewhere as a format string, so a digit must follow.
type bannerScanner struct {
	version string // empty until found
	tail    []byte // the end of the last write, for a banner across two
}

func (s *bannerScanner) Write(p []byte) (int, error) {
	if s.version != "" {
		return len(p), nil
	}
	const overlap = len(bannerPrefix) + maxVersion + 1 // the space that ends it
	// Look at the seam alone, then at p itself: p is not copied.
	if len(s.tail) > 0 {
		s.version = findVersion(append(s.tail, p[:min(len(p), overlap)]...))
	}
	if s.version == "" {
		s.version = findVersion(p)
	}
	if len(p) >= overlap {
		s.tail = append(s.tail[:0], p[len(p)-overlap:]...)
	} else {
		s.tail = append(s.tail, p...)
		s.tail = s.tail[max(0, len(s.tail)-overlap):]
	}
	return len(p), nil
}

// findVersion returns the first whole version after the banner's prefix in b.
func findVersion(b []byte) string {
	for {
		i := bytes.Index(b, []byte(bannerPrefix))
		if i < 0 {
			return ""
		}
		b = b[i+len(bannerPrefix):]
		if v := versionAt(b); v != "" {
			return v
		}
	}
}

// versionAt returns the version that b begins with: a digit, then at most
// maxVersion-1 characters that distributions use, then a space.
func versionAt(b []byte) string {
	if len(b) == 0 || b[0] < '0' || b[0] > '9' {
		return ""
	}
	for i, c := range b[:min(len(b), maxVersion+1)] {
		switch {
		case c == ' ':
			return string(b[:i])
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z',
			c == '.', c == '-', c == '+', c == '_', c == '~':
		default:
			return ""
		}
	}
	return ""
}
