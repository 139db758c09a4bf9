package build

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
)

func recipeSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	b, err := os.ReadFile("../docs/schemas/fledge-toml-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	s := new(jsonschema.Schema)
	if err := json.Unmarshal(b, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSchemaHasEveryKey compares the published schema with the types that
// decode recipes.
func TestSchemaHasEveryKey(t *testing.T) {
	root := recipeSchema(t)
	compare := func(at string, s *jsonschema.Schema, typ reflect.Type) {
		var want, got []string
		for f := range typ.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
				want = append(want, name)
			}
		}
		for name := range s.Properties {
			got = append(got, name)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: the schema has %v, the code %v", at, got, want)
		}
	}
	compare("fledge.toml", root, reflect.TypeFor[Recipe]())
	compare("agent", root.Properties["agent"], reflect.TypeFor[AgentSpec]())
	compare("init", root.Properties["init"], reflect.TypeFor[InitSpec]())
	compare("source", root.Properties["source"], reflect.TypeFor[SourceSpec]())
	compare("filesystem", root.Properties["filesystem"], reflect.TypeFor[FilesystemSpec]())
	compare("output", root.Properties["output"], reflect.TypeFor[OutputSpec]())
}

// TestSchemaAgrees wants the schema and the code to take and refuse the same
// recipes. What only the code can see is not among them.
func TestSchemaAgrees(t *testing.T) {
	schema, err := recipeSchema(t).Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := os.ReadFile("../testdata/hello/fledge.toml")
	if err != nil {
		t.Fatal(err)
	}
	const sum = "0000000000000000000000000000000000000000000000000000000000000000"
	for _, tt := range []struct {
		recipe string
		ok     bool
	}{
		{string(hello), true},
		{"version = \"1\"", true},
		{"", false},
		{"version = \"2\"", false},
		{"version = \"1\"\nstrategy = \"zip\"", false},
		{"version = \"1\"\nstrategy = \"oci_rootfs\"", false},
		{"version = \"1\"\nstrategy = \"oci_rootfs\"\n[source]\nbusybox = \"b\"", false},
		{"version = \"1\"\nstrategy = \"oci_rootfs\"\n[source]\nimage = \"docker://nginx:alpine\"", true},
		{"version = \"1\"\nstrategy = \"oci_rootfs\"\n[source]\ndockerfile = \"Dockerfile\"\nbuild_args = { A = \"b=c\" }", true},
		{"version = \"1\"\nstrategy = \"oci_rootfs\"\n[init]\nnone = true\n[source]\nimage = \"nginx\"", false},
		{"version = \"1\"\n[source]\nimage = \"nginx\"", true},
		{"version = \"1\"\n[source]\nimage = \"./image.tar\"", false},
		{"version = \"1\"\n[source]\nimage = \"oci-archive:./image.tar\"", true},
		{"version = \"1\"\n[source]\nimage = \"nginx\"\ndockerfile = \"Dockerfile\"", false},
		{"version = \"1\"\n[source]\ndockerfile = \"Dockerfile\"\nbuild_args = { \"A=B\" = \"c\" }", false},
		{"version = \"1\"\nstrategy = \"initramfs\"\n[source]\nimage = \"nginx\"\n[init]\nnone = true", true},
		{"version = \"1\"\n[filesystem]\ntype = \"xfs\"", false},
		{"version = \"1\"\n[agent]", true},
		{"version = \"1\"\n[agent]\nsource_strategy = \"local\"", false},
		{"version = \"1\"\n[agent]\nsource_strategy = \"local\"\npath = \"x\"", true},
		{"version = \"1\"\n[agent]\nsource_strategy = \"http\"\nurl = \"https://example.invalid/\"", false},
		{"version = \"1\"\n[agent]\nsource_strategy = \"http\"\nurl = \"https://example.invalid/\"\nchecksum = \"sha256:" + sum + "\"", true},
		{"version = \"1\"\n[init]", false},
		{"version = \"1\"\n[init]\nnone = false", false},
		{"version = \"1\"\n[init]\nnone = true", true},
		{"version = \"1\"\n[init]\nnone = false\npath = \"x\"", true},
		{"version = \"1\"\n[init]\nnone = true\npath = \"x\"", false},
		{"version = \"1\"\n[source]\nbusybox_url = \"https://example.invalid/\"", false},
		{"version = \"1\"\n[source]\nbusybox_url = \"https://example.invalid/\"\nbusybox_sha256 = \"" + sum + "\"", true},
		{"version = \"1\"\n[source]\ncontext = \".\"", false},
		{"version = \"1\"\n[filesystem]\ntype = \"ntfs\"", false},
		{"version = \"1\"\n[filesystem]\noverlay_size = \"1GB\"", false},
		{"version = \"1\"\n[filesystem]\noverlay_size = \"1G\"\ncompression_level = 22", true},
		{"version = \"1\"\n[mappings]\n\"a\" = \"b\"", false},
		{"version = \"1\"\n[mappings]\n\"a\" = \"/b\"", true},
		{"version = \"1\"\n[output]\ncompression = \"xz\"", false},
		{"version = \"1\"\nunknown = 1", false},
	} {
		doc, _, err := toJSON("fledge.toml", []byte(tt.recipe))
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(doc, &v); err != nil {
			t.Fatal(err)
		}
		if v == nil {
			v = map[string]any{}
		}
		if err := schema.Validate(v); (err == nil) != tt.ok {
			t.Errorf("the schema says %v of:\n%s", err, tt.recipe)
		}
		if _, err := parseRecipe("fledge.toml", []byte(tt.recipe), nil); (err == nil) != tt.ok {
			t.Errorf("the code says %v of:\n%s", err, tt.recipe)
		}
	}
}
