package api

// MaxNameLength is the longest name of a VM, plugin or kernel, in bytes. It is
// the limit of a DNS label, RFC 1035 section 2.3.4.
const MaxNameLength = 63

// ValidateName checks a name of a VM, plugin or kernel: a DNS label in lower
// case, [a-z0-9]([-a-z0-9]*[a-z0-9])?. what says whose name it is ("VM").
func ValidateName(what, name string) error {
	if name == "" {
		return Errorf(CodeInvalid, "%s name is missing", what)
	}
	if len(name) > MaxNameLength {
		return Errorf(CodeInvalid, "%s name %.20q... has %d bytes; at most %d are allowed", what, name, len(name), MaxNameLength)
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(name)-1:
		default:
			return Errorf(CodeInvalid, "%s name %q is not valid at byte %d: use lower-case letters, digits and inner hyphens", what, name, i+1)
		}
	}
	return nil
}
