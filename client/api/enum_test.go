package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// TestEnumsComplete reads this package's source and checks that the functions
// which list a type's values list every constant of that type.
func TestEnumsComplete(t *testing.T) {
	declared := map[string][]string{}
	fset := token.NewFileSet()
	for _, file := range []string{"event.go", "vm.go", "log.go", "health.go"} {
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			typ, ok := spec.Type.(*ast.Ident)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
				v, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				declared[typ.Name] = append(declared[typ.Name], v)
			}
			return true
		})
	}
	var states, types, logs []string
	for _, l := range LogNames() {
		logs = append(logs, string(l))
	}
	if !slices.Equal(logs, declared["LogName"]) {
		t.Errorf("LogNames() = %q, declared are %q", logs, declared["LogName"])
	}
	var healths []string
	for _, h := range HealthStatuses() {
		healths = append(healths, string(h))
	}
	if !slices.Equal(healths, declared["HealthStatus"]) {
		t.Errorf("HealthStatuses() = %q, declared are %q", healths, declared["HealthStatus"])
	}
	for _, s := range VMStates() {
		states = append(states, string(s))
	}
	for _, e := range EventTypes() {
		types = append(types, string(e))
	}
	if !slices.Equal(states, declared["VMState"]) {
		t.Errorf("VMStates() = %q, declared are %q", states, declared["VMState"])
	}
	types = append(types, string(EventsLost)) // stands in streams only
	slices.Sort(types)
	slices.Sort(declared["EventType"])
	if !slices.Equal(types, declared["EventType"]) {
		t.Errorf("EventTypes() = %q, declared are %q", types, declared["EventType"])
	}
}
