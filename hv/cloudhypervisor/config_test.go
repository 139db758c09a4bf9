package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/testdata/golden"
)

// openAPIEnv names the file of Cloud Hypervisor's API description, of its
// repository: vmm/src/api/openapi/cloud-hypervisor.yaml.
const openAPIEnv = "VOLANT_CH_OPENAPI"

// configs returns the configuration of every kind of machine that the driver
// makes.
func configs() map[string]vmConfig {
	full := hv.Spec{
		ID: "web-1", Dir: "/run/volant/vms/web/1", VCPUs: 2, MemoryMiB: 4096, Kernel: "/k/vmlinux,1", Initramfs: "/i/init[rd]",
		Cmdline:  []string{"volant.vm=web-1", "quiet=no"},
		MaxVCPUs: 4, MaxMemoryMiB: 8192, Balloon: true,
		Disks: []hv.Disk{
			{Serial: "volant-config", Path: "/d/config", ReadOnly: true},
			{Serial: "volant-root", Path: "/d/root", ReadOnly: true, Pmem: true},
			{Serial: "data", Path: "/d/da,ta"},
		},
		NICs:    []hv.NIC{{Tap: "tap7", MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}}},
		Shares:  []hv.Share{{Tag: "src", Socket: "/s/src.sock"}},
		Devices: []string{"0000:01:00.0"},
		CID:     9,
		Reach:   []string{"/", "/not/there"},
	}
	bare := hv.Spec{ID: "bare", Dir: "/run/volant/vms/bare/1", VCPUs: 1, MemoryMiB: 64, Kernel: "/k/vmlinux"}
	template := bare
	template.MemoryFile, template.Balloon = "/m/memory", true
	return map[string]vmConfig{
		"template": newConfig(&template, &findings{landlock: true}),
		"full":     newConfig(&full, &findings{landlock: true}),
		"bare":     newConfig(&bare, &findings{landlock: true}),
		"unbound":  newConfig(&full, &findings{}),
		"barest":   newConfig(&bare, &findings{}),
	}
}

// TestConfig compares the configuration of a machine with a golden file.
func TestConfig(t *testing.T) {
	b, err := json.MarshalIndent(configs()["full"], "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "create.json", string(b)+"\n")
}

// TestConfigMemory: what a fork reports as free must not be gone from the memory
// that it shares with others, and a shared mapping cannot be merged.
func TestConfigMemory(t *testing.T) {
	if b := configs()["template"].Balloon; b == nil || b.FreeReporting {
		t.Errorf("the balloon of a template is %+v, want one that reports nothing", b)
	}
	if b := configs()["full"].Balloon; b == nil || !b.FreeReporting {
		t.Errorf("the balloon is %+v, want one that reports free pages", b)
	}
	spec := scriptedSpec(t)
	spec.MergeMemory = true
	f := &findings{caps: hv.Capabilities{MaxVCPUs: maxVCPUs, MaxDisks: maxDisks, MaxNICs: maxNICs}, traits: version{major: 54}.traits()}
	if err := checkLaunch(&spec, f); !errors.Is(err, hv.ErrUnsupported) {
		t.Errorf("check of a machine whose memory is merged: %v, want ErrUnsupported", err)
	}
}

// TestConfigTooLarge: a server that takes no more of a request refuses it with
// words about something else.
func TestConfigTooLarge(t *testing.T) {
	spec := scriptedSpec(t)
	dir := t.TempDir()
	for len(dir) < 3500 {
		dir = filepath.Join(dir, strings.Repeat("d", 200))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range maxDisks {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, hv.Disk{Serial: fmt.Sprint("d", i), Path: path, ReadOnly: true})
	}
	f := &findings{caps: hv.Capabilities{MaxVCPUs: maxVCPUs, MaxDisks: maxDisks, MaxNICs: maxNICs}}
	for major, ok := range map[int]bool{53: false, 54: true} {
		f.traits = version{major: major}.traits()
		if err := checkLaunch(&spec, f); (err == nil) != ok || err != nil && !errors.Is(err, hv.ErrInvalidSpec) {
			t.Errorf("check for version %d: %v, want ok %v", major, err, ok)
		}
	}
}

// calls lists the calls that the driver makes, with the bodies that it sends.
func calls() map[string][]any {
	list := map[string][]any{
		opPing: nil, opQuit: nil, opBoot: nil, opInfo: nil, opCounters: nil, opPause: nil, opResume: nil, opButton: nil,
		opAddNet:   {newNIC("net-1", hv.NIC{Tap: "tap7", MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}})},
		opAddDisk:  {newDisk(hv.Disk{Serial: "a", Path: "/a", ReadOnly: true}), newDisk(hv.Disk{Serial: "b", Path: "/b"})},
		opRemove:   {removeConfig{ID: "disk-a"}},
		opResize:   {resizeConfig{VCPUs: 2}, resizeConfig{RAM: 1 << 30}, resizeConfig{VCPUs: 1, RAM: 1 << 30}},
		opSnapshot: {snapshotConfig{Destination: "file:///d"}},
		opRestore:  {restoreConfig{Source: "file:///d", Mode: "Copy"}, restoreConfig{Source: "file:///d", Mode: "OnDemand", NetFDs: []netFD{{ID: "net-1", FDs: 1}}}},
	}
	for _, c := range configs() {
		list[opCreate] = append(list[opCreate], c)
	}
	return list
}

// describe reads an API description.
func describe(t *testing.T, file string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	// It does not have these, which the program does.
	restore := at(doc, "components", "schemas", "RestoreConfig", "properties")
	restore["net_fds"] = map[string]any{"type": "array", "items": map[string]any{"type": "object", "properties": map[string]any{
		"id": map[string]any{"type": "string"}, "num_fds": map[string]any{"type": "integer"},
	}}}
	return doc
}

// TestRequests holds every body that the driver can send against the API
// description, with unknown fields forbidden: Cloud Hypervisor ignores them.
func TestRequests(t *testing.T) {
	files := []string{filepath.Join("testdata", "openapi.yaml")}
	if file := os.Getenv(openAPIEnv); file != "" {
		files = append(files, file)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) { testRequests(t, describe(t, file)) })
	}
}

// checkRequest returns what is wrong with a request.
func checkRequest(doc map[string]any, method, op string, body any) []string {
	call, ok := at(doc, "paths", "/"+op)[strings.ToLower(method)].(map[string]any)
	_, takes := call["requestBody"]
	if !ok || takes != (body != nil) {
		return []string{fmt.Sprintf("%s %s: there is no such call, or it takes another body", method, op)}
	}
	if body == nil {
		return nil
	}
	api := description{at(doc, "components", "schemas")}
	return api.check(at(call, "requestBody", "content", "application/json", "schema"), body, op)
}

func testRequests(t *testing.T, doc map[string]any) {
	for op, bodies := range calls() {
		method := "put"
		if op == opPing || op == opInfo || op == opCounters {
			method = "get"
		}
		if bodies == nil {
			bodies = []any{nil}
		}
		for _, body := range bodies {
			if body != nil {
				body = encode(t, body)
			}
			for _, fault := range checkRequest(doc, method, op, body) {
				t.Error(fault)
			}
		}
	}
	api := description{at(doc, "components", "schemas")}
	schema := at(doc, "paths", "/vm.create", "put", "requestBody", "content", "application/json", "schema")
	// The check itself must find what is wrong.
	for name, change := range map[string]func(c map[string]any){
		"unknown field":     func(c map[string]any) { c["memory"].(map[string]any)["sizee"] = 1 },
		"field of an entry": func(c map[string]any) { c["disks"].([]any)[0].(map[string]any)["read_only"] = true },
		"missing":           func(c map[string]any) { delete(c, "payload") },
		"enum":              func(c map[string]any) { c["console"].(map[string]any)["mode"] = "off" },
		"minimum":           func(c map[string]any) { c["vsock"].(map[string]any)["cid"] = 2.0 },
		"type":              func(c map[string]any) { c["pvpanic"] = "true" },
	} {
		body := encode(t, configs()["full"]).(map[string]any)
		change(body)
		if errs := api.check(schema, body, "config"); len(errs) != 1 {
			t.Errorf("%s: found %q, want one fault", name, errs)
		}
	}
}

// encode returns v as what its JSON decodes to.
func encode(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// at walks down a document; what is not there is empty.
func at(doc map[string]any, path ...string) map[string]any {
	for _, name := range path {
		doc, _ = doc[name].(map[string]any)
	}
	return doc
}

// description checks values against the part of OpenAPI 3.0 schemas that Cloud
// Hypervisor's uses.
type description struct{ schemas map[string]any }

// check returns what is wrong with v, naming the place.
func (d description) check(schema map[string]any, v any, place string) []string {
	if ref, ok := schema["$ref"].(string); ok {
		schema = at(d.schemas, ref[strings.LastIndexByte(ref, '/')+1:])
	}
	wrong := func(format string, args ...any) []string {
		return []string{place + ": " + fmt.Sprintf(format, args...)}
	}
	if enum, ok := schema["enum"].([]any); ok {
		for _, e := range enum {
			if e == v {
				return nil
			}
		}
		return wrong("%v is none of %v", v, enum)
	}
	switch v := v.(type) {
	case map[string]any:
		if schema["type"] != "object" {
			return wrong("an object, want %v", schema["type"])
		}
		var errs []string
		properties := at(schema, "properties")
		for name, value := range v {
			if property, ok := properties[name].(map[string]any); ok {
				errs = append(errs, d.check(property, value, place+"."+name)...)
			} else {
				errs = append(errs, wrong("unknown field %s", name)...)
			}
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := v[name.(string)]; !ok {
				errs = append(errs, wrong("%s is missing", name)...)
			}
		}
		return errs
	case []any:
		if schema["type"] != "array" {
			return wrong("an array, want %v", schema["type"])
		}
		var errs []string
		for i, value := range v {
			errs = append(errs, d.check(at(schema, "items"), value, fmt.Sprintf("%s[%d]", place, i))...)
		}
		return errs
	case string:
		if schema["type"] != "string" {
			return wrong("a string, want %v", schema["type"])
		}
	case bool:
		if schema["type"] != "boolean" {
			return wrong("a boolean, want %v", schema["type"])
		}
	case float64:
		if schema["type"] != "integer" || v != float64(int64(v)) {
			return wrong("the number %v, want %v", v, schema["type"])
		}
		if minimum, ok := schema["minimum"].(int); ok && v < float64(minimum) {
			return wrong("%v is below %d", v, minimum)
		}
	default:
		return wrong("%T", v)
	}
	return nil
}
