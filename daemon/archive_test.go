package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/guest/wire"
)

// handleFiles adds the routes of files. A path says what becomes of it: it is
// refused with a status and code, its archive is cut or fails, or is what a path
// of another name was sent.
func handleFiles(mux *http.ServeMux) {
	sent := make(chan []byte, 1)
	refuse := func(w http.ResponseWriter, r *http.Request) bool {
		var status int
		var code wire.ErrorCode
		if n, _ := fmt.Sscanf(r.FormValue("path"), "/refuse/%d/%s", &status, &code); n == 0 {
			return false
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(wire.Error{Message: "because", Code: code})
		return true
	}
	mux.HandleFunc("GET "+wire.PathStat, func(w http.ResponseWriter, r *http.Request) {
		if !refuse(w, r) {
			_ = json.NewEncoder(w).Encode(wire.FileInfo{Name: "n", Path: r.FormValue("path") + r.FormValue("follow"), Type: wire.FileDir, Mode: 0o177777, UID: 1, Size: 5})
		}
	})
	mux.HandleFunc("GET "+wire.PathArchive, func(w http.ResponseWriter, r *http.Request) {
		if refuse(w, r) {
			return
		}
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "some of it")
		switch r.FormValue("path") {
		case "/said":
			w.Header().Set(http.TrailerPrefix+wire.TrailerError, `{"message":"because","code":"conflict"}`)
		case "/cut":
			panic(http.ErrAbortHandler)
		case "/stall":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/sent":
			_, _ = w.Write(<-sent)
		}
	})
	mux.HandleFunc("PUT "+wire.PathArchive, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("path") == "/stall" {
			time.Sleep(time.Second) // and then it answers nothing that makes sense
			panic(http.ErrAbortHandler)
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if !refuse(w, r) {
			sent <- append(b, r.URL.Query().Get("keep")...)
			w.WriteHeader(http.StatusNoContent)
		}
	})
}

func TestVMFiles(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.start(options{})
	bare := d.manifest("bare")
	bare.Initramfs.Agent, bare.Workload = api.AgentNone, nil
	d.equip(bare)
	d.create("web", "serve")
	d.create("bare", "bare")
	d.must("web", api.WaitHealthy)
	d.must("bare", api.WaitRunning)

	f, err := d.VMStat(ctx, "web", "/x", true)
	if want := (api.File{Name: "n", Path: "/xtrue", Type: api.FileDir, Mode: 0o7777, UID: 1, Size: 5}); err != nil || f != want {
		t.Errorf("VMStat = %+v, %v, want %+v", f, err, want)
	}
	data := bytes.Repeat([]byte("0\x00\n\xff"), 500_000)
	if err := d.VMCopyTo(ctx, "web", "/x", true, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	r, err := d.VMCopyFrom(ctx, "web", "/sent", false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "some of it"+string(data)+"true" {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(data), err)
	}
	r.Close()

	stat := func(vm, path string) error { _, err := d.VMStat(ctx, vm, path, false); return err }
	get := func(vm, path string) error { _, err := d.VMCopyFrom(ctx, vm, path, false); return err }
	put := func(vm, path string) error { return d.VMCopyTo(ctx, vm, path, false, bytes.NewReader(data)) }
	all := map[string]func(vm, path string) error{"stat": stat, "get": get, "put": put}
	for _, tc := range []struct {
		vm, path, want string
		code           api.Code
	}{
		{"wob", "/x", `no VM "wob"`, api.CodeNotFound},
		{"web", "x", "absolute", api.CodeInvalid},
		{"bare", "/x", "no agent", api.CodeUnsupported},
		{"web", "/refuse/400/invalid", "VM web: because", api.CodeInvalid},
		{"web", "/refuse/404/not_found", "VM web: because", api.CodeNotFound},
		{"web", "/refuse/404/", "earlier version", api.CodeUnsupported},
		{"web", "/refuse/409/conflict", "VM web: because", api.CodeConflict},
		{"web", "/refuse/429/busy", "VM web: because", api.CodeExhausted},
		{"web", "/refuse/507/no_space", "VM web: because", api.CodeExhausted},
		{"web", "/refuse/500/failed", "VM web: because", api.CodeUnavailable},
		{"web", "/refuse/500/nonsense", "VM web: because", api.CodeUnavailable},
	} {
		for name, do := range all {
			if err := do(tc.vm, tc.path); api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s %s:%s = %v, want %s: %s", name, tc.vm, tc.path, err, tc.code, tc.want)
			}
		}
	}
	for path, want := range map[string]api.Code{"/said": api.CodeConflict, "/cut": ""} {
		r, err := d.VMCopyFrom(ctx, "web", path, false)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		var said *api.Error
		if err == nil || errors.As(err, &said) != (want != "") || said != nil && said.Code != want {
			t.Errorf("%s: %q and %v, want an error with code %q", path, got, err, want)
		}
	}
	if err := put("web", "/stall"); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("put to an agent that breaks off = %v, want unavailable", err)
	}

	// Neither side of a transfer can hold its context.
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	in, never := io.Pipe()
	defer never.Close()
	if err := d.VMCopyTo(short, "web", "/x", false, in); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("VMCopyTo of a client that stalls = %v, want its context's end", err)
	}
	short, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if r, err = d.VMCopyFrom(short, "web", "/stall", false); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); err == nil {
		t.Error("an archive that stalls came to its end")
	}

	if _, err := d.StopVM(ctx, "web", api.VMStop{}); err != nil {
		t.Fatal(err)
	}
	d.must("web", api.WaitStopped)
	for name, do := range all {
		if err := do("web", "/x"); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "is stopped; files are copied when it is running") {
			t.Errorf("%s of a VM that is stopped = %v, want conflict", name, err)
		}
	}
}
