package volar

import (
	"reflect"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
)

func TestParsePorts(t *testing.T) {
	for spec, want := range map[string][]api.Port{
		"8080:80":               {{HostPort: 8080, Port: 80, Protocol: "tcp"}},
		"80":                    {{Port: 80, Protocol: "tcp"}},
		"53:53/UDP":             {{HostPort: 53, Port: 53, Protocol: "udp"}},
		"0.0.0.0:8080:80":       {{HostPort: 8080, Port: 80, Protocol: "tcp"}},
		"127.0.0.1:5432:5432":   {{HostIP: "127.0.0.1", HostPort: 5432, Port: 5432, Protocol: "tcp"}},
		"127.0.0.1::80":         {{HostIP: "127.0.0.1", Port: 80, Protocol: "tcp"}},
		":8080:80":              {{HostPort: 8080, Port: 80, Protocol: "tcp"}},
		"8000-8001:80-81":       {{HostPort: 8000, Port: 80, Protocol: "tcp"}, {HostPort: 8001, Port: 81, Protocol: "tcp"}},
		"80-81/udp":             {{Port: 80, Protocol: "udp"}, {Port: 81, Protocol: "udp"}},
		"8080:80 127.0.0.1::80": {{HostPort: 8080, Port: 80, Protocol: "tcp"}, {HostIP: "127.0.0.1", Port: 80, Protocol: "tcp"}},
		"127.0.0.1:1:1 10.0.0.1:1:1": {
			{HostIP: "127.0.0.1", HostPort: 1, Port: 1, Protocol: "tcp"}, {HostIP: "10.0.0.1", HostPort: 1, Port: 1, Protocol: "tcp"},
		},
		"53:53 53:53/udp": {{HostPort: 53, Port: 53, Protocol: "tcp"}, {HostPort: 53, Port: 53, Protocol: "udp"}},
	} {
		got, err := parsePorts(strings.Fields(spec))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("parsePorts(%s) = %+v, %v, want %+v", spec, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"http":                      `the guest's port "http" is not a number`,
		"":                          `the guest's port "" is not a number`,
		"0":                         "not a number from 1 to 65535",
		"+80":                       "not a number from 1 to 65535",
		"8080:65536":                "not a number from 1 to 65535",
		":80":                       "no port before the colon",
		"x:80":                      `the host's port "x"`,
		"8000-8003:80":              "the ranges have 4 and 1 ports",
		"8000-8003:80-82":           "the ranges have 4 and 3 ports",
		"90-80":                     "runs backwards",
		"1-300:1-300":               "more than 256 ports",
		"80:80/sctp":                "neither tcp nor udp",
		"80:80/":                    "neither tcp nor udp",
		"[::1]:80:80":               "IPv4 addresses only",
		"::1:80:80":                 "IPv4 addresses only",
		"localhost:80:80":           `"localhost" is not an IPv4 address`,
		"127.0.0.1:80":              `the host's port "127.0.0.1"`,
		"80:80 80:81":               "port 80/tcp of the host is given twice",
		"127.0.0.1:80:80 80:81":     "given twice",
		"8000-8003:80-83 8002:9000": "port 8002/tcp of the host is given twice",
	} {
		specs := strings.Fields(spec)
		if spec == "" {
			specs = []string{""}
		}
		if got, err := parsePorts(specs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parsePorts(%q) = %+v, %v, want an error with %q", spec, got, err, want)
		}
	}
}

func TestPublishAll(t *testing.T) {
	got, err := publishAll(api.ImageConfig{ExposedPorts: []string{"443/tcp", "53/udp", "80/tcp", "9000-9001"}}, []api.Port{{HostPort: 8080, Port: 80, Protocol: "tcp"}})
	want := []api.Port{
		{HostPort: 8080, Port: 80, Protocol: "tcp"}, {Port: 443, Protocol: "tcp"}, {Port: 53, Protocol: "udp"},
		{Port: 9000, Protocol: "tcp"}, {Port: 9001, Protocol: "tcp"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("publishAll = %+v, %v, want %+v", got, err, want)
	}
	if got, err := publishAll(api.ImageConfig{ExposedPorts: []string{"$(reboot)"}}, nil); err == nil {
		t.Errorf("publishAll of nonsense = %+v, want an error", got)
	}
}

func TestPortWords(t *testing.T) {
	for want, ports := range map[string][]api.Port{
		"":                     nil,
		"80/tcp":               {{Port: 80}},
		"0.0.0.0:8080->80/tcp": {{HostPort: 8080, Port: 80, Protocol: "tcp"}},
		"127.0.0.1:53->53/udp": {{HostIP: "127.0.0.1", HostPort: 53, Port: 53, Protocol: "udp"}},
		"80-81/tcp, 53/udp":    {{Port: 53, Protocol: "udp"}, {Port: 81}, {Port: 80}},
		"80/tcp, 0.0.0.0:1->80/tcp, 0.0.0.0:81->81/tcp": {{HostPort: 1, Port: 80}, {HostPort: 81, Port: 81}, {Port: 80}},
		"0.0.0.0:8000-8003->80-83/tcp, 0.0.0.0:9->84/tcp": {
			{HostPort: 8001, Port: 81}, {HostPort: 8000, Port: 80}, {HostPort: 8003, Port: 83}, {HostPort: 8002, Port: 82}, {HostPort: 9, Port: 84},
		},
	} {
		if got := portWords(ports); got != want {
			t.Errorf("portWords(%+v) = %q, want %q", ports, got, want)
		}
	}
}

// FuzzParsePort checks that whatever is taken is a port that the API takes, and
// is written in words that name it.
func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"8080:80", "127.0.0.1::80/udp", "8000-8003:80-83", "[::1]:1:1", "1-", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := parsePort(s)
		if err != nil {
			return
		}
		if len(ports) == 0 || len(ports) > maxPortRange {
			t.Fatalf("parsePort(%q) gives %d ports", s, len(ports))
		}
		for _, p := range ports {
			if p.Port < 1 || p.Port > 65535 || p.HostPort < 0 || p.HostPort > 65535 || p.Protocol != api.ProtocolTCP && p.Protocol != api.ProtocolUDP {
				t.Errorf("parsePort(%q) gives %+v", s, p)
			}
		}
		if portWords(ports) == "" {
			t.Errorf("portWords(%+v) is empty", ports)
		}
	})
}
