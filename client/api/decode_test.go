package api

import (
	"strings"
	"testing"
)

const validManifest = `{
	"$schema": "https://example.invalid/schema.json",
	"schema_version": "1.0", "name": "hello", "version": "1",
	"initramfs": {"url": "hello.cpio", "checksum": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
	"resources": {"cpu_cores": 1, "memory_mb": 128},
	"workload": {"type": "http", "entrypoint": ["/usr/bin/hello"], "base_url": "http://127.0.0.1:8080"},
	"health_check": {"endpoint": "/"}
}`

func TestDecodeStrict(t *testing.T) {
	for name, c := range map[string]struct {
		in, want string // want is a part of the error; empty for none
	}{
		"valid":           {validManifest, ""},
		"misspelt field":  {`{"naem": "x"}`, "naem: is not a known field; did you mean name?"},
		"nested field":    {`{"workload": {"entrypont": []}}`, "workload.entrypont: is not a known field; did you mean entrypoint?"},
		"field in a list": {`{"disks": [{"name": "a"}, {"sauce": "b"}]}`, "disks[1].sauce: is not a known field; did you mean source?"},
		"field in a map":  {`{"actions": {"go": {"metod": "GET"}}}`, "actions.go.metod: is not a known field; did you mean method?"},
		"letter case":     {`{"Name": "x"}`, "Name: is not a known field; did you mean name?"},
		"far field":       {`{"zzzzzzzz": 1}`, "zzzzzzzz: is not a known field"},
		"wrong type":      {`{"resources": {"cpu_cores": "two"}}`, "resources.cpu_cores: is a string; it must be a whole number"},
		"fraction":        {`{"resources": {"cpu_cores": 1.5}}`, "resources.cpu_cores: is the number 1.5; it must be a whole number"},
		"string for list": {`{"workload": {"entrypoint": "/bin/x"}}`, "workload.entrypoint: is a string; it must be a list"},
		"syntax":          {"{\n  \"name\": ,\n}", "line 2, column 11"},
		"too short":       {`{"name": "x"`, "ends too early"},
		"empty":           {``, "ends too early"},
		"trailing data":   {validManifest + `{}`, "more data after"},
		"twice":           {`{"name": "a", "name": "b"}`, "name: is given twice"},
		"twice inside":    {`{"disks": [{}, {"name": "a", "name": "b"}]}`, "disks[1].name: is given twice"},
		"not twice":       {`{"disks": [{"name": "a"}, {"name": "a"}]}`, ""},
		"not an object":   {`[]`, "document: is a list; it must be an object"},
	} {
		t.Run(name, func(t *testing.T) {
			var m Manifest
			err := DecodeStrict([]byte(c.in), &m)
			checkErr(t, err, c.want)
		})
	}
}

func TestManifestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Manifest)
		want   string
	}{
		"valid":             {func(*Manifest) {}, ""},
		"version unknown":   {func(m *Manifest) { m.SchemaVersion = "2" }, "schema_version: \"2\" is not known"},
		"name missing":      {func(m *Manifest) { m.Name = "" }, "name: plugin name is missing"},
		"name climbs":       {func(m *Manifest) { m.Name = "../x" }, `name: plugin name "../x" is not valid at byte 1`},
		"no artifact":       {func(m *Manifest) { m.Initramfs = nil }, "initramfs: is missing"},
		"both artifacts":    {func(m *Manifest) { m.Rootfs = &Rootfs{URL: "x"} }, "rootfs: stands beside initramfs"},
		"bad checksum":      {func(m *Manifest) { m.Initramfs.Checksum = "md5:1" }, "initramfs.checksum: "},
		"agent unknown":     {func(m *Manifest) { m.Initramfs.Agent = "me" }, `initramfs.agent: "me" is not known; give one of host, image, none`},
		"no memory":         {func(m *Manifest) { m.Resources.MemoryMB = 1 }, "resources.memory_mb: is 1; give 32"},
		"no workload":       {func(m *Manifest) { m.Workload = nil }, "workload: is missing"},
		"no entrypoint":     {func(m *Manifest) { m.Workload.Entrypoint = nil }, "workload.entrypoint: is missing"},
		"base_url missing":  {func(m *Manifest) { m.Workload.BaseURL = "" }, "workload.base_url: is missing"},
		"exec needs no url": {func(m *Manifest) { m.Workload.Type = "exec"; m.Workload.BaseURL = ""; m.HealthCheck = nil }, ""},
		"agentless":         {func(m *Manifest) { m.Initramfs.Agent = "none"; m.Workload = nil; m.HealthCheck = nil }, ""},
		"NUL in argv":       {func(m *Manifest) { m.Workload.Entrypoint = []string{"a\x00b"} }, "workload.entrypoint[0]: holds a NUL byte"},
		"env name":          {func(m *Manifest) { m.Workload.Env = map[string]string{"A=B": "c"} }, "is not a variable name"},
		"two probes":        {func(m *Manifest) { m.HealthCheck.TCP = "127.0.0.1:1" }, "health_check: has more than one"},
		"network mode":      {func(m *Manifest) { m.Network = &Network{Mode: "bridge"} }, `network.mode: "bridge" is not known`},
	} {
		t.Run(name, func(t *testing.T) {
			var m Manifest
			if err := DecodeStrict([]byte(validManifest), &m); err != nil {
				t.Fatal(err)
			}
			c.change(&m)
			checkErr(t, m.Validate(), c.want)
		})
	}
}

func TestValidateName(t *testing.T) {
	for _, name := range []string{"a", "web-1", "0", strings.Repeat("a", 63)} {
		if err := ValidateName("VM", name); err != nil {
			t.Errorf("ValidateName(%q) = %v, want nil", name, err)
		}
	}
	for _, name := range []string{"", "-a", "a-", "A", "a_b", "a.b", "../x", "a/b", "a b", "é", strings.Repeat("a", 64), "a\x00"} {
		if err := ValidateName("VM", name); CodeOf(err) != CodeInvalid {
			t.Errorf("ValidateName(%q) = %v, want code invalid", name, err)
		}
	}
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add([]byte(validManifest))
	f.Add([]byte(`{"disks":[{"name":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Manifest
		if err := DecodeStrict(data, &m); err == nil {
			_ = m.Validate()
		} else if CodeOf(err) != CodeInvalid {
			t.Errorf("DecodeStrict(%q) = %v, want code invalid", data, err)
		}
	})
}

// checkErr wants err to be nil when want is empty, else to be an invalid
// *Error that holds want.
func checkErr(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Fatalf("got error %v, want none", err)
	case want != "" && err == nil:
		t.Fatalf("got no error, want one with %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Fatalf("got error %q, want one with %q", err, want)
	case want != "" && CodeOf(err) != CodeInvalid:
		t.Fatalf("got code %s, want invalid", CodeOf(err))
	}
}
