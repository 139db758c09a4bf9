package httpapi_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// once sends a POST with an idempotency key.
func (f *fixture) once(t *testing.T, path, key, body string) (status int, replayed bool, reply string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://volant"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderIdempotencyKey, key)
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get(api.HeaderReplayed) == "true", string(data)
}

func TestIdempotencyKey(t *testing.T) {
	const vms, web = "/api/v1/vms", `{"name": "web", "plugin": "hello"}`
	f := installed(t, &httpapitest.Service{})
	status, replayed, first := f.once(t, vms, "k1", web)
	if status != 201 || replayed {
		t.Fatalf("first: %d, replayed %v", status, replayed)
	}
	for range 2 {
		if status, replayed, again := f.once(t, vms, "k1", web); status != 201 || !replayed || again != first {
			t.Errorf("again: %d, replayed %v, %s; want 201 and %s", status, replayed, again, first)
		}
	}
	for _, c := range []struct {
		name, path, key, body string
		status                int
		want                  string
	}{
		{"another body", vms, "k1", `{"name": "db", "plugin": "hello"}`, 409, "used by another request"},
		{"another route", vms + "/web/stop", "k1", web, 409, "used by another request"},
		{"another query", vms + "?wait=running", "k1", web, 409, "used by another request"},
		{"another key does it anew", vms, "k2", web, 409, "already"},
		{"no key", vms, "", web, 400, "has 0 bytes"},
		{"key too long", vms, strings.Repeat("k", 256), web, 400, "has 256 bytes"},
		{"streams", vms + "/web/exec", "k3", `{"args": ["true"]}`, 501, "cannot be given again"},
	} {
		if status, _, reply := f.once(t, c.path, c.key, c.body); status != c.status || !strings.Contains(reply, c.want) {
			t.Errorf("%s: %d %s; want %d with %q", c.name, status, reply, c.status, c.want)
		}
	}

	// What was refused has done nothing: the key is free.
	if status, _, _ := f.once(t, vms+"/db/stop", "k4", ""); status != 404 {
		t.Errorf("stop of a VM that is not there: %d", status)
	}
	f.must(t, "POST", vms, `{"name": "db", "plugin": "hello"}`)
	if status, replayed, _ := f.once(t, vms+"/db/stop", "k4", ""); status != 200 || replayed {
		t.Errorf("stop once it is there: %d, replayed %v", status, replayed)
	}
	// A stream that was answered whole is given again.
	pull := `{"reference": "nginx"}`
	_, _, lines := f.once(t, "/api/v1/images/pull", "k5", pull)
	if _, replayed, again := f.once(t, "/api/v1/images/pull", "k5", pull); !replayed || again != lines || !strings.Contains(lines, `"image"`) {
		t.Errorf("pull again: replayed %v, %q; want %q", replayed, again, lines)
	}
}

// Of a request that a killed daemon had not answered, the effect is known: the
// answer is made of that, and what was waited for is waited for again.
func TestIdempotencyKeyAfterKill(t *testing.T) {
	svc := &httpapitest.Service{}
	f := installed(t, svc)
	f.must(t, "POST", "/api/v1/vms", `{"name": "web", "plugin": "hello"}`)
	var vm api.VM
	if err := json.Unmarshal(f.must(t, "GET", "/api/v1/vms/web", ""), &vm); err != nil {
		t.Fatal(err)
	}
	vm.Status = api.VMPending // as it was created
	pending, err := json.Marshal(vm)
	if err != nil {
		t.Fatal(err)
	}
	svc.Answers = map[string]api.Answer{"vm": {Kind: "VM", Result: pending}, "other": {Kind: "Volume", Result: []byte(`{}`)}, "none": {}}
	for _, c := range []struct {
		path, key string
		status    int
		want      string
	}{
		{"/api/v1/vms", "vm", 201, `"status":"pending"`},
		{"/api/v1/vms?wait=running", "vm", 201, `"status":"running"`},
		{"/api/v1/vms?wait=stopped&timeout=10ms", "vm", 504, "is not stopped after 10ms"},
		{"/api/v1/vms/web/pause?wait=paused&timeout=10ms", "vm", 504, "is not paused after 10ms"},
		{"/api/v1/volumes", "other", 201, "{}"},
		{"/api/v1/vms", "other", 409, "not kept"},
		{"/api/v1/images/prune", "none", 409, "not kept"},
	} {
		if status, replayed, reply := f.once(t, c.path, c.key, "{}"); status != c.status || !replayed || !strings.Contains(reply, c.want) {
			t.Errorf("POST %s with key %s = %d, replayed %v, %s; want %d with %q", c.path, c.key, status, replayed, reply, c.status, c.want)
		}
	}
}
