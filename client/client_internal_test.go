package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volantvm/volant/client/api"
)

func TestTransportError(t *testing.T) {
	c := &Client{socket: "/run/v.sock"}
	dial := func(errno syscall.Errno) error {
		return &url.Error{Op: "Get", URL: "http://volant/x", Err: &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", errno)}}
	}
	for name, tc := range map[string]struct {
		err                error
		want, hint, unwant string
	}{
		"permission": {dial(syscall.EACCES), "permission denied on /run/v.sock", "as root", ""},
		"no socket":  {dial(syscall.ENOENT), "no socket /run/v.sock", "start it", ""},
		"refused":    {dial(syscall.ECONNREFUSED), "nobody listens", "start it", ""},
		"other":      {dial(syscall.EAGAIN), "does not answer on /run/v.sock", "", ""},
		"lost":       {&url.Error{Op: "Get", URL: "http://volant/x", Err: errors.New("EOF")}, "connection to volantd was lost: EOF", "log", "http://"},
	} {
		var e *api.Error
		err := c.transportError(context.Background(), tc.err)
		if !errors.As(err, &e) || e.Code != api.CodeUnavailable || !strings.Contains(e.Message, tc.want) || !strings.Contains(e.Hint, tc.hint) ||
			(tc.unwant != "" && strings.Contains(e.Message, tc.unwant)) {
			t.Errorf("%s: %#v, want %q with hint %q", name, err, tc.want, tc.hint)
		}
	}
	own := api.Errorf(api.CodeDenied, "no")
	if err := c.transportError(context.Background(), fmt.Errorf("x: %w", own)); !errors.Is(err, own) {
		t.Errorf("an API error became %v", err)
	}
}

// TestSilence asks a program that accepts connections and says nothing.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{}
		c.init()
		c.http.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}
		defer c.Close()
		for w, want := range map[Wait]time.Duration{
			{}:                     time.Minute,
			{For: api.WaitRunning}: 2 * time.Minute,
			{For: api.WaitRunning, Timeout: time.Hour}: time.Hour + time.Minute,
		} {
			start := time.Now()
			_, err := c.VM(t.Context(), "a", w)
			if took := time.Since(start); took != want || api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "did not answer within") {
				t.Errorf("VM(%+v) = %v after %v, want unavailable after %v", w, err, took, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.VM(ctx, "a", Wait{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("VM with a deadline of the caller's = %v", err)
		}
	})
}
