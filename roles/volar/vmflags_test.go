package volar

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
)

func TestParseMiB(t *testing.T) {
	for s, want := range map[string]int{
		"512": 512, "512m": 512, "512M": 512, "512MB": 512, "512MiB": 512, "1g": 1024, "1.5g": 1536, "1GB": 1024, "2tib": 2 << 20,
		"1048576k": 1024, "1b": 1, "536870912b": 512, "100k": 1, "0.5": 1,
	} {
		if got, err := parseMiB("--memory", s, api.MaxDiskMB); err != nil || got != want {
			t.Errorf("parseMiB(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "not a number", "m": "not a number", "-1g": "not a number", "+1g": "not a number", "1e3": "not a number", "0x10": "not a number", "1_0": "not a number",
		"inf": "not a number", "nan": "not a number", "1.2.3": "not a number", "512q": "not a number", "1mm": `"mm" is no unit`, "1gk": "is no unit",
		"0": "nothing", "0g": "nothing", "536870912": "more than", "99999999999999999999t": "more than",
	} {
		if got, err := parseMiB("--memory", s, api.MaxDiskMB); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseMiB(%q) = %d, %v, want an error with %q", s, got, err, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	text := "\ufeff# a comment\nA=file\r\n\n  B=two words = here\nHOME\nABSENT\nEMPTY=\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := &cli{lookupEnv: func(name string) (string, bool) { return "/root", name == "HOME" }}
	got, err := c.environment([]string{file}, []string{"A=1", "A=flag=x", "NONE"})
	want := map[string]string{"A": "flag=x", "B": "two words = here", "HOME": "/root", "EMPTY": ""}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("environment = %q, %v, want %q", got, err, want)
	}
	for text, want := range map[string]string{
		"A=1\n=2\n":                    `line 2: "=2" is neither`,
		"export A=1\n":                 "line 1",
		"A\xff=1\n":                    "not UTF-8",
		"A=\x00\n":                     "NUL",
		strings.Repeat("A=1\n", 1<<19): "larger than",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := c.environment([]string{file}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("environment of %.20q = %q, %v, want an error with %q", text, got, err, want)
		}
	}
}

// TestRequest checks what flags ask of the daemon.
func TestRequest(t *testing.T) {
	echo := "/bin/echo"
	none := ""
	for _, c := range []struct {
		name  string
		flags vmFlags
		want  api.VMCreate
	}{
		{"nothing", vmFlags{}, api.VMCreate{}},
		{"resources", vmFlags{CPUs: "2", Memory: "1g", Kernel: "volant", KernelCmdline: "quiet"}, api.VMCreate{CPUCores: 2, MemoryMB: 1024, Kernel: "volant", KernelCmdline: "quiet"}},
		{"process", vmFlags{Workdir: "/srv", User: "1000:100", Entrypoint: &echo, Interactive: true, TTY: true, StopSignal: "quit"},
			api.VMCreate{Workdir: "/srv", User: "1000:100", Entrypoint: &[]string{echo}, Stdin: true, TTY: true, StopSignal: "SIGQUIT"}},
		{"no entrypoint", vmFlags{Entrypoint: &none, StopSignal: "SIGRTMIN+3"}, api.VMCreate{Entrypoint: &[]string{}, StopSignal: "SIGRTMIN+3"}},
		{"network", vmFlags{Network: "bridge", IP: "192.168.127.9", Publish: []string{"80"}},
			api.VMCreate{NetworkMode: "bridged", IPAddress: "192.168.127.9", Ports: []api.Port{{Port: 80, Protocol: "tcp"}}}},
		{"no network", vmFlags{Network: "none", Hostname: "box"}, api.VMCreate{NetworkMode: "vsock", Hostname: "box"}},
		{"health", vmFlags{healthFlags: healthFlags{HealthCmd: "curl -f localhost || exit 1", HealthInterval: "1m30s", HealthTimeout: "500ms", HealthRetries: 2, HealthStartPeriod: "5s"}},
			api.VMCreate{HealthCheck: &api.HealthCheck{Exec: []string{"/bin/sh", "-c", "curl -f localhost || exit 1"}, IntervalMS: 90_000, TimeoutMS: 500, Retries: 2, StartPeriodMS: 5000}}},
		{"health of the image, more rarely", vmFlags{healthFlags: healthFlags{HealthInterval: "1h"}}, api.VMCreate{HealthCheck: &api.HealthCheck{IntervalMS: 3_600_000}}},
		{"no health", vmFlags{healthFlags: healthFlags{NoHealthcheck: true}}, api.VMCreate{HealthCheck: &api.HealthCheck{Disable: true}}},
		{"never", vmFlags{Restart: "no"}, api.VMCreate{Restart: &api.Restart{Policy: "never"}}},
		{"unless-stopped", vmFlags{Restart: "unless-stopped"}, api.VMCreate{Restart: &api.Restart{Policy: "unless-stopped"}}},
		{"others first", vmFlags{DependsOn: []string{"db:healthy", "cache"}}, api.VMCreate{DependsOn: []api.Dependency{{VM: "db", Condition: "healthy"}, {VM: "cache"}}}},
		{"some times", vmFlags{Restart: "on-failure:3"}, api.VMCreate{Restart: &api.Restart{Policy: "on-failure", MaxRetries: 3}}},
		{"stop timeout", vmFlags{StopTimeout: "90"}, api.VMCreate{StopTimeout: 90_000}},
		{"stop timeout as a time", vmFlags{StopTimeout: "1.5s"}, api.VMCreate{StopTimeout: 1500}},
		{"on-failure", vmFlags{Restart: "on-failure", StopSignal: "9"}, api.VMCreate{Restart: &api.Restart{Policy: "on-failure"}, StopSignal: "9"}},
		{"read-only", vmFlags{ReadOnly: true}, api.VMCreate{Root: &api.Root{Mode: "read-only"}}},
		{"ephemeral", vmFlags{Ephemeral: true}, api.VMCreate{Root: &api.Root{Mode: "ephemeral"}}},
		{"disk", vmFlags{Disk: "20g"}, api.VMCreate{Root: &api.Root{Mode: "disk", SizeMB: 20480}}},
		{"labels", vmFlags{Label: []string{"a=b=c", "d"}}, api.VMCreate{Labels: map[string]string{"a": "b=c", "d": ""}}},
		{"mounts", vmFlags{Volume: []string{"data:/data"}, Tmpfs: []string{"/tmp"}},
			api.VMCreate{Volumes: []api.VolumeMount{{Name: "data", Target: "/data"}}, Tmpfs: []api.Tmpfs{{Target: "/tmp"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Name = "web"
			if got, _, err := c.flags.request(&cli{lookupEnv: os.LookupEnv}, "web", nil); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("request = %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

func TestRequestRefuses(t *testing.T) {
	for want, flags := range map[string]vmFlags{
		`--cpus "1.5": a microVM has whole CPUs`: {CPUs: "1.5"},
		`--cpus "0"`:                             {CPUs: "0"},
		`--cpus "65"`:                            {CPUs: "65"},
		"at least 32 MiB":                        {Memory: "6m"},
		"--workdir":                              {Workdir: "srv"},
		"publish its ports with -p":              {Network: "host"},
		"--network \"mine\"":                     {Network: "mine"},
		"--publish needs a network; leave out --network no": {Network: "none", Publish: []string{"80"}},
		"--ip needs a network":                              {Network: "vsock", IP: "192.168.127.9"},
		`--ip "fe80::1" is not an IPv4`:                     {IP: "fe80::1"},
		"from 1 on":                                         {Restart: "on-failure:0"},
		"give no, on-failure":                               {Restart: "sometimes"},
		"--stop-signal":                                     {StopSignal: "SIG TERM"},
		`--stop-timeout "soon"`:                             {StopTimeout: "soon"},
		`--stop-timeout "-1"`:                               {StopTimeout: "-1"},
		`--stop-timeout "99999999999999"`:                   {StopTimeout: "99999999999999"},
		"--read-only and --disk contradict":                 {ReadOnly: true, Disk: "1g"},
		"--read-only and --ephemeral contradict":            {ReadOnly: true, Ephemeral: true},
		"a disk has at least 16 MiB":                        {Disk: "1m"},
		`--label "=x"`:                                      {Label: []string{"=x"}},
		`--env "=x"`:                                        {Env: []string{"=x"}},
		"there is no file":                                  {EnvFile: []string{"/nowhere/env"}},
		`kernel name "../x"`:                                {Kernel: "../x"},
	} {
		if got, _, err := flags.request(&cli{lookupEnv: os.LookupEnv}, "web", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("request of %+v = %+v, %v, want an error with %q", flags, got, err, want)
		}
	}
	if _, _, err := (&vmFlags{}).request(&cli{}, "Web", nil); err == nil {
		t.Error("a name that is none is taken")
	}
}
