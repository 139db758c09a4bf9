// Command workload is what the test machines run. Its first argument says what
// it does.
package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	fmt.Printf("args %q\n", os.Args)
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2])
	case "exit":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(number(os.Args[2]))
	case "euid":
		fmt.Printf("euid=%d\n", os.Geteuid())
	case "fork":
		if _, err := os.StartProcess("/proc/self/exe", []string{"workload", "nap"}, &os.ProcAttr{}); err != nil {
			panic(err)
		}
	case "nap":
		time.Sleep(100 * time.Millisecond)
	case "terminal":
		terminal()
	case "ignore-term":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ignoring")
		time.Sleep(time.Hour) // Go ends a program that waits for nothing
	}
}

// terminal tells of its terminal, whenever its size changes too, and echoes lines
// until one says "end".
func terminal() {
	tell := func() {
		var size struct{ rows, cols, x, y uint16 }
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		fmt.Printf("size %d %d %v, tty %v, TERM %s\n", size.rows, size.cols, errno, err, os.Getenv("TERM"))
		tty.Close()
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	go func() {
		for range resized {
			tell()
		}
	}()
	tell()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Printf("<%s>\n", lines.Text())
		if lines.Text() == "end" {
			os.Exit(6)
		}
	}
	os.Exit(7)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func serve(addr string) {
	http.HandleFunc("/process", func(w http.ResponseWriter, r *http.Request) {
		wd, _ := os.Getwd()
		groups, _ := os.Getgroups()
		_, err := os.Stdin.Read(make([]byte, 1))
		fmt.Fprintf(w, "uid=%d gid=%d groups=%v wd=%s pid=%d pgrp=%d stdin=%v\n",
			os.Getuid(), os.Getgid(), groups, wd, os.Getpid(), syscall.Getpgrp(), err)
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	})
	http.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
	})
	http.HandleFunc("/net", func(w http.ResponseWriter, r *http.Request) {
		links, _ := net.Interfaces()
		for _, l := range links {
			addrs, _ := l.Addrs()
			fmt.Fprintf(w, "%s %s mtu=%d %v %v\n", l.Name, l.HardwareAddr, l.MTU, l.Flags, addrs)
		}
		b, _ := os.ReadFile("/proc/net/route")
		_, _ = w.Write(b)
	})
	http.HandleFunc("/clock", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "%d %s\n", time.Now().Unix(), host)
	})
	http.HandleFunc("/random", func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 16)
		_, _ = rand.Read(b)
		fmt.Fprintf(w, "%x", b)
	})
	http.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		for i := range 3 {
			fmt.Fprintf(w, "part %d\n", i)
			_ = http.NewResponseController(w).Flush()
			if i == 0 {
				_, _ = io.Copy(io.Discard, r.Body) // the client waits for part 0
			}
		}
	})
	http.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		_, _ = io.Copy(conn, buf)
	})
	http.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("told to exit")
		os.Exit(number(r.FormValue("code")))
	})
	http.HandleFunc("/signal", func(w http.ResponseWriter, r *http.Request) {
		_ = syscall.Kill(os.Getpid(), syscall.Signal(number(r.FormValue("n"))))
		select {}
	})
	http.HandleFunc("/eat", func(w http.ResponseWriter, r *http.Request) {
		var hoard [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			hoard = append(hoard, b)
		}
	})
	http.HandleFunc("/orphan", func(w http.ResponseWriter, r *http.Request) {
		// The child starts one of its own and ends before that does.
		p, err := os.StartProcess("/proc/self/exe", []string{"workload", "fork"}, &os.ProcAttr{})
		if err == nil {
			_, err = p.Wait()
		}
		fmt.Fprint(w, err)
	})
	http.HandleFunc("/zombies", func(w http.ResponseWriter, r *http.Request) {
		paths, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, p := range paths {
			if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), ") Z ") {
				_, _ = w.Write(b)
			}
		}
	})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/raw/") { // past the mux, which cleans paths
			fmt.Fprintf(w, "%s %s?%s %s", r.Host, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("X-Forwarded-For"))
			return
		}
		http.DefaultServeMux.ServeHTTP(w, r)
	})
	if err := http.ListenAndServe(addr, handler); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
