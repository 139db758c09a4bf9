package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
)

var update = flag.Bool("update", false, "rewrite docs/schemas")

type object = map[string]any

// TestManifestSchema holds docs/schemas/plugin-manifest-v1.json against the
// types and comments of manifest.go, from which it is made. Run with -update
// to write it.
func TestManifestSchema(t *testing.T) {
	want, err := json.MarshalIndent(manifestSchema(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	file := filepath.Join("..", "..", "docs", "schemas", "plugin-manifest-v1.json")
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what manifest.go says (%v); run: go test ./client/api -run TestManifestSchema -update", file, err)
	}
}

// manifestSchema makes the JSON Schema, draft 2020-12, of Manifest: structure
// from the types, descriptions from the comments, and from rules what Validate
// asks beyond them.
func manifestSchema(t *testing.T) object {
	t.Helper()
	docs := comments(t, "manifest.go")
	maps.Copy(docs, comments(t, "volume.go"))
	maps.Copy(docs, comments(t, "health.go"))
	maps.Copy(docs, comments(t, "restart.go"))
	maps.Copy(docs, comments(t, "dependency.go"))
	g := &schemaMaker{docs: docs, defs: object{}, rules: manifestRules()}
	root := g.structSchema(reflect.TypeFor[Manifest]())
	for name := range g.rules {
		t.Errorf("rule for %s, which manifest.go does not have", name)
	}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$defs"] = g.defs
	root["title"] = "Volant plugin manifest, version 1"
	return root
}

// manifestRules is what Validate asks of values, by type or type.field. A type's
// rule is merged into its schema.
func manifestRules() map[string]object {
	name := func() object { return object{"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": MaxNameLength} }
	enum := func(v ...string) object { return object{"enum": v} }
	digest := object{"pattern": "^sha256:[0-9a-f]{64}$"}
	absolute := object{"pattern": "^/"}
	filled := object{"minLength": 1}
	natural := object{"minimum": 0}
	upTo := func(n int) object { return object{"minimum": 0, "maximum": n} }
	has := func(fields ...string) object { return object{"required": fields} }
	return map[string]object{
		"Manifest": {
			"oneOf":             []any{has("rootfs"), has("initramfs")},
			"dependentRequired": object{"root": []string{"rootfs"}},
			"if":                object{"required": []string{"initramfs"}, "properties": object{"initramfs": object{"required": []string{"agent"}, "properties": object{"agent": object{"const": AgentNone}}}}},
			"else": object{
				"required":   []string{"workload"},
				"properties": object{"workload": object{"required": []string{"entrypoint"}, "properties": object{"entrypoint": object{"minItems": 1}}}},
			},
			"allOf": []any{object{
				"if":   object{"required": []string{"health_check"}, "properties": object{"health_check": has("endpoint")}},
				"then": object{"properties": object{"workload": has("base_url")}},
			}},
		},
		"Manifest.schema_version":  enum("1", "1.0", "v1"),
		"Manifest.name":            name(),
		"Manifest.version":         {"pattern": `\S`},
		"Manifest.kernel":          name(),
		"Manifest.hostname":        {"maxLength": maxHostname, "pattern": `^([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*)?$`},
		"Root.mode":                enum(RootDisk, RootMemory, RootReadOnly),
		"VolumeMount":              {"not": has("name", "blob")},
		"VolumeMount.name":         name(),
		"VolumeMount.blob":         digest,
		"VolumeMount.target":       absolute,
		"Tmpfs.target":             absolute,
		"Tmpfs.mode":               {"pattern": "^[0-7]{1,4}$"},
		"Port.port":                {"minimum": 1, "maximum": 65535},
		"Port.host_port":           {"minimum": 0, "maximum": 65535},
		"Port.protocol":            enum(ProtocolTCP, ProtocolUDP),
		"Rootfs.url":               filled,
		"Rootfs.checksum":          digest,
		"Rootfs.format":            enum("raw", "qcow2"),
		"Initramfs.url":            filled,
		"Initramfs.checksum":       digest,
		"Initramfs.agent":          enum(AgentHost, AgentImage, AgentNone),
		"ManifestDisk.name":        name(),
		"ManifestDisk.source":      filled,
		"ManifestDisk.checksum":    digest,
		"ManifestDisk.format":      enum("raw", "qcow2"),
		"Resources.cpu_cores":      {"minimum": 1, "maximum": MaxCPUCores},
		"Resources.memory_mb":      {"minimum": MinMemoryMB, "maximum": MaxMemoryMB},
		"Workload":                 {"if": object{"properties": object{"type": object{"const": WorkloadHTTP}}}, "then": has("base_url")},
		"Workload.type":            enum(WorkloadHTTP, WorkloadExec),
		"Workload.entrypoint":      {"maxItems": maxListLength, "prefixItems": []any{object{"minLength": 1}}},
		"Workload.base_url":        {"pattern": "^http://[^/]"},
		"Workload.workdir":         absolute,
		"Workload.env":             {"maxProperties": maxListLength, "propertyNames": object{"pattern": "^[^=]+$"}},
		"Workload.stop_timeout_ms": natural,
		"HealthCheck": {
			"if":   object{"required": []string{"disable"}, "properties": object{"disable": object{"const": true}}},
			"then": object{"maxProperties": 1},
			"else": object{"oneOf": []any{has("endpoint"), has("tcp"), has("exec")}},
		},
		"HealthCheck.exec":            {"minItems": 1, "maxItems": maxListLength, "prefixItems": []any{object{"minLength": 1}}},
		"HealthCheck.start_period_ms": upTo(maxHealthMS),
		"HealthCheck.endpoint":        absolute,
		"HealthCheck.tcp":             {"pattern": "^.+:.+$"},
		"HealthCheck.timeout_ms":      upTo(maxHealthMS),
		"HealthCheck.interval_ms":     upTo(maxHealthMS),
		"HealthCheck.retries":         upTo(maxHealthRetries),
		"Manifest.depends_on":         {"maxItems": maxDependencies},
		"Dependency.vm":               name(),
		"Dependency.condition":        enum(DependRunning, DependHealthy),
		"Restart.policy":              enum(RestartNever, RestartOnFailure, RestartAlways, RestartUnlessStopped),
		"Restart.max_retries":         upTo(maxRetries),
		"Restart": {
			"if":   object{"required": []string{"max_retries"}, "properties": object{"max_retries": object{"minimum": 1}}},
			"then": object{"properties": object{"policy": object{"const": RestartOnFailure}}},
		},
		"Action.method":       filled,
		"Action.path":         absolute,
		"Manifest.hypervisor": enum(HypervisorAuto, HypervisorCH, HypervisorQEMU),
		"Network.mode":        enum(NetworkBridged, NetworkVsock, NetworkDHCP),
		"Manifest.labels":     {"maxProperties": maxListLength, "propertyNames": object{"minLength": 1}},
	}
}

// schemaMaker turns types into schemas. It takes each rule that it uses out of
// rules.
type schemaMaker struct {
	docs  map[string]string
	defs  object
	rules map[string]object
}

func (g *schemaMaker) schema(t reflect.Type) object {
	switch t.Kind() {
	case reflect.Pointer:
		return g.schema(t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int:
		return object{"type": "integer"}
	case reflect.Slice:
		return object{"type": "array", "items": g.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": g.schema(t.Elem())}
	case reflect.Struct:
		if g.defs[t.Name()] == nil {
			g.defs[t.Name()] = g.structSchema(t)
		}
		return object{"$ref": "#/$defs/" + t.Name()}
	}
	panic("no schema for " + t.String())
}

func (g *schemaMaker) structSchema(t reflect.Type) object {
	props, required := object{}, []string{}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := g.schema(f.Type)
		if doc := g.docs[t.Name()+"."+f.Name]; doc != "" {
			p["description"] = doc
		}
		g.apply(p, t.Name()+"."+name)
		props[name] = p
		// What an agentless archive may leave out is in the rule of Manifest.
		if opts == "" && name != "entrypoint" {
			required = append(required, name)
		}
	}
	s := object{"type": "object", "additionalProperties": false, "properties": props, "description": g.docs[t.Name()]}
	if len(required) > 0 {
		s["required"] = required
	}
	g.apply(s, t.Name())
	return s
}

func (g *schemaMaker) apply(s object, name string) {
	for k, v := range g.rules[name] {
		s[k] = v
	}
	delete(g.rules, name)
}

// comments returns the comments of a file's types and of their fields, by
// "Type" and "Type.Field".
func comments(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	text := func(groups ...*ast.CommentGroup) string {
		for _, g := range groups {
			if s := strings.Join(strings.Fields(g.Text()), " "); s != "" {
				return s
			}
		}
		return ""
	}
	docs := map[string]string{}
	for _, d := range f.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, s := range gen.Specs {
			spec := s.(*ast.TypeSpec)
			docs[spec.Name.Name] = text(gen.Doc, spec.Doc)
			st, ok := spec.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, field := range st.Fields.List {
				for _, name := range field.Names {
					docs[spec.Name.Name+"."+name.Name] = text(field.Doc, field.Comment)
				}
			}
		}
	}
	return docs
}

// TestSchemaAgrees checks that the published schema and the code accept and
// refuse the same manifests.
func TestSchemaAgrees(t *testing.T) {
	data, err := json.Marshal(manifestSchema(t))
	if err != nil {
		t.Fatal(err)
	}
	var schema jsonschema.Schema
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	resolved, err := schema.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	// Each case replaces parts of a valid manifest; a nil value removes a part.
	for name, c := range map[string]struct {
		change map[string]any
		valid  bool
	}{
		"as it is":               {nil, true},
		"unknown field":          {object{"naem": "x"}, false},
		"unknown nested field":   {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}, "cwd": "/"}}, false},
		"no name":                {object{"name": nil}, false},
		"name that climbs":       {object{"name": "../x"}, false},
		"name in capitals":       {object{"name": "Hello"}, false},
		"name with a hyphen":     {object{"name": "a-b"}, true},
		"name that ends in one":  {object{"name": "a-"}, false},
		"longest name":           {object{"name": strings.Repeat("a", 63)}, true},
		"name too long":          {object{"name": strings.Repeat("a", 64)}, false},
		"blank version":          {object{"version": " "}, false},
		"no version":             {object{"version": nil}, false},
		"schema version v1":      {object{"schema_version": "v1"}, true},
		"schema version 2":       {object{"schema_version": "2"}, false},
		"schema version, number": {object{"schema_version": 1}, false},
		"both roots":             {object{"rootfs": object{"url": "x"}}, false},
		"rootfs":                 {object{"initramfs": nil, "rootfs": object{"url": "x", "format": "qcow2"}}, true},
		"rootfs of a kind":       {object{"initramfs": nil, "rootfs": object{"url": "x", "format": "vmdk"}}, false},
		"no root":                {object{"initramfs": nil}, false},
		"short digest":           {object{"initramfs": object{"url": "x", "checksum": "sha256:abc"}}, false},
		"digest of a kind":       {object{"initramfs": object{"url": "x", "checksum": "md5:" + strings.Repeat("a", 64)}}, false},
		"empty url":              {object{"initramfs": object{"url": ""}}, false},
		"agent":                  {object{"initramfs": object{"url": "x", "agent": "image"}}, true},
		"agent of a kind":        {object{"initramfs": object{"url": "x", "agent": "mine"}}, false},
		"no workload":            {object{"workload": nil, "health_check": nil}, false},
		"agentless":              {object{"workload": nil, "health_check": nil, "initramfs": object{"url": "x", "agent": "none"}}, true},
		"agentless, no program":  {object{"workload": object{"type": "exec"}, "health_check": nil, "initramfs": object{"url": "x", "agent": "none"}}, true},
		"no program":             {object{"workload": object{"type": "exec"}, "health_check": nil}, false},
		"empty entrypoint":       {object{"workload": object{"type": "exec", "entrypoint": []string{}}, "health_check": nil}, false},
		"empty program":          {object{"workload": object{"type": "exec", "entrypoint": []string{""}}, "health_check": nil}, false},
		"empty argument":         {object{"workload": object{"type": "exec", "entrypoint": []string{"/a", ""}}, "health_check": nil}, true},
		"entrypoint as a string": {object{"workload": object{"type": "exec", "entrypoint": "/a"}, "health_check": nil}, false},
		"workload of a kind":     {object{"workload": object{"type": "batch", "entrypoint": []string{"/a"}}, "health_check": nil}, false},
		"http without base url":  {object{"workload": object{"type": "http", "entrypoint": []string{"/a"}}, "health_check": nil}, false},
		"https base url":         {object{"workload": object{"type": "http", "entrypoint": []string{"/a"}, "base_url": "https://x"}}, false},
		"relative workdir":       {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}, "workdir": "x"}, "health_check": nil}, false},
		"environment":            {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}, "env": object{"A": "b=c"}}, "health_check": nil}, true},
		"bad variable":           {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}, "env": object{"A=": "b"}}, "health_check": nil}, false},
		"number as a variable":   {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}, "env": object{"A": 1}}, "health_check": nil}, false},
		"negative stop timeout":  {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}, "stop_timeout_ms": -1}, "health_check": nil}, false},
		"endpoint, no base url":  {object{"workload": object{"type": "exec", "entrypoint": []string{"/a"}}}, false},
		"no CPU":                 {object{"resources": object{"cpu_cores": 0, "memory_mb": 128}}, false},
		"many CPUs":              {object{"resources": object{"cpu_cores": 65, "memory_mb": 128}}, false},
		"half a CPU":             {object{"resources": object{"cpu_cores": 0.5, "memory_mb": 128}}, false},
		"little memory":          {object{"resources": object{"cpu_cores": 1, "memory_mb": 31}}, false},
		"no resources":           {object{"resources": nil}, false},
		"tcp check":              {object{"health_check": object{"tcp": "127.0.0.1:5432"}}, true},
		"tcp check of no host":   {object{"health_check": object{"tcp": ":5432"}}, false},
		"rare check":             {object{"health_check": object{"tcp": "127.0.0.1:5432", "interval_ms": 86400001}}, false},
		"check switched off":     {object{"health_check": object{"disable": true}}, true},
		"and not":                {object{"health_check": object{"disable": true, "tcp": "127.0.0.1:5432"}}, false},
		"check not switched off": {object{"health_check": object{"disable": false, "tcp": "127.0.0.1:5432"}}, true},
		"two checks":             {object{"health_check": object{"tcp": ":5432", "endpoint": "/"}}, false},
		"no check":               {object{"health_check": object{"retries": 1}}, false},
		"relative endpoint":      {object{"health_check": object{"endpoint": "x"}}, false},
		"restart":                {object{"restart": object{"policy": "on-failure"}}, true},
		"dependencies":           {object{"depends_on": []any{object{"vm": "db", "condition": "healthy"}, object{"vm": "cache"}}}, true},
		"dependency of a kind":   {object{"depends_on": []any{object{"vm": "db", "condition": "there"}}}, false},
		"dependency on nobody":   {object{"depends_on": []any{object{"vm": ""}}}, false},
		"restart with a limit":   {object{"restart": object{"policy": "on-failure", "max_retries": 3}}, true},
		"restart without one":    {object{"restart": object{"policy": "unless-stopped", "max_retries": 0}}, true},
		"always with a limit":    {object{"restart": object{"policy": "always", "max_retries": 3}}, false},
		"negative limit":         {object{"restart": object{"policy": "on-failure", "max_retries": -1}}, false},
		"restart of a kind":      {object{"restart": object{"policy": "sometimes"}}, false},
		"action":                 {object{"actions": object{"go": object{"method": "POST", "path": "/go"}}}, true},
		"action without path":    {object{"actions": object{"go": object{"method": "POST"}}}, false},
		"network":                {object{"network": object{"mode": "vsock"}}, true},
		"network of a kind":      {object{"network": object{"mode": "nat"}}, false},
		"disk":                   {object{"disks": []any{object{"name": "data", "source": "data.img", "readonly": true}}}, true},
		"disk without source":    {object{"disks": []any{object{"name": "data"}}}, false},
		"disk with a bad digest": {object{"disks": []any{object{"name": "data", "source": "x", "checksum": "abc"}}}, false},
		"kernel":                 {object{"kernel": "generic"}, true},
		"kernel that climbs":     {object{"kernel": "../vmlinux"}, false},
		"labels":                 {object{"labels": object{"a.b/c": "d"}}, true},
		"empty label":            {object{"labels": object{"": "d"}}, false},
		"cloud init":             {object{"cloud_init": object{"user_data": object{"inline": true, "content": "#cloud-config"}}}, true},
		"command as a check":     {object{"health_check": object{"exec": []string{"/check"}, "start_period_ms": 5}}, true},
		"empty command":          {object{"health_check": object{"exec": []string{""}}}, false},
		"check of three kinds":   {object{"health_check": object{"exec": []string{"/check"}, "tcp": ":1"}}, false},
		"hostname":               {object{"hostname": "Db-1.example"}, true},
		"hostname with a blank":  {object{"hostname": "a b"}, false},
		"root":                   {object{"initramfs": nil, "rootfs": object{"url": "x"}, "root": object{"mode": "ephemeral", "size_mb": 64}}, true},
		"root of a kind":         {object{"initramfs": nil, "rootfs": object{"url": "x"}, "root": object{"mode": "tape"}}, false},
		"root of an initramfs":   {object{"root": object{}}, false},
		"volume":                 {object{"volumes": []any{object{"name": "data", "target": "/data", "size_mb": 64}}}, true},
		"volume of its own":      {object{"volumes": []any{object{"target": "/data"}}}, true},
		"volume of two kinds":    {object{"volumes": []any{object{"name": "a", "blob": "sha256:" + strings.Repeat("a", 64), "target": "/data"}}}, false},
		"relative target":        {object{"volumes": []any{object{"name": "data", "target": "data"}}}, false},
		"tmpfs":                  {object{"tmpfs": []any{object{"target": "/run/x", "mode": "755"}}}, true},
		"tmpfs mode":             {object{"tmpfs": []any{object{"target": "/run/x", "mode": "9"}}}, false},
		"ports":                  {object{"ports": []any{object{"port": 80}, object{"port": 53, "protocol": "udp", "host_port": 5353}}}, true},
		"port of a kind":         {object{"ports": []any{object{"port": 80, "protocol": "sctp"}}}, false},
		"port too high":          {object{"ports": []any{object{"port": 65536}}}, false},
		"devices":                {object{"devices": object{"pci_passthrough": []string{"0000:01:00.0"}}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var tree object
			if err := json.Unmarshal([]byte(validManifest), &tree); err != nil {
				t.Fatal(err)
			}
			for k, v := range c.change {
				if v == nil {
					delete(tree, k)
				} else {
					tree[k] = v
				}
			}
			in, err := json.Marshal(tree)
			if err != nil {
				t.Fatal(err)
			}
			var plain any
			if err := json.Unmarshal(in, &plain); err != nil {
				t.Fatal(err)
			}
			var m Manifest
			codeErr := DecodeStrict(in, &m)
			if codeErr == nil {
				codeErr = m.Validate()
			}
			schemaErr := resolved.Validate(plain)
			if (codeErr == nil) != c.valid || (schemaErr == nil) != c.valid {
				t.Errorf("%s\nvalid: want %v\ncode says: %v\nschema says: %s", in, c.valid, codeErr, fmt.Sprint(schemaErr))
			}
		})
	}
}
