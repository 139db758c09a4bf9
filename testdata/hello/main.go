// Hello is the example appliance: a static HTTP server that says where it
// runs. It is built on its own, being below a testdata folder:
//
//	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o testdata/hello/hello ./testdata/hello
//	volant fledge build -c testdata/hello/fledge.toml
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// shutdownGrace is how long open requests may take once asked to stop.
const shutdownGrace = 2 * time.Second

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	port := flag.String("port", env("PORT", "8080"), "TCP port to listen on; also $PORT")
	flag.Parse()
	if err := run(*port); err != nil {
		log.Fatalf("hello: %v", err)
	}
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func run(port string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	l, err := net.Listen("tcp", net.JoinHostPort("", port))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(hello), ReadHeaderTimeout: 10 * time.Second}
	log.Printf("hello: listening on %s, pid %d", l.Addr(), os.Getpid())
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		log.Print("hello: asked to stop")
		ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		done <- srv.Shutdown(ctx)
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

func hello(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "use GET", http.StatusMethodNotAllowed)
		return
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	addr := "unknown"
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if h, _, err := net.SplitHostPort(a.String()); err == nil {
			addr = h
		}
	}
	log.Printf("hello: %s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "hello from %s at %s, pid %d\n", host, addr, os.Getpid())
}
