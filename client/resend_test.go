package client_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/daemon/httpapi/httpapitest"
)

// A connection that is lost after the daemon did what was asked is no reason to
// do it twice, nor to fail.
func TestResend(t *testing.T) {
	svc := &httpapitest.Service{}
	socket := filepath.Join(t.TempDir(), "v.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var posts, lose atomic.Int32
	inner := httpapi.New(httpapi.Config{Service: svc, Version: "test"})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			posts.Add(1)
			if lose.Add(-1) >= 0 {
				inner.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler) // what a kill of the daemon does to the connection
			}
		}
		inner.ServeHTTP(w, r)
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	c, err := client.New(client.Config{Addr: socket, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	install(t, c)
	posts.Store(0)
	lose.Store(2)
	vm, err := c.CreateVM(t.Context(), api.VMCreate{Name: "web", Plugin: "hello"}, client.Wait{})
	if err != nil || vm.Name != "web" || posts.Load() != 3 {
		t.Errorf("CreateVM = %+v, %v, sent %d times; want it created, sent 3 times", vm.Name, err, posts.Load())
	}
	if vms, total, err := c.VMs(t.Context(), api.VMFilter{}); err != nil || total != 1 {
		t.Errorf("VMs = %+v, %v", vms, err)
	}
	// Each request has a key of its own.
	if _, err := c.StopVM(t.Context(), "web", api.VMStop{}, client.Wait{}); err != nil {
		t.Error(err)
	}
	if vm, err := c.StartVM(t.Context(), "web", client.Wait{}); err != nil || vm.Desired != api.DesiredRunning {
		t.Errorf("StartVM = %+v, %v", vm, err)
	}
	if vm, err := c.StopVM(t.Context(), "web", api.VMStop{}, client.Wait{}); err != nil || vm.Desired != api.DesiredStopped {
		t.Errorf("StopVM again = %+v, %v", vm, err)
	}
}
