package api

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func list(s ...string) *[]string { return &s }

func TestImageManifest(t *testing.T) {
	m, err := ImageManifest("nginx", ImageConfig{
		Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"},
		Env: []string{"PATH=/bin", "A=1", "A=b=c", "NOVALUE"}, WorkingDir: "srv", User: "nginx:www", StopSignal: "SIGQUIT",
		ExposedPorts: []string{"80/tcp", "53/udp", "9000-9001", "7/sctp"},
		Healthcheck:  &ImageHealthcheck{Test: []string{"CMD-SHELL", "curl -f localhost"}, StartPeriod: 1500 * time.Microsecond},
		Labels:       map[string]string{"org.opencontainers.image.version": "1.27", "big": strings.Repeat("x", 5000)},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Manifest{
		SchemaVersion: "1", Name: "nginx", Version: "1.27",
		Workload: &Workload{
			Type: WorkloadExec, Entrypoint: []string{"/docker-entrypoint.sh", "nginx", "-g", "daemon off;"},
			Env: map[string]string{"PATH": "/bin", "A": "b=c"}, Workdir: "/srv", User: "nginx:www", StopSignal: "SIGQUIT",
		},
		HealthCheck: &HealthCheck{
			Exec: []string{"/bin/sh", "-c", "curl -f localhost"}, IntervalMS: 30000, TimeoutMS: 30000, Retries: 3, StartPeriodMS: 2,
		},
		Ports: []Port{
			{Port: 80, Protocol: "tcp"}, {Port: 53, Protocol: "udp"}, {Port: 9000, Protocol: "tcp"}, {Port: 9001, Protocol: "tcp"},
		},
		Labels: map[string]string{"org.opencontainers.image.version": "1.27"},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("ImageManifest = %+v\nwant %+v", m, want)
	}
}

func TestImageManifestHealth(t *testing.T) {
	for name, c := range map[string]struct {
		check *ImageHealthcheck
		want  []string // of Exec; nil for no check
		err   string
	}{
		"none":            {nil, nil, ""},
		"inherited":       {&ImageHealthcheck{}, nil, ""},
		"switched off":    {&ImageHealthcheck{Test: []string{"NONE"}}, nil, ""},
		"command":         {&ImageHealthcheck{Test: []string{"CMD", "/check", "x"}}, []string{"/check", "x"}, ""},
		"shell":           {&ImageHealthcheck{Test: []string{"CMD-SHELL", "a | b"}}, []string{"/bin/sh", "-c", "a | b"}, ""},
		"no command":      {&ImageHealthcheck{Test: []string{"CMD"}}, nil, "config.Healthcheck.Test: names no command"},
		"two lines":       {&ImageHealthcheck{Test: []string{"CMD-SHELL", "a", "b"}}, nil, "CMD-SHELL takes one"},
		"of another kind": {&ImageHealthcheck{Test: []string{"HTTP", "/"}}, nil, `"HTTP" is not known`},
		"negative":        {&ImageHealthcheck{Test: []string{"CMD", "a"}, Timeout: -1}, nil, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ImageManifest("x", ImageConfig{Healthcheck: c.check})
			if c.err != "" {
				if CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want invalid with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if m.HealthCheck != nil {
				got = m.HealthCheck.Exec
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("Exec = %q, want %q", got, c.want)
			}
		})
	}
}

func TestImageManifestRefuses(t *testing.T) {
	for name, cfg := range map[string]ImageConfig{
		"variable without a name": {Env: []string{"=x"}},
		"port 0":                  {ExposedPorts: []string{"0/tcp"}},
		"port of a word":          {ExposedPorts: []string{"http"}},
		"range backwards":         {ExposedPorts: []string{"20-10"}},
		"too many ports":          {ExposedPorts: []string{"1-60000"}},
	} {
		if _, err := ImageManifest("x", cfg); CodeOf(err) != CodeInvalid || !strings.HasPrefix(err.Error(), "config.") {
			t.Errorf("%s: error %v, want invalid with the field's path", name, err)
		}
	}
}

// The table of Dockerfile(5)'s "Understand how CMD and ENTRYPOINT interact",
// with what docker run puts over it.
func TestComposeCommand(t *testing.T) {
	full := ImageConfig{Entrypoint: []string{"/e", "1"}, Cmd: []string{"c", "2"}}
	onlyCmd := ImageConfig{Cmd: []string{"/c", "2"}}
	for name, c := range map[string]struct {
		image ImageConfig
		req   VMCreate
		want  string // "" for an error
	}{
		"as it is":                 {full, VMCreate{}, "/e 1 c 2"},
		"command":                  {full, VMCreate{Command: list("x")}, "/e 1 x"},
		"no command":               {full, VMCreate{Command: list()}, "/e 1"},
		"entrypoint":               {full, VMCreate{Entrypoint: list("/x")}, "/x"},
		"both":                     {full, VMCreate{Entrypoint: list("/x"), Command: list("y")}, "/x y"},
		"entrypoint cleared":       {full, VMCreate{Entrypoint: list()}, ""},
		"cleared, and a command":   {full, VMCreate{Entrypoint: list(), Command: list("/y")}, "/y"},
		"command of a command":     {onlyCmd, VMCreate{Command: list("sh")}, "sh"},
		"image without, a command": {ImageConfig{}, VMCreate{Command: list("sh")}, "sh"},
		"image without anything":   {ImageConfig{}, VMCreate{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			base := imageBase(t, c.image)
			before := slices.Clone(base.Workload.Entrypoint)
			m, err := Compose(base, &c.image, c.req)
			if c.want == "" {
				if CodeOf(err) != CodeInvalid {
					t.Fatalf("error %v, want invalid", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(m.Workload.Entrypoint, " "); got != c.want {
				t.Errorf("runs %q, want %q", got, c.want)
			}
			if !slices.Equal(base.Workload.Entrypoint, before) {
				t.Errorf("the base was altered: %q, was %q", base.Workload.Entrypoint, before)
			}
		})
	}
}

func imageBase(t *testing.T, cfg ImageConfig) Manifest {
	t.Helper()
	m, err := ImageManifest("img", cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Rootfs = &Rootfs{URL: "x", Checksum: "sha256:" + strings.Repeat("a", 64)}
	m.Resources = Resources{CPUCores: 1, MemoryMB: 256}
	return m
}

func TestCompose(t *testing.T) {
	image := ImageConfig{Entrypoint: []string{"/e"}, Volumes: []string{"/data", "/cache/", "/proc"}}
	base := imageBase(t, image)
	base.Volumes = []VolumeMount{{Name: "one", Target: "/one"}, {Name: "two", Target: "/two"}}
	base.Tmpfs = []Tmpfs{{Target: "/tmp"}}
	m, err := Compose(base, &image, VMCreate{
		Workdir: "/w", User: "u", StopSignal: "SIGINT", StopTimeout: 1500, TTY: true, Stdin: true, Init: true, Hostname: "db.example", Kernel: "k", NetworkMode: NetworkVsock,
		Root: &Root{Mode: RootReadOnly}, Volumes: []VolumeMount{{Name: "mine", Target: "/two"}, {Name: "data", Target: "/data"}},
		Tmpfs: []Tmpfs{{Target: "/tmp", SizeMB: 5}}, Restart: &Restart{Policy: "always"},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := m.Workload
	if w.Workdir != "/w" || w.User != "u" || w.StopSignal != "SIGINT" || w.StopTimeout != 1500 || !w.TTY || !w.Stdin || !w.Init {
		t.Errorf("workload %+v", w)
	}
	if m.Hostname != "db.example" || m.Kernel != "k" || m.Network.Mode != NetworkVsock || m.Root.Mode != RootReadOnly || m.Restart.Policy != "always" {
		t.Errorf("manifest %+v", m)
	}
	// The image's own volumes stay writable under a read-only root.
	if want := []VolumeMount{{Name: "one", Target: "/one"}, {Name: "mine", Target: "/two"}, {Name: "data", Target: "/data"}, {Target: "/cache"}}; !slices.Equal(m.Volumes, want) {
		t.Errorf("volumes %+v, want %+v", m.Volumes, want)
	}
	if want := []Tmpfs{{Target: "/tmp", SizeMB: 5}}; !slices.Equal(m.Tmpfs, want) {
		t.Errorf("tmpfs %+v, want %+v", m.Tmpfs, want)
	}
	if base.Network != nil || base.Root != nil || len(base.Volumes) != 2 || base.Workload.User != "" {
		t.Errorf("the base was altered: %+v", base)
	}
}

func TestComposePlugin(t *testing.T) {
	base := imageBase(t, ImageConfig{Entrypoint: []string{"/serve"}})
	same, err := Compose(base, nil, VMCreate{Env: map[string]string{"SECRET": "x"}, CPUCores: 4, Labels: map[string]string{"a": "b"}})
	if err != nil || !reflect.DeepEqual(same, base) {
		t.Errorf("Compose = %+v, %v; want the base, which says all that is not the VM's own", same, err)
	}
	more, err := Compose(base, nil, VMCreate{Command: list("--debug")})
	if err != nil || strings.Join(more.Workload.Entrypoint, " ") != "/serve --debug" {
		t.Errorf("Compose = %v, %v; want the command behind the entrypoint", more.Workload.Entrypoint, err)
	}
	base.Rootfs, base.Initramfs = nil, &Initramfs{URL: "x"}
	if _, err := Compose(base, nil, VMCreate{Root: &Root{}}); CodeOf(err) != CodeInvalid || !strings.HasPrefix(err.Error(), "root:") {
		t.Errorf("Compose of a root and an initramfs: %v, want invalid", err)
	}
}

func TestMergePorts(t *testing.T) {
	got := MergePorts([]Port{{Port: 80, Protocol: "tcp"}, {Port: 53, Protocol: "udp"}, {Port: 22, HostPort: 2222}},
		[]Port{{Port: 80}, {Port: 22}})
	if want := []Port{{Port: 53, Protocol: "udp"}, {Port: 22, HostPort: 2222}, {Port: 80}, {Port: 22}}; !slices.Equal(got, want) {
		t.Errorf("MergePorts = %+v, want %+v", got, want)
	}
}

func TestPortConflicts(t *testing.T) {
	for _, c := range []struct {
		a, b Port
		want bool
	}{
		{Port{HostPort: 80}, Port{HostPort: 80}, true},
		{Port{HostPort: 80}, Port{HostPort: 80, Protocol: "tcp"}, true},
		{Port{HostPort: 80}, Port{HostPort: 80, Protocol: "udp"}, false},
		{Port{HostPort: 80}, Port{HostPort: 81}, false},
		{Port{}, Port{}, false},
		{Port{HostPort: 80, HostIP: "10.0.0.1"}, Port{HostPort: 80, HostIP: "10.0.0.2"}, false},
		{Port{HostPort: 80, HostIP: "10.0.0.1"}, Port{HostPort: 80, HostIP: "10.0.0.1"}, true},
		{Port{HostPort: 80, HostIP: "10.0.0.1"}, Port{HostPort: 80}, true},
		{Port{HostPort: 80, HostIP: "10.0.0.1"}, Port{HostPort: 80, HostIP: "0.0.0.0"}, true},
	} {
		if c.a.Conflicts(c.b) != c.want || c.b.Conflicts(c.a) != c.want {
			t.Errorf("%+v and %+v: conflict is not %v", c.a, c.b, c.want)
		}
	}
}

func TestImageName(t *testing.T) {
	for ref, want := range map[string]string{
		"docker.io/library/nginx:alpine":     "nginx",
		"localhost:5000/team/My_App@sha256:": "my-app",
		"registry.example:5000/a/b":          "b",
		"x":                                  "x",
		"":                                   "image",
		"a/___":                              "image",
		"a/" + strings.Repeat("b", 100):      strings.Repeat("b", 51),
		"sha256:aaaa":                        "sha256",
	} {
		if got := ImageName(ref); got != want {
			t.Errorf("ImageName(%q) = %q, want %q", ref, got, want)
		} else if err := ValidateName("VM", got+"-12345678"); err != nil {
			t.Errorf("ImageName(%q): %v", ref, err)
		}
	}
}

func TestComposeHealth(t *testing.T) {
	image := ImageConfig{Cmd: []string{"/e"}, Healthcheck: &ImageHealthcheck{Test: []string{"CMD", "/check"}, Interval: 5 * time.Second, Retries: 7}}
	served := imageBase(t, ImageConfig{Cmd: []string{"/e"}})
	served.Workload.BaseURL = "http://127.0.0.1"
	off := served
	off.HealthCheck = &HealthCheck{Disable: true}
	own := &HealthCheck{Exec: []string{"/check"}, IntervalMS: 5000, TimeoutMS: 30_000, Retries: 7}
	implied := &HealthCheck{TCP: "127.0.0.1:80"}
	for name, c := range map[string]struct {
		base Manifest
		over *HealthCheck
		want *HealthCheck // of Check
		err  string
	}{
		"as it is":              {imageBase(t, image), nil, own, ""},
		"numbers":               {imageBase(t, image), &HealthCheck{IntervalMS: 1, StartPeriodMS: 2}, &HealthCheck{Exec: own.Exec, IntervalMS: 1, TimeoutMS: 30_000, Retries: 7, StartPeriodMS: 2}, ""},
		"another question":      {imageBase(t, image), &HealthCheck{TCP: "127.0.0.1:1"}, &HealthCheck{TCP: "127.0.0.1:1", IntervalMS: 5000, TimeoutMS: 30_000, Retries: 7}, ""},
		"none":                  {imageBase(t, image), &HealthCheck{Disable: true}, nil, ""},
		"implied":               {served, nil, implied, ""},
		"implied, numbers":      {served, &HealthCheck{Retries: 1}, &HealthCheck{TCP: "127.0.0.1:80", Retries: 1}, ""},
		"a first one":           {imageBase(t, ImageConfig{Cmd: []string{"/e"}}), &HealthCheck{Exec: []string{"/c"}, TimeoutMS: 9}, &HealthCheck{Exec: []string{"/c"}, IntervalMS: 30_000, TimeoutMS: 9, Retries: 3}, ""},
		"none of the implied":   {served, &HealthCheck{Disable: true}, nil, ""},
		"switched off":          {off, nil, nil, ""},
		"switched on again":     {off, &HealthCheck{Endpoint: "/up"}, &HealthCheck{Endpoint: "/up"}, ""},
		"numbers of nothing":    {imageBase(t, ImageConfig{Cmd: []string{"/e"}}), &HealthCheck{Retries: 1}, nil, "health_check: has none of"},
		"a path without a base": {imageBase(t, image), &HealthCheck{Endpoint: "/up"}, nil, "health_check.endpoint: needs workload.base_url"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Compose(c.base, &image, VMCreate{HealthCheck: c.over})
			if c.err != "" {
				if CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("Compose = %v, want invalid with %q", err, c.err)
				}
				return
			}
			if got := m.Check(); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("check is %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
	for _, req := range []VMCreate{
		{HealthCheck: &HealthCheck{Retries: -1}}, {HealthCheck: &HealthCheck{Retries: maxHealthRetries + 1}}, {HealthCheck: &HealthCheck{TimeoutMS: maxHealthMS + 1}},
		{HealthCheck: &HealthCheck{TCP: "80"}}, {HealthCheck: &HealthCheck{Exec: []string{""}}}, {HealthCheck: &HealthCheck{Exec: []string{"a\x00"}}},
		{HealthCheck: &HealthCheck{Disable: true, Retries: 1}}, {HealthCheck: &HealthCheck{TCP: "a:1", Endpoint: "/"}},
	} {
		if err := req.Validate(); CodeOf(err) != CodeInvalid || !strings.HasPrefix(err.Error(), "health_check") {
			t.Errorf("Validate(%+v) = %v, want invalid", *req.HealthCheck, err)
		}
	}
}
