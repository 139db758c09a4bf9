package httpapi

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/volantvm/volant/client/api"
)

// TestOpenAPIParity checks that every route of the table is in the document
// and nothing else, and that every reference in it leads somewhere.
func TestOpenAPIParity(t *testing.T) {
	data, err := json.Marshal(describeRoutes(routes(), "1"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID string }
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	want, ids := map[string]bool{}, map[string]bool{}
	for _, rt := range routes() {
		path := strings.ReplaceAll(rt.fullPath(), "...}", "}")
		methods := []string{strings.ToLower(rt.method)}
		switch rt.method {
		case "":
			methods = []string{"get", "head", "post", "put", "patch", "delete", "options"}
		case "GET":
			methods = append(methods, "head")
		}
		for _, m := range methods {
			want[m+" "+path] = true
			if _, ok := doc.Paths[path][m]; !ok {
				t.Errorf("%s %s is not described", m, path)
			}
		}
	}
	for path, item := range doc.Paths {
		for m, op := range item {
			if !want[m+" "+path] {
				t.Errorf("%s %s is described, but no route", m, path)
			}
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s: operationId %q is empty or taken", m, path, op.OperationID)
			}
			ids[op.OperationID] = true
		}
	}
	for _, ref := range regexp.MustCompile(`"#/components/schemas/(\w+)"`).FindAllSubmatch(data, -1) {
		if doc.Components.Schemas[string(ref[1])] == nil {
			t.Errorf("reference to %s leads nowhere", ref[1])
		}
	}
}

// TestOpenAPISchemas checks that what the server sends satisfies what the
// document says it sends.
func TestOpenAPISchemas(t *testing.T) {
	schemas := schemaSet{}
	ref := schemas.of(reflect.TypeFor[api.VM]())
	data, err := json.Marshal(object{"$ref": strings.Replace(ref["$ref"].(string), "components/schemas", "$defs", 1), "$defs": schemas})
	if err != nil {
		t.Fatal(err)
	}
	data = []byte(strings.ReplaceAll(string(data), "#/components/schemas/", "#/$defs/"))
	var s jsonschema.Schema
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	resolved, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	check := func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var tree any
		if err := json.Unmarshal(b, &tree); err != nil {
			t.Fatal(err)
		}
		return resolved.Validate(tree)
	}
	if err := check(api.VM{Status: api.VMRunning, Desired: api.DesiredRunning, Health: api.VMHealth{Status: api.HealthNone}, Exit: &api.VMExit{}, Labels: map[string]string{"a": "b"}}); err != nil {
		t.Errorf("a VM does not satisfy its schema: %v", err)
	}
	if err := check(api.VM{Status: "flying", Desired: api.DesiredRunning}); err == nil {
		t.Error("a VM in an unknown state satisfies the schema")
	}
}

// TestOpenAPIGolden holds the published document: a change of it is a change of
// the API.
func TestOpenAPIGolden(t *testing.T) {
	got, err := json.MarshalIndent(describeRoutes(routes(), "0"), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("..", "..", "docs", "openapi.json")
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != string(got) {
		t.Errorf("%s is not what the routes say (%v); run with -update and read the difference", file, err)
	}
}

// TestStatusTable checks that every code has a status of its class.
func TestStatusTable(t *testing.T) {
	for code, want := range map[api.Code]int{
		api.CodeInvalid: 400, api.CodeDenied: 403, api.CodeNotFound: 404, api.CodeExists: 409, api.CodeConflict: 409, api.CodeExhausted: 409,
		api.CodeTooLarge: 413, api.CodeUnsupported: 501, api.CodeUnavailable: 503, api.CodeTimeout: 504, api.CodeInternal: 500, "new": 500,
	} {
		if got := httpStatus(code); got != want {
			t.Errorf("httpStatus(%s) = %d, want %d", code, got, want)
		}
	}
}
