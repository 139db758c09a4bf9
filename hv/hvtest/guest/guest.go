// Package guest is the agent of the conformance suite's machines: an HTTP
// handler that does to its own machine what the suite asks. Its program, in
// the folder init, is the only process of a real machine; the Fake serves the
// same handler with a scripted Machine.
package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Machine is what the handler runs on.
type Machine interface {
	PowerOff()
	Reset()
	Panic()
	// Print writes to the console.
	Print(text string)
	// OpenDisk opens a disk by its serial: for reading and writing if it can be,
	// else for reading. The caller closes it.
	OpenDisk(serial string) (*os.File, error)
	// Size tells how many vCPUs are online and how much memory there is, after
	// putting into use what was plugged.
	Size() (vcpus, memoryMiB int)
	// NICs lists the MAC addresses of the network devices.
	NICs() []string
	// OpenShare returns the directory that the host shares under a tag, to be
	// closed by the caller.
	OpenShare(tag string) (*os.Root, error)
}

// goneTimeout bounds the wait for the caller to have its answer.
const goneTimeout = 10 * time.Second

// maxPrint bounds one print, in bytes.
const maxPrint = 64 << 20

// maxNote bounds a note, in bytes.
const maxNote = 64 << 10

// Size is the answer of /size.
type Size struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
}

// maxDisk bounds one access to a disk, in bytes.
const maxDisk = 16 << 20

// Handler serves:
//
//	POST /poweroff, /reset, /panic   202, and does so ?after=DURATION, once the caller has closed its stream
//	POST /print?bytes=N&end=TEXT     writes N bytes in lines, then TEXT, to the console
//	POST /echo                       answers with the request's body
//	GET  /ticks                      how many times 10 ms the guest has run
//	GET  /nonce                      what is another number for every boot
//	GET, PUT /note                   a text that the guest remembers
//	GET  /size                       Size, as JSON
//	GET  /nics                       MAC addresses, a line each
//	POST /touch?bytes=N              writes to N bytes of new memory, and frees it
//	GET, PUT /share?tag=T&name=F     a file in what the host shares
//
// and, on the disk with ?serial=S from byte ?offset=N on:
//
//	GET    /disk?size=N   its bytes
//	PUT    /disk          writes the request's body, and syncs
//	DELETE /disk?size=N   discards, and syncs
//
// What it remembers is in m, and nowhere else.
func Handler(p Machine, m *Memory) http.Handler {
	go func() {
		for range time.Tick(tick) {
			m.tick()
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
		fmt.Fprint(w, m.get().Ticks)
	})
	mux.HandleFunc("GET /nonce", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, m.get().Nonce)
	})
	mux.HandleFunc("GET /note", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, m.get().Note)
	})
	mux.HandleFunc("PUT /note", func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, maxNote))
		if err == nil {
			m.note(string(b))
		}
	})
	mux.HandleFunc("GET /size", func(w http.ResponseWriter, _ *http.Request) {
		var s Size
		s.VCPUs, s.MemoryMiB = p.Size()
		json.NewEncoder(w).Encode(s)
	})
	mux.HandleFunc("GET /nics", func(w http.ResponseWriter, _ *http.Request) {
		for _, mac := range p.NICs() {
			fmt.Fprintln(w, mac)
		}
	})
	mux.HandleFunc("POST /touch", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("bytes"))
		if err == nil {
			err = touch(n)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("GET /share", func(w http.ResponseWriter, r *http.Request) {
		root, err := p.OpenShare(r.FormValue("tag"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		defer root.Close()
		b, err := root.ReadFile(r.FormValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Write(b)
	})
	mux.HandleFunc("PUT /share", func(w http.ResponseWriter, r *http.Request) {
		root, err := p.OpenShare(r.FormValue("tag"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		defer root.Close()
		b, err := io.ReadAll(io.LimitReader(r.Body, maxNote))
		if err == nil {
			err = root.WriteFile(r.FormValue("name"), b, 0o644)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	disk := func(method string, do func(f *os.File, offset, size int64, r *http.Request) ([]byte, error)) {
		mux.HandleFunc(method+" /disk", func(w http.ResponseWriter, r *http.Request) {
			offset, err := strconv.ParseInt(r.FormValue("offset"), 10, 64)
			if err != nil {
				http.Error(w, "offset", http.StatusBadRequest)
				return
			}
			size, err := strconv.ParseInt(r.FormValue("size"), 10, 64)
			if err != nil && method != http.MethodPut || size < 0 || size > maxDisk {
				http.Error(w, "size", http.StatusBadRequest)
				return
			}
			f, err := p.OpenDisk(r.FormValue("serial"))
			if err != nil {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			defer f.Close()
			b, err := do(f, offset, size, r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Write(b)
		})
	}
	disk(http.MethodGet, func(f *os.File, offset, size int64, _ *http.Request) ([]byte, error) {
		b := make([]byte, size)
		_, err := f.ReadAt(b, offset)
		return b, err
	})
	disk(http.MethodPut, func(f *os.File, offset, _ int64, r *http.Request) ([]byte, error) {
		b, err := io.ReadAll(io.LimitReader(r.Body, maxDisk))
		if err != nil {
			return nil, err
		}
		if _, err := f.WriteAt(b, offset); err != nil {
			return nil, err
		}
		return nil, f.Sync()
	})
	disk(http.MethodDelete, func(f *os.File, offset, size int64, _ *http.Request) ([]byte, error) {
		if err := discard(f, offset, size); err != nil {
			return nil, err
		}
		return nil, f.Sync()
	})
	return mux
}

// touch writes to every page of so many bytes of memory that nobody had, and
// gives them back to the kernel at once.
func touch(n int) error {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	return unix.Munmap(b)
}

// discard tells a block device to forget bytes (BLKDISCARD of linux/fs.h, as
// fstrim(8) and mount -o discard end in), and makes a hole in a file.
func discard(f *os.File, offset, size int64) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeDevice == 0 {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, size)
	}
	span := [2]uint64{uint64(offset), uint64(size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return fmt.Errorf("BLKDISCARD: %w", errno)
	}
	return nil
}
