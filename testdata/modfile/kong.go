package main

import (
	"errors"
	"fmt"
	"strings"
)

// methods are the names that kong looks for.
func methods() []string {
	return []string{"Run", "BeforeReset", "BeforeResolve", "BeforeApply", "AfterApply", "AfterRun"}
}

// lookups is the file that is added to kong.
func lookups() string {
	var b strings.Builder
	b.WriteString("package kong\n\nimport \"reflect\"\n")
	for _, f := range []struct{ name, of, result string }{
		{"valueMethod", "reflect.Value", "reflect.Value"},
		{"typeMethod", "reflect.Type", "(reflect.Method, bool)"},
	} {
		fmt.Fprintf(&b, "\n// %s is of.MethodByName(name) for the names that kong looks for.\n", f.name)
		fmt.Fprintf(&b, "func %s(of %s, name string) %s {\n\tswitch name {\n", f.name, f.of, f.result)
		for _, m := range methods() {
			fmt.Fprintf(&b, "\tcase %q:\n\t\treturn of.MethodByName(%[1]q)\n", m)
		}
		b.WriteString("\t}\n\tpanic(\"kong: method \" + name + \" is not among those that Volant knows\")\n}\n")
	}
	return b.String()
}

// changeKong looks up constant names alone.
//
// kong looks methods up by names that it holds in variables. The linker then has
// to keep every exported method of every type in the program, which is 2.6 MiB
// of Volant's 22 (kong issue 547). The copy looks up the few names that it knows,
// each a constant, and does without the lookup by prefix ("Provide"), which
// Volant does not use.
func changeKong(files map[string]string) error {
	files["lookups.go"] = lookups()
	err := edit(files, "callbacks.go",
		change{"value.MethodByName(name)", "valueMethod(value, name)", 2},
		change{"value.Addr().MethodByName(name)", "valueMethod(value.Addr(), name)", 2},
		change{"t.MethodByName(name)", "typeMethod(t, name)", 1})
	if err != nil {
		return err
	}
	files["context.go"], err = withoutProviders(files["context.go"])
	return err
}

// withoutProviders takes out the loop over methods whose names begin with
// "Provide".
func withoutProviders(text string) (string, error) {
	const begin, loop, end = "\t\t\t// Try value and pointer to value.\n", "\t\t\t\t\tmethodt := t.Method(i)\n", "\t\t}\n\t\tif method.IsValid() {\n"
	before, rest, ok1 := strings.Cut(text, begin)
	inside, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 || strings.Count(text, loop) != 1 || !strings.Contains(inside, loop) {
		return "", errors.New("the loop over methods is not where it was")
	}
	return before + end + after, nil
}
