package volar

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// maxPortRange is how many ports one --publish may name: each is a rule of the
// host's firewall and a row of the daemon's.
const maxPortRange = 256

// parsePorts reads the values of --publish.
func parsePorts(specs []string) ([]api.Port, error) {
	var out []api.Port
	for _, s := range specs {
		ports, err := parsePort(s)
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			if slices.ContainsFunc(out, p.Conflicts) {
				return nil, usagef("--publish %q: port %d/%s of the host is given twice", s, p.HostPort, p.Protocol)
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// parsePort reads one value: [[IP:][HOST]:]GUEST[/PROTOCOL], where HOST and GUEST
// are ports or, of one length, ranges.
func parsePort(spec string) ([]api.Port, error) {
	bad := func(format string, args ...any) ([]api.Port, error) {
		return nil, &usageError{
			msg:  fmt.Sprintf("--publish %q: %s", spec, fmt.Sprintf(format, args...)),
			hint: "give [IP:]HOST:GUEST[/udp], such as 8080:80, 127.0.0.1:5432:5432 or 8000-8003:80-83, or GUEST alone for a host port of the daemon's choice",
		}
	}
	rest, protocol, given := strings.Cut(spec, "/")
	if !given {
		protocol = api.ProtocolTCP
	}
	if protocol = strings.ToLower(protocol); protocol != api.ProtocolTCP && protocol != api.ProtocolUDP {
		return bad("protocol %q is neither tcp nor udp", protocol)
	}
	if strings.ContainsAny(rest, "[]") || strings.Count(rest, ":") > 2 {
		return bad("ports are published on IPv4 addresses only")
	}
	parts := strings.Split(rest, ":")
	guest, err := parseRange(parts[len(parts)-1])
	if err != nil {
		return bad("the guest's port %v", err)
	}
	var hostIP string
	if len(parts) == 3 && parts[0] != "" {
		addr, err := netip.ParseAddr(parts[0])
		if err != nil || !addr.Is4() {
			return bad("%q is not an IPv4 address", parts[0])
		}
		if !addr.IsUnspecified() {
			hostIP = addr.String()
		}
	}
	host := portRange{} // ports of the daemon's choice
	if len(parts) > 1 {
		if text := parts[len(parts)-2]; text != "" {
			if host, err = parseRange(text); err != nil {
				return bad("the host's port %v", err)
			}
			if host.n != guest.n {
				return bad("the ranges have %d and %d ports", host.n, guest.n)
			}
		} else if len(parts) == 2 {
			return bad("there is no port before the colon")
		}
	}
	out := make([]api.Port, guest.n)
	for i := range out {
		out[i] = api.Port{HostIP: hostIP, Port: guest.first + i, Protocol: protocol}
		if host.n != 0 {
			out[i].HostPort = host.first + i
		}
	}
	return out, nil
}

// portRange is n ports from first on.
type portRange struct{ first, n int }

func parseRange(s string) (portRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	first, err := parsePortNumber(from)
	if err != nil || !isRange {
		return portRange{first, 1}, err
	}
	last, err := parsePortNumber(to)
	switch {
	case err != nil:
		return portRange{}, err
	case last < first:
		return portRange{}, fmt.Errorf("range %s runs backwards", s)
	case last-first >= maxPortRange:
		return portRange{}, fmt.Errorf("range %s has more than %d ports", s, maxPortRange)
	}
	return portRange{first, last - first + 1}, nil
}

func parsePortNumber(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a number from 1 to 65535", s)
	}
	return int(n), nil
}

// publishAll returns what --publish-all adds to ports: each port that the image
// exposes and ports does not publish, on host ports of the daemon's choice.
func publishAll(image api.ImageConfig, ports []api.Port) ([]api.Port, error) {
	m, err := api.ImageManifest("image", image)
	if err != nil {
		return nil, fmt.Errorf("--publish-all: the image's %w", err)
	}
	for _, p := range m.Ports {
		if !slices.ContainsFunc(ports, func(q api.Port) bool { return q.Port == p.Port && q.Protocol == p.Protocol }) {
			ports = append(ports, p)
		}
	}
	return ports, nil
}

// portWords writes ports as docker does: "0.0.0.0:8080->80/tcp, 9000/tcp", with
// ranges where neighbours fit.
func portWords(ports []api.Port) string {
	sorted := slices.Clone(ports)
	for i := range sorted {
		p := &sorted[i]
		p.Protocol = cmp.Or(p.Protocol, api.ProtocolTCP)
		if p.HostPort != 0 {
			p.HostIP = cmp.Or(p.HostIP, "0.0.0.0")
		} else {
			p.HostIP = ""
		}
	}
	slices.SortFunc(sorted, func(a, b api.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.HostPort, b.HostPort))
	})
	var words []string
	for len(sorted) > 0 {
		first, n := sorted[0], 1
		for n < len(sorted) && follows(first, sorted[n], n) {
			n++
		}
		word := rangeWords(first.Port, n) + "/" + first.Protocol
		if first.HostPort != 0 {
			word = first.HostIP + ":" + rangeWords(first.HostPort, n) + "->" + word
		}
		words, sorted = append(words, word), sorted[n:]
	}
	return strings.Join(words, ", ")
}

// follows reports whether p is the n-th port after first.
func follows(first, p api.Port, n int) bool {
	host := first.HostPort
	if host != 0 {
		host += n
	}
	return p.Protocol == first.Protocol && p.HostIP == first.HostIP && p.Port == first.Port+n && p.HostPort == host
}

func rangeWords(first, n int) string {
	if n == 1 {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, first+n-1)
}
