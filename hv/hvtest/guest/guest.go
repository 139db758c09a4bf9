// Package guest is the agent of the conformance suite's machines: an HTTP
// handler that does to its own machine what the suite asks. Its program, in
// the folder init, is the only process of a real machine; the Fake serves the
// same handler with a scripted Power.
package guest

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Power is the machine that the handler runs on.
type Power interface {
	PowerOff()
	Reset()
	Panic()
	// Print writes to the console.
	Print(text string)
}

// goneTimeout bounds the wait for the caller to have its answer.
const goneTimeout = 10 * time.Second

// maxPrint bounds one print, in bytes.
const maxPrint = 64 << 20

// Handler serves:
//
//	POST /poweroff, /reset, /panic   202, and does so ?after=DURATION, once the caller has closed its stream
//	POST /print?bytes=N&end=TEXT     writes N bytes in lines, then TEXT, to the console
//	POST /echo                       answers with the request's body
//	GET  /ticks                      how many times 10 ms the guest has run
func Handler(p Power) http.Handler {
	var ticks atomic.Int64
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	mux := http.NewServeMux()
	for path, act := range map[string]func(){"/poweroff": p.PowerOff, "/reset": p.Reset, "/panic": p.Panic} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			after, err := time.ParseDuration(r.FormValue("after"))
			if err != nil {
				after = 0
			}
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(http.StatusAccepted)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			select {
			case <-r.Context().Done():
			case <-time.After(goneTimeout):
			}
			time.AfterFunc(after, act)
		})
	}
	mux.HandleFunc("POST /print", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("bytes"))
		if err != nil || n < 0 || n > maxPrint {
			http.Error(w, "bytes", http.StatusBadRequest)
			return
		}
		line := strings.Repeat("x", 79) + "\n"
		for ; n > 0; n -= len(line) {
			p.Print(line)
		}
		p.Print(r.FormValue("end") + "\n")
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		// What is read is bounded by who asks: the suite.
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Write(b)
	})
	mux.HandleFunc("GET /ticks", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, ticks.Load())
	})
	return mux
}
