package api_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
)

func TestParseSelector(t *testing.T) {
	in := func(key string, values ...string) api.Requirement {
		return api.Requirement{Key: key, Op: api.SelectIn, Values: values}
	}
	for _, c := range []struct {
		text  string
		want  api.Selector
		text2 string // what String makes of it, when that is another text
	}{
		{"", nil, ""},
		{"  ", nil, ""},
		{"app=web", api.Selector{in("app", "web")}, ""},
		{"app==web", api.Selector{in("app", "web")}, "app=web"},
		{"app=", api.Selector{in("app", "")}, `app=""`},
		{"tier!=test", api.Selector{{Key: "tier", Op: api.SelectNotIn, Values: []string{"test"}}}, ""},
		{"owner", api.Selector{{Key: "owner", Op: api.SelectExists}}, ""},
		{"!old", api.Selector{{Key: "old", Op: api.SelectNotExists}}, ""},
		{"zone in (a,b)", api.Selector{in("zone", "a", "b")}, ""},
		{"zone  in(a , b)", api.Selector{in("zone", "a", "b")}, "zone in (a,b)"},
		{"zone in (a)", api.Selector{in("zone", "a")}, "zone=a"},
		{"zone notin (a,b)", api.Selector{{Key: "zone", Op: api.SelectNotIn, Values: []string{"a", "b"}}}, ""},
		{" a = b , !c ", api.Selector{in("a", "b"), {Key: "c", Op: api.SelectNotExists}}, "a=b,!c"},
		{"in", api.Selector{{Key: "in", Op: api.SelectExists}}, `"in"`},
		{"in in (in)", api.Selector{in("in", "in")}, "in=in"},
		{`"a key"="x, \"y\" \\"`, api.Selector{in("a key", `x, "y" \`)}, ""},
		{"org.example/x-y_z=1.2-3", api.Selector{in("org.example/x-y_z", "1.2-3")}, ""},
		{"straße=ö", api.Selector{in("straße", "ö")}, ""},
	} {
		got, err := api.ParseSelector(c.text)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("ParseSelector(%q) = %+v, %v, want %+v", c.text, got, err, c.want)
			continue
		}
		want := c.text2
		if want == "" && c.want != nil {
			want = c.text
		}
		if got.String() != want {
			t.Errorf("ParseSelector(%q).String() = %q, want %q", c.text, got.String(), want)
		}
	}
}

func TestParseSelectorErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{",", `at byte 1: "," cannot stand here; the name of a label goes here`},
		{"a=b,", "at byte 5: the end cannot stand here; the name of a label goes here"},
		{"a=b c", `at byte 5: "c" cannot stand here; a comma goes before the next label`},
		{"a=b=c", `at byte 4: "=" cannot stand here; a comma`},
		{"a b", `at byte 3: "b" cannot stand here; behind a label goes =, !=, in, notin or a comma`},
		{"a !b", `at byte 3: "!" cannot stand here; behind a label`},
		{"!", "at byte 2: the end cannot stand here; the name"},
		{"!!a", `at byte 2: "!" cannot stand here; the name`},
		{"!a=b", `at byte 3: "=" cannot stand here; a comma`},
		{"a in", "at byte 5: the end cannot stand here; behind in go values in parentheses"},
		{"a in (x", "at byte 8: the end cannot stand here; a value ends"},
		{"a in (x y)", `at byte 9: "y" cannot stand here; a value ends`},
		{"a in (x))", `at byte 9: ")" cannot stand here; a comma`},
		{`a "in" (x)`, `at byte 3: "\"" cannot stand here; behind a label`},
		{`a="x`, "at byte 3: the quote is not closed"},
		{`a="\n"`, `at byte 4: a backslash in quotes`},
		{`""=x`, `at byte 1: "" is no name of a label`},
		{strings.Repeat("k", 254), "at byte 1: \"" + strings.Repeat("k", 40) + `" is no name`},
		{"a=\xff", "at byte 3: the value is not UTF-8"},
		{"ä ö", `at byte 4: "ö" cannot stand here`},
		{strings.Repeat("a,", 2049), "has 4098 bytes; at most 4096 are allowed"},
	} {
		_, err := api.ParseSelector(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("ParseSelector(%.60q) = %v, want invalid, with %q", c.text, err, c.want)
		}
	}
}

func TestSelectorMatches(t *testing.T) {
	labels := map[string]string{"app": "web", "empty": "", "zone": "a"}
	for _, c := range []struct {
		text string
		want bool
	}{
		{"", true}, {"app=web", true}, {"app=db", false}, {"none=web", false},
		{"app!=db", true}, {"app!=web", false}, {"none!=web", true},
		{"app", true}, {"empty", true}, {"none", false}, {"!none", true}, {"!app", false},
		{"empty=", true}, {"none=", false},
		{"zone in (a,b)", true}, {"zone in (b)", false}, {"none in (a)", false},
		{"zone notin (b)", true}, {"zone notin (a)", false}, {"none notin (a)", true},
		{"app=web,zone=a", true}, {"app=web,zone=b", false},
	} {
		s, err := api.ParseSelector(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Matches(labels); got != c.want {
			t.Errorf("%q matches %v: %v, want %v", c.text, labels, got, c.want)
		}
	}
	if s, _ := api.ParseSelector("!x,y!=z"); !s.Matches(nil) {
		t.Error("what has no labels lacks them")
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"a=b,c!=d,e,!f,g in (x,y),h notin (z)", `"a b"="c\"d"`, "in in (in)", "a==", "!", "(", "a in ()", "ä=ö"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := api.ParseSelector(text)
		if err != nil {
			return
		}
		again, err := api.ParseSelector(s.String())
		if len(s.String()) > api.MaxSelectorLength {
			return // quotes make it longer
		}
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("ParseSelector(%q) = %+v, whose text %q reads as %+v, %v", text, s, s.String(), again, err)
		}
	})
}
