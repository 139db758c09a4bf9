package httpapi

import (
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Bounds of waiting. A client that needs longer asks again.
const (
	defaultWait = time.Minute
	maxWait     = 10 * time.Minute
)

// param is one query parameter of a route.
type param struct {
	name string
	kind string // a type of JSON Schema: "string", "integer", "boolean"
	doc  string
}

// selectorParam is the parameter of every list of things that have labels.
func selectorParam() param {
	return param{"selector", "string", "only those with such labels: app=web,tier!=test,owner,!old,zone in (a,b)"}
}

func listParams() []param {
	return []param{
		{"status", "string", "states, separated by commas or repeated"},
		{"plugin", "string", "name of a plugin"},
		{"q", "string", "part of the name"},
		selectorParam(),
		{"limit", "integer", "how many to return; 0 for all"},
		{"offset", "integer", "how many to skip"},
		{"sort", "string", "name (default), created_at, updated_at or status"},
		{"order", "string", "asc (default) or desc"},
	}
}

func waitParams() []param {
	return []param{
		{"wait", "string", "answer only when the VM is running, healthy, paused, stopped or deleted"},
		{"timeout", "string", "how long to wait at most, such as 30s; default 1m, at most 10m"},
	}
}

func stopParams() []param {
	return []param{
		{"grace_seconds", "integer", "how long the workload may take to end; default: its own stop timeout"},
		{"force", "boolean", "kill the VM at once"},
	}
}

func logParams() []param {
	return []param{
		{"after", "integer", "only lines with a greater seq"},
		{"tail", "string", "only the last lines, this many; 0 for none of those that are there already, all (default)"},
		{"since", "string", "only lines of this time (RFC 3339) and later; workload only"},
		{"until", "string", "only lines before this time (RFC 3339), when following ends too; workload only"},
		{"follow", "boolean", "go on with new lines as they come, until the VM has ended for good"},
		{"log", "string", "workload (default), console or vmm"},
	}
}

func statsParams() []param {
	return []param{
		{"follow", "boolean", "go on with further samples"},
		{"interval", "string", "how long from one to the next, such as 5s; default 1s, 100ms to 1h"},
	}
}

func fileParams() []param {
	return []param{
		{"path", "string", "absolute path in the VM; links on the way are followed; with /. at its end the archive holds what is in it"},
		{"follow", "boolean", "follow the file itself, if it is a link"},
	}
}

func unpackParams() []param {
	return []param{
		{"path", "string", "absolute path of a directory in the VM; links are followed"},
		{"keep", "boolean", "keep owners and set-id bits; without it the files are root's"},
	}
}

func eventParams() []param {
	return []param{
		{"after", "integer", "only events with a greater seq; the header Last-Event-ID goes before it"},
		{"follow", "boolean", "false to end where the journal ends; default true"},
		{"vm", "string", "only events about this VM"},
		{"name", "string", "only events about what has this name: a VM, plugin, kernel, volume or image"},
		{"since", "string", "only events of this time (RFC 3339) and later"},
		{"until", "string", "only events before this time (RFC 3339), when following ends too"},
		{"type", "string", "event types, separated by commas or repeated"},
		{"selector", "string", "only events about what had such labels at the time: app=web,tier!=test,owner,!old,zone in (a,b)"},
	}
}

// checkQuery refuses a query that does not parse, and parameters that the
// route does not have.
func checkQuery(r *http.Request, known []param) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the query of the URL does not parse: %v", err)
	}
	for name := range q {
		if err := checkParam(name, known); err != nil {
			return err
		}
	}
	return nil
}

func checkParam(name string, known []param) error {
	var names []string
	for _, p := range known {
		if p.name == name {
			return nil
		}
		names = append(names, p.name)
	}
	e := api.Errorf(api.CodeInvalid, "%.60q is not a query parameter of this route", name)
	if near := api.Nearest(name, names); near != "" {
		return e.WithHint("did you mean %s?", near)
	}
	if len(names) == 0 {
		return e.WithHint("it takes none")
	}
	return e.WithHint("it takes %s", strings.Join(names, ", "))
}

// query reads typed parameters and keeps the first error.
type query struct {
	values url.Values
	err    error
}

func newQuery(r *http.Request) *query { return &query{values: r.URL.Query()} }

func (q *query) fail(name, value, must string) {
	if q.err == nil {
		q.err = api.Errorf(api.CodeInvalid, "query parameter %s: %.60q is not %s", name, value, must)
	}
}

func (q *query) str(name string) string { return q.values.Get(name) }

func (q *query) uint(name string, limit uint64) uint64 {
	v := q.values.Get(name)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n > limit {
		q.fail(name, v, "a whole number from 0 to "+strconv.FormatUint(limit, 10))
		return 0
	}
	return n
}

func (q *query) int(name string) int { return int(q.uint(name, math.MaxInt32)) }

// duration reads a length of time, zero when it is not given.
func (q *query) duration(name string, least, most time.Duration) time.Duration {
	v := q.values.Get(name)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < least || d > most {
		q.fail(name, v, fmt.Sprintf("a duration from %v to %v, such as 5s", least, most))
		return 0
	}
	return d
}

// tail reads how many of the last lines are wanted, as api.LogQuery has it.
func (q *query) tail(name string) int {
	v := q.values.Get(name)
	if v == "" || v == "all" {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		q.fail(name, v, "a whole number or all")
	}
	if n == 0 {
		return api.TailNone
	}
	return int(n)
}

// time reads a time, zero when it is not given.
func (q *query) time(name string) time.Time {
	v := q.values.Get(name)
	if v == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		q.fail(name, v, "a time such as 2026-01-31T15:04:05Z (RFC 3339)")
	}
	return t
}

func (q *query) bool(name string, def bool) bool {
	v := q.values.Get(name)
	if !q.values.Has(name) {
		return def
	}
	switch v {
	case "", "true", "1": // ?follow alone is enough
		return true
	case "false", "0":
		return false
	}
	q.fail(name, v, "true or false")
	return def
}

// list returns the values of a parameter that may be repeated or hold several
// separated by commas, each of which must be in allowed.
func (q *query) list(name string, allowed []string) []string {
	var out []string
	for _, v := range q.values[name] {
		for s := range strings.SplitSeq(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, q.checked(name, s, allowed))
			}
		}
	}
	return out
}

// oneOf returns the value of a parameter that must be in allowed when given.
func (q *query) oneOf(name string, allowed ...string) string {
	v := q.values.Get(name)
	if v == "" {
		return ""
	}
	return q.checked(name, v, allowed)
}

func (q *query) checked(name, v string, allowed []string) string {
	for _, a := range allowed {
		if v == a {
			return v
		}
	}
	must := "one of " + strings.Join(allowed, ", ")
	if near := api.Nearest(v, allowed); near != "" {
		must += "; did you mean " + near + "?"
	}
	q.fail(name, v, must)
	return ""
}

// selector reads the parameter that selectorParam describes.
func (q *query) selector() api.Selector {
	s, err := api.ParseSelector(q.values.Get("selector"))
	if q.err == nil {
		q.err = err
	}
	return s
}

// sendSelected answers with those of list whose labels the request selects.
func sendSelected[T any](w http.ResponseWriter, r *http.Request, list func() ([]T, error), labels func(T) map[string]string, body func([]T) any) error {
	q := newQuery(r)
	s := q.selector()
	if q.err != nil {
		return q.err
	}
	all, err := list()
	if err != nil {
		return err
	}
	out := []T{} // in JSON a list, not null
	for _, one := range all {
		if s.Matches(labels(one)) {
			out = append(out, one)
		}
	}
	writeJSON(w, http.StatusOK, body(out))
	return nil
}

// wait is what a request wants to wait for, and how long.
type wait struct {
	what    api.VMWait
	timeout time.Duration
}

// wait reads the wait and timeout parameters; allowed is what the route can
// wait for.
func (q *query) wait(allowed ...api.VMWait) wait {
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	w := wait{what: api.VMWait(q.oneOf("wait", names...)), timeout: defaultWait}
	if v := q.values.Get("timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 || d > maxWait {
			q.fail("timeout", v, "a duration above 0s and up to "+maxWait.String()+", such as 30s")
		}
		w.timeout = d
	}
	return w
}
