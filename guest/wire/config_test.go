package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

func sampleBoot() BootConfig {
	return BootConfig{
		Protocol:    Protocol,
		Version:     "1.2.3",
		VM:          "01k2v3",
		Name:        "web",
		Incarnation: 4,
		Hostname:    "web.example",
		MachineID:   "0123456789abcdef0123456789abcdef",
		Time:        time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC),
		Seed:        bytes.Repeat([]byte{0xa5}, 32),
		Network: &NetworkConfig{
			MAC:         "02:56:c0:a8:7f:0a",
			Address:     netip.MustParsePrefix("192.168.127.10/24"),
			Gateway:     netip.MustParseAddr("192.168.127.1"),
			MTU:         1400,
			Nameservers: []netip.Addr{netip.MustParseAddr("192.168.127.1"), netip.MustParseAddr("2001:db8::53")},
			Search:      []string{"example"},
		},
		Workload: WorkloadConfig{
			Args: []string{"server", "--listen", ":8080"}, Env: []string{"A=b=c", "EMPTY="}, Workdir: "/srv", User: "1000:1000",
			Restart: RestartOnFailure, StopSignal: "SIGINT", StopTimeout: 3 * time.Second,
			BaseURL: "http://127.0.0.1:8080",
			Health:  &Health{HTTP: "http://127.0.0.1:8080/healthz", Timeout: time.Second, Interval: 5 * time.Second, Retries: 2},
		},
	}
}

// sampleRoot is the configuration of a VM whose root is a disk.
func sampleRoot() BootConfig {
	c := sampleBoot()
	c.Root = &RootConfig{Upper: UpperDisk}
	c.Mounts = []MountConfig{
		{Type: MountDisk, Target: "/data", Copy: true},
		{Type: MountTmpfs, Target: "/scratch", SizeMiB: 16, Mode: 0o1777, ReadOnly: true},
	}
	c.Workload.Health = &Health{Exec: []string{"/bin/true"}, StartPeriod: time.Minute}
	return c
}

func TestBootConfigRoundTrip(t *testing.T) {
	t.Run("appliance", func(t *testing.T) { bootRoundTrip(t, sampleBoot()) })
	t.Run("root", func(t *testing.T) { bootRoundTrip(t, sampleRoot()) })
}

func bootRoundTrip(t *testing.T, want BootConfig) {
	t.Helper()
	image, err := EncodeBoot(want)
	if err != nil {
		t.Fatal(err)
	}
	if len(image)%4096 != 0 {
		t.Errorf("the image has %d bytes, want a multiple of 4096", len(image))
	}
	got, err := DecodeBoot(iotest.HalfReader(bytes.NewReader(image)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("DecodeBoot(EncodeBoot(c)) = %+v, want %+v", got, want)
	}
}

func TestBootConfigGolden(t *testing.T) {
	got, err := EncodeBoot(sampleBoot())
	if err != nil {
		t.Fatal(err)
	}
	got = bytes.TrimRight(got, "\x00")
	path := filepath.Join("testdata", "boot.golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the image of the sample changed; a guest of an older daemon must still read it:\n%s\nwant\n%s", got, want)
	}
}

func TestDecodeBootRefuses(t *testing.T) {
	image, err := EncodeBoot(sampleBoot())
	if err != nil {
		t.Fatal(err)
	}
	edit := func(old, new string) []byte {
		if !bytes.Contains(image, []byte(old)) {
			t.Fatalf("the image does not hold %q", old)
		}
		return bytes.Replace(image, []byte(old), []byte(new), 1)
	}
	tests := []struct {
		name  string
		image []byte
		want  error
		text  string
	}{
		{"empty", nil, ErrNotBootConfig, "EOF"},
		{"an empty disk", make([]byte, 4096), ErrNotBootConfig, "begins with"},
		{"cut short", image[:300], ErrNotBootConfig, "unexpected EOF"},
		{"another layout", edit("config\n1\n", "config\n2\n"), ErrProtocol, `layout "2"`},
		{"flipped byte", edit(`"name":"web"`, `"name":"wab"`), ErrNotBootConfig, "digest"},
		{"huge length", edit("config\n1\n0000", "config\n1\n9999"), ErrNotBootConfig, "exceed"},
		{"odd length", edit("config\n1\n0000", "config\n1\n-000"), ErrNotBootConfig, "length"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := DecodeBoot(bytes.NewReader(tt.image))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("DecodeBoot() = %v, want %v with %q", err, tt.want, tt.text)
			}
			if !reflect.DeepEqual(cfg, BootConfig{}) {
				t.Errorf("DecodeBoot() returned %+v beside its error", cfg)
			}
		})
	}
}

// TestCheckProtocol holds the window: a host understands a guest that was started
// by the version before, and nobody whom it may misread.
func TestCheckProtocol(t *testing.T) {
	if MinProtocol < 1 || MinProtocol > max(1, Protocol-1) {
		t.Errorf("protocols %d to %d are understood, want the one before %d among them", MinProtocol, Protocol, Protocol)
	}
	for n := MinProtocol - 1; n <= Protocol+1; n++ {
		err := CheckProtocol(n, "0.9")
		if want := n >= MinProtocol && n <= Protocol; (err == nil) != want {
			t.Errorf("CheckProtocol(%d) = %v, want understood %t", n, err, want)
		}
		if err != nil && (!errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), `"0.9"`)) {
			t.Errorf("CheckProtocol(%d) = %v, want an ErrProtocol that names the other's version", n, err)
		}
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		field string // the error must name it
		edit  func(*BootConfig)
	}{
		{"protocol 99", func(c *BootConfig) { c.Protocol = 99 }},
		{"vm", func(c *BootConfig) { c.VM = "" }},
		{"incarnation", func(c *BootConfig) { c.Incarnation = 0 }},
		{"hostname", func(c *BootConfig) { c.Hostname = "a b" }},
		{"hostname", func(c *BootConfig) { c.Hostname = "-a" }},
		{"hostname", func(c *BootConfig) { c.Hostname = "a\nb" }},
		{"machine_id", func(c *BootConfig) { c.MachineID = strings.Repeat("A", 32) }},
		{"seed", func(c *BootConfig) { c.Seed = make([]byte, 31) }},
		{"time", func(c *BootConfig) { c.Time = time.Time{} }},
		{"mac", func(c *BootConfig) { c.Network.MAC = "02:56:c0:a8:7f:0A" }},
		{"mac", func(c *BootConfig) { c.Network.MAC = "02:56:c0:a8:7f" }},
		{"address", func(c *BootConfig) { c.Network.Address = netip.Prefix{} }},
		{"gateway", func(c *BootConfig) { c.Network.Gateway = netip.MustParseAddr("10.0.0.1") }},
		{"mtu", func(c *BootConfig) { c.Network.MTU = 100 }},
		{"search", func(c *BootConfig) { c.Network.Search = []string{"a\nnameserver 1.2.3.4"} }},
		{"args", func(c *BootConfig) { c.Workload.Args = nil }},
		{"args", func(c *BootConfig) { c.Workload.Args = []string{"a", "b\x00"} }},
		{"env", func(c *BootConfig) { c.Workload.Env = []string{"A"} }},
		{"env", func(c *BootConfig) { c.Workload.Env = []string{"=A"} }},
		{"restart", func(c *BootConfig) { c.Workload.Restart = "sometimes" }},
		{"workdir", func(c *BootConfig) { c.Workload.Workdir = "srv" }},
		{"stop_timeout", func(c *BootConfig) { c.Workload.StopTimeout = -1 }},
		{"base_url", func(c *BootConfig) { c.Workload.BaseURL = "127.0.0.1:80" }},
		{"restart_max", func(c *BootConfig) { c.Workload.RestartMax = -1 }},
		{"health", func(c *BootConfig) { c.Workload.Health.TCP = "127.0.0.1:80" }},
		{"tcp", func(c *BootConfig) { c.Workload.Health = &Health{TCP: "80"} }},
		{"health", func(c *BootConfig) { c.Workload.Health = &Health{HTTP: "ftp://a"} }},
		{"exactly one", func(c *BootConfig) { c.Workload.Health.Exec = []string{"true"} }},
		{"exec", func(c *BootConfig) { c.Workload.Health = &Health{Exec: []string{"", "x"}} }},
		{"exec", func(c *BootConfig) { c.Workload.Health = &Health{Exec: []string{"a\x00"}} }},
		{"start_period", func(c *BootConfig) { c.Workload.Health.StartPeriod = -1 }},
		{"upper", func(c *BootConfig) { c.Root.Upper = "" }},
		{"size_mib", func(c *BootConfig) { c.Root.SizeMiB = 64 }},
		{"size_mib", func(c *BootConfig) { c.Root = &RootConfig{Upper: UpperMemory, SizeMiB: -1} }},
		{"mounts: 0: type", func(c *BootConfig) { c.Mounts[0].Type = "nfs" }},
		{"mounts: 0: target", func(c *BootConfig) { c.Mounts[0].Target = "data" }},
		{"mounts: 0: target", func(c *BootConfig) { c.Mounts[0].Target = "/data/\x00" }},
		{"mounts: 0: target", func(c *BootConfig) { c.Mounts[0].Target = "/x/../" }},
		{"mounts: 0: target", func(c *BootConfig) { c.Mounts[0].Target = "/" + strings.Repeat("a/", 2048) }},
		{"mounts: 1: target", func(c *BootConfig) { c.Mounts[1].Target = "/var/../data/" }},
		{"mounts: 0: size_mib", func(c *BootConfig) { c.Mounts[0].SizeMiB = 1 }},
		{"mounts: 1: size_mib", func(c *BootConfig) { c.Mounts[1].SizeMiB = -1 }},
		{"mounts: 1: mode", func(c *BootConfig) { c.Mounts[1].Mode = 0o100644 }},
		{"mounts: 1: copy", func(c *BootConfig) { c.Mounts[1].Copy = true }},
		{"mounts: there are 129", func(c *BootConfig) { c.Mounts = make([]MountConfig, 129) }},
	}
	for _, tt := range tests {
		c := sampleRoot()
		c.Workload.Health = sampleBoot().Workload.Health
		tt.edit(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.field) {
			t.Errorf("Validate() = %v, want an error that names %q", err, tt.field)
		}
		if _, err := EncodeBoot(c); err == nil {
			t.Errorf("EncodeBoot accepted a bad %s", tt.field)
		}
	}
	c := sampleBoot()
	c.Workload.Env = []string{"A=" + strings.Repeat("x", 1<<20)}
	if _, err := EncodeBoot(c); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("EncodeBoot of 1 MiB of environment = %v, want an error about the limit", err)
	}
}

// TestBootFields sets every field of every struct, in turn and to several values,
// and reads what encoding/json made of it.
func TestBootFields(t *testing.T) {
	var fill func(v reflect.Value, n int)
	fill = func(v reflect.Value, n int) {
		switch p := v.Addr().Interface().(type) {
		case *time.Time:
			*p = time.Date(2026, 11, 23, 1, 2, 3, n*1000, time.UTC)
			return
		case *netip.Prefix:
			*p = netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", n))
			return
		case *netip.Addr:
			*p = netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), n+i)
			}
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), n)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
			for i := range 3 {
				fill(v.Index(i), n+i)
			}
		case reflect.String:
			v.SetString([]string{"plain", "", "<&> \"\\ \n\x00", "é\u2028\U0001f600", "\\", "torn \xff"}[n%6] + strconv.Itoa(n))
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int, reflect.Int64:
			v.SetInt(int64(n) * 1e9)
		case reflect.Uint8, reflect.Uint32:
			v.SetUint(uint64(n))
		default:
			t.Fatalf("fields of kind %s are not known here", v.Kind())
		}
	}
	for n := 1; n < 100; n += 7 {
		var cfg, want, got BootConfig
		fill(reflect.ValueOf(&cfg).Elem(), n)
		body, err := json.MarshalIndent(cfg, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatal(err)
		}
		r := jsonReader{b: body}
		got.read(&r)
		if err := r.end(); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v; got %+v, want %+v", err, got, want)
		}
	}
}

// TestJSONReader holds what is accepted, and what it means, against encoding/json.
func TestJSONReader(t *testing.T) {
	for _, body := range []string{
		`{}`, `null`, ` { } `, `{"vm":null,"seed":null,"time":null,"network":null,"mounts":null,"workload":null}`,
		`{"later":{"a":[1,-2.5e3,true,false,null,"x",{"y":[]}]},"vm":"a"}`, `{"vm":"\u0041\ud83d\ude00\ud800"}`, `{"v\u006d":"a"}`,
		`{"mounts":[{"mode":511,"copy":true},{}],"incarnation":-0}`, `{"workload":{"args":[],"env":[null,"A=b"]}}`,
		`{"network":{"address":"","gateway":""}}`, `{"vm":"a","vm":"b"}`,
		``, `{`, `}`, `[]`, `{"vm"}`, `{"vm":}`, `{"vm":"a",}`, `{,}`, `{"vm":"a" "name":"b"}`, `{"vm":"a"}}`, `{"vm":"a"} x`,
		`{"vm":"a`, `{"vm":"\x"}`, "{\"vm\":\"\n\"}", `{"vm":1}`, `{"incarnation":"1"}`, `{"incarnation":1.5}`, `{"incarnation":01}`, `{"incarnation":+1}`,
		`{"incarnation":99999999999999999999}`, `{"mounts":[{"mode":-1}]}`, `{"mounts":[{"mode":4294967296}]}`, `{"later":01}`, `{"later":nul}`, `{"later":[1,]}`,
		`{"seed":"*"}`, `{"time":"yesterday"}`, `{"workload":{"tty":1}}`, `{"workload":{"args":"a"}}`, `{"network":{"address":"192.0.2.1"}}`, "{\x00}", "{}\x00",
	} {
		var want, got BootConfig
		theirs := json.Unmarshal([]byte(body), &want)
		r := jsonReader{b: []byte(body)}
		got.read(&r)
		ours := r.end()
		if (ours == nil) != (theirs == nil) {
			t.Errorf("%s: %v, encoding/json: %v", body, ours, theirs)
		} else if ours == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", body, got, want)
		}
	}
	deep := jsonReader{b: []byte(`{"later":` + strings.Repeat("[", 1<<20))}
	new(BootConfig).read(&deep)
	if err := deep.end(); err == nil || !strings.Contains(err.Error(), "too deep") {
		t.Errorf("of what is deep: %v", err)
	}
}

// FuzzDecodeBoot reads images as they are, and JSON under a header that is in
// order, which no mutation would find.
func FuzzDecodeBoot(f *testing.F) {
	image, err := EncodeBoot(sampleBoot())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image, false)
	f.Add(image[:configHeader], false)
	f.Add(bytes.TrimRight(image[configHeader:], "\x00"), true)
	f.Add([]byte("{}"), true)
	if image, err = EncodeBoot(sampleRoot()); err != nil {
		f.Fatal(err)
	}
	f.Add(image, false)
	f.Add(bytes.TrimRight(image[configHeader:], "\x00"), true)
	f.Fuzz(func(t *testing.T, b []byte, isBody bool) {
		if isBody {
			b = fmt.Appendf(nil, "%s%s%012d\n%x\n%s", configMagic, configVersion, len(b), sha256.Sum256(b), b)
		}
		cfg, err := DecodeBoot(bytes.NewReader(b))
		if err != nil {
			return
		}
		var theirs BootConfig
		body := b[configHeader:]
		if n, _ := strconv.Atoi(string(b[len(configMagic)+len(configVersion):][:12])); json.Unmarshal(body[:n], &theirs) != nil {
			t.Fatalf("encoding/json refuses %q", body[:n])
		}
		once, err := EncodeBoot(cfg)
		if err != nil {
			t.Fatalf("EncodeBoot of what was decoded: %v", err)
		}
		back, err := DecodeBoot(bytes.NewReader(once))
		if err != nil {
			t.Fatalf("DecodeBoot of what was encoded: %v", err)
		}
		twice, err := EncodeBoot(back)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("second encoding differs (%v):\n%s\nwant\n%s", err, twice, once)
		}
	})
}
